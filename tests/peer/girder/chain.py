"""A chain in girder_worker's own serializer whose first task is longshore's and whose second is girder_worker's.

    chain.py QUEUE

with GIRDER_WORKER_BROKER. Prints what it saw as one JSON document, for the test to judge.
"""

import json
import sys

from celery import chain
from girder_worker.docker.tasks import docker_run
from girder_worker.docker.transforms import VolumePath

WITHIN = 90


def run(script, *more):
    return docker_run.si(
        "busybox:latest",
        pull_image=False,
        entrypoint=["sh", "-c"],
        container_args=[script, *more],
        network_mode="none",
    )


def ended(sent):
    try:
        return [sent.get(timeout=WITHIN), sent.state]
    except Exception as error:  # whatever the failure's class is in this process
        return [f"{type(error).__name__}: {error}", sent.state]


def main():
    queue = sys.argv[1]
    path = VolumePath("told")
    # One object twice: the second time it travels as a reference to the first.
    script = 'test "$0" = "$1" && echo hi > $0 && test "$(cat $1)" = hi && exit 3'
    sent = chain(run("true").set(queue=queue), run(script, path, path)).apply_async()
    print(json.dumps({"second": ended(sent), "first": ended(sent.parent)}))


main()

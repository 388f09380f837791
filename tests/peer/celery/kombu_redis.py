"""What a kombu channel does on Celery's Redis, for tests of the worker that shares it.

    kombu_redis.py BROKER send QUEUE PRIORITY…      sends a task with each priority, as a Celery producer does; prints their ids
    kombu_redis.py BROKER take QUEUE SECONDS COUNT  consumes COUNT messages with that visibility timeout and acknowledges them;
                                                    prints what came
    kombu_redis.py BROKER hold QUEUE                takes one message and dies over it
    kombu_redis.py BROKER timed QUEUE               sends a task for later, one that expired, and one that is revoked while it waits;
                                                    prints their states, errors, and when each ended after it was sent
    kombu_redis.py BROKER work QUEUE                a Celery worker that knows docker_run and answers "python", until it is killed; also
                                                    of RabbitMQ

BROKER may end with ?global_keyprefix=PREFIX, which Celery takes as a transport option.
"""

import json
import os
import socket
import sys
import time
from urllib.parse import parse_qs, urlsplit

from celery import Celery
from kombu import Connection, Consumer, Queue

NAME = "girder_worker.docker.tasks.docker_run"


def connected(broker, **options):
    query = parse_qs(urlsplit(broker).query)
    if "global_keyprefix" in query:
        options["global_keyprefix"] = query["global_keyprefix"][0]
    return broker.split("?")[0], options


def send(broker, queue, *priorities):
    url, options = connected(broker)
    app = Celery(broker=url, broker_transport_options=options)
    kwargs = {"pull_image": False, "container_args": ["true"]}
    sent = [app.send_task(NAME, args=["busybox:latest"], kwargs=kwargs, queue=queue, priority=int(p)) for p in priorities]
    return [task.id for task in sent]


def take(broker, queue, seconds, count):
    url, options = connected(
        broker, visibility_timeout=float(seconds), unacked_restore_interval=1, unacked_restore_throttle=1
    )
    came = []

    def heard(message):
        came.append(
            {
                "id": message.headers.get("id"),
                "redelivered": [message.headers.get("redelivered"), message.delivery_info.get("redelivered")],
                "at": time.time(),
            }
        )
        message.ack()

    until = time.monotonic() + 30
    with Connection(url, transport_options=options) as connection:
        with Consumer(connection.channel(), [Queue(queue)], on_message=heard):
            while len(came) < int(count) and time.monotonic() < until:
                try:
                    connection.drain_events(timeout=0.5)
                except socket.timeout:
                    pass
    return came


def hold(broker, queue):
    url, options = connected(broker)

    def heard(message):
        print(json.dumps(message.headers["id"]), flush=True)
        os._exit(0)

    with Connection(url, transport_options=options) as connection:
        with Consumer(connection.channel(), [Queue(queue)], on_message=heard, prefetch_count=1):
            connection.drain_events(timeout=30)


def timed(broker, queue):
    url, options = connected(broker)
    app = Celery(broker=url, backend=url, broker_transport_options=options)
    kwargs = {"pull_image": False, "container_args": ["true"]}

    def ended(sent, started):
        try:
            error = sent.get(timeout=60)
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
        return {"state": sent.state, "error": error, "after": time.time() - started}

    def sent(**timing):
        return app.send_task(NAME, args=["busybox:latest"], kwargs=kwargs, queue=queue, **timing), time.time()

    later, expired, revoked = sent(countdown=3), sent(expires=-5), sent(countdown=4)
    app.control.revoke(revoked[0].id)
    return {"expired": ended(*expired), "later": ended(*later), "revoked": ended(*revoked)}


def work(broker, queue):
    url, options = connected(broker)
    backend = url if url.startswith("redis") else "rpc://"
    app = Celery(broker=url, backend=backend, broker_transport_options=options)

    @app.task(name=NAME)
    def docker_run(*args, **kwargs):
        time.sleep(0.2)
        return "python"

    app.worker_main(["worker", "-P", "solo", "-Q", queue, "-n", "python@quay", "-l", "warning"])


def main():
    broker, what, *rest = sys.argv[1:]
    print(json.dumps({"send": send, "take": take, "hold": hold, "timed": timed, "work": work}[what](broker, *rest)))


main()

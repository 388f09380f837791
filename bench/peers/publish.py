"""Queues work for a Python worker.

    publish.py noop COUNT          a warm-up, a mark, COUNT tasks of 1 KB that do nothing, a mark
    publish.py sleep SECONDS...    a task for each that sleeps so long
    publish.py docker COUNT NETWORK  COUNT containers of busybox that run `true`; NETWORK: bridge or none
"""
import sys

WARM_UP = 200


def noop(count):
    import plain

    payload = "x" * 1024
    for _ in range(WARM_UP):
        plain.noop.delay(payload)
    plain.mark.delay()
    for _ in range(int(count)):
        plain.noop.delay(payload)
    plain.mark.delay()


def sleep(*seconds):
    import plain

    for each in seconds:
        plain.sleep.delay(float(each))


def docker(count, network):
    import girder

    options = {} if network == "bridge" else {"network": network}
    for _ in range(int(count)):
        girder.docker_run.apply_async(
            ["busybox:latest"], {"pull_image": False, "container_args": ["true"], **options}
        )


if __name__ == "__main__":
    kind, *rest = sys.argv[1:]
    {"noop": noop, "sleep": sleep, "docker": docker}[kind](*rest)

"""Queues work for a Python worker.

    publish.py noop COUNT          a warm-up, a mark, COUNT tasks of 1 KB that do nothing, a mark
    publish.py answered COUNT      the same with results
    publish.py broadcast COUNT RATE  COUNT requests of remote control for somebody else, RATE of them in a second
    publish.py sleep SECONDS...    a task for each that sleeps so long
    publish.py docker COUNT NETWORK  COUNT containers of busybox that run `true`; NETWORK: bridge or none
    publish.py streams WAY BYTES URL a container whose stream carries nothing, then one whose stream carries BYTES;
                                     WAY: in (from a Girder at URL), out (to standard output), http (to URL)
"""
import sys

WARM_UP = 200


def answered(count):
    import answering  # noqa: F401: it switches results on

    noop(count)


def broadcast(count, rate):
    import time

    import plain

    begin = time.monotonic()
    with plain.app.connection() as connection:
        mailbox = plain.app.control.mailbox(connection)
        for n in range(int(count)):
            mailbox._publish("revoked", {}, destination=["celery@elsewhere"])
            time.sleep(max(0, begin + n / float(rate) - time.monotonic()))


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


def streams(way, size, url):
    import girder
    from girder_client import GirderClient
    from girder_worker.docker import transforms
    from girder_worker.docker.transforms.girder import GirderFileIdToStream

    def stream(count):
        """What the container does, and the stream that it does it with."""
        if way == "in":
            # The server takes the file's id for its size.
            source = GirderFileIdToStream(count, gc=GirderClient(apiUrl=url))
            return "cat $0 > /dev/null", transforms.Connect(source, transforms.NamedInputPipe("in"))
        sink = transforms.HostStdOut() if way == "out" else transforms.ChunkedTransferEncodingStream(url)
        return f"head -c {count} /dev/zero > $0", transforms.Connect(transforms.NamedOutputPipe("out"), sink)

    for count in ("0", size):
        script, connect = stream(count)
        girder.docker_run.apply_async(
            ["busybox:latest"],
            {
                "pull_image": False,
                "network": "none",
                "entrypoint": "sh",
                "container_args": ["-c", script, connect],
            },
        )


if __name__ == "__main__":
    kind, *rest = sys.argv[1:]
    {"noop": noop, "answered": answered, "broadcast": broadcast, "sleep": sleep, "docker": docker, "streams": streams}[kind](*rest)

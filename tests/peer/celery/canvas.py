"""A producer of chains, callbacks and errbacks whose first task is longshore's.

    canvas.py QUEUE

with the environment of tasks.py. Prints what it saw as one JSON document, for the test to judge.
"""

import json
import os
import sys
import time

from celery import chain, group
from tasks import app, mourn, see

WITHIN = 60


def main():
    queue = sys.argv[1]
    seen = {}

    def ping(*args, **kwargs):
        return app.signature("longshore.ping", args=args, kwargs=kwargs, queue=queue)

    def ended(sent):
        try:
            return sent.get(timeout=WITHIN)
        except Exception as error:  # whatever the failure's class is in this process
            return f"{type(error).__name__}: {error}"

    def noted(count):
        """The lines that tasks noted, at least so many of them."""
        until = time.monotonic() + WITHIN
        while time.monotonic() < until:
            try:
                with open(os.environ["PEER_NOTES"], encoding="utf-8") as notes:
                    lines = notes.read().splitlines()
            except FileNotFoundError:
                lines = []
            if len(lines) >= count:
                return [json.loads(line) for line in lines]
            time.sleep(0.1)
        return "not noted in time"

    sent = chain(ping(), see.s("first", a=1), see.si("second")).apply_async()
    seen["chain"] = ended(sent)
    seen["chain ids"] = [sent.parent.parent.id, sent.parent.id, sent.id]
    seen["first"] = ended(sent.parent)

    twice = chain(ping(), ping().set(immutable=True), see.s("after two")).apply_async()
    seen["two of ours"] = ended(twice)
    grouped = chain(ping(), group(see.s("g1"), see.s("g2"))).apply_async()
    seen["group"] = ended(grouped)

    called = ping().apply_async(link=[see.s("one"), chain(see.s("inner"), see.s("outer"))])
    seen["called"] = [called.id, ended(called), sorted(child.id for child in called.children or [])]
    before = 2 + 1 + 2
    seen["noted"] = noted(before + 3)[before:]

    failed = chain(ping(fail="permanent"), see.s("never")).apply_async(link_error=mourn.s())
    seen["failed"] = [failed.parent.id, ended(failed)]
    seen["mourned"] = noted(before + 4)[before + 3:]

    app.conf.task_protocol = 1
    old = app.send_task("longshore.ping", queue=queue, link=see.s("old"))
    seen["old"] = ended(old)
    seen["noted of old"] = noted(before + 5)[before + 4:]
    app.conf.task_protocol = 2

    chord = app.send_task("longshore.ping", queue=queue, chord=see.s("body"))
    seen["chord"] = ended(chord)

    ended(ping(fail="permanent").apply_async(link=see.s("not called")))
    started = time.monotonic()
    seen["later"] = ended(chain(ping(), see.s("later").set(countdown=2)).apply_async())
    seen["later after"] = time.monotonic() - started
    seen["all"] = noted(before + 6)
    print(json.dumps(seen))


main()

"""Somebody who sends for later, looks at what waits, and thinks better of it.

    later.py BROKER NODE BACKEND

Prints what it saw as one JSON document, for the test to judge.
"""

import json
import sys
import time

from celery import Celery
from celery.exceptions import TaskRevokedError

WITHIN = 40


def main():
    broker, node, backend = sys.argv[1:]
    app = Celery(broker=broker, backend=backend)
    inspect = app.control.inspect(destination=[node], timeout=10)
    seen = {}

    def ended(sent):
        started = time.monotonic()
        try:
            value = sent.get(timeout=WITHIN)
        except TaskRevokedError as error:
            value = f"revoked: {error}"
        return [sent.state, value, time.monotonic() - started]

    def asked(method):
        return (getattr(inspect, method)() or {}).get(node) or []

    def until(found):
        until = time.monotonic() + WITHIN
        while not found() and time.monotonic() < until:
            time.sleep(0.1)

    def told(method, **options):
        return app.control.broadcast(method, reply=True, timeout=4, limit=1, **options)

    waits = app.send_task("longshore.ping", countdown=600)
    until(lambda: asked("scheduled"))
    seen["scheduled"] = asked("scheduled")
    seen["queried"] = inspect.query_task(waits.id)[node].get(waits.id)
    app.control.revoke(waits.id)
    seen["revoked"] = ended(waits)
    seen["left"] = asked("scheduled")
    seen["id"] = waits.id

    seen["patterns"] = [
        told("ping", pattern=pattern, matcher=matcher)
        for pattern, matcher in [("longshore@.+", "pcre"), ("longshore@*", "glob"), ("celery@.+", "pcre")]
    ]

    def stamped(batch, **kwargs):
        return app.send_task("longshore.ping", kwargs=kwargs, stamped_headers=["batch"], batch=batch)

    running, other = stamped("7", sleep="120s"), stamped("8", sleep="1s")
    until(lambda: running.id in json.dumps(asked("active")))
    seen["flagged"] = told("revoke_by_stamped_headers", arguments={"headers": {"batch": ["7"]}})
    seen["never"] = ended(stamped("7"))
    seen["other"] = ended(other)
    seen["terminated"] = told("revoke_by_stamped_headers", arguments={"headers": {"batch": "7"}, "terminate": True})
    seen["stopped"] = ended(running)
    print(json.dumps(seen))


main()

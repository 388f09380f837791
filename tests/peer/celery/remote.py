"""A person at `celery control`: changes a worker's queues, asks for what is fixed, and revokes over a restart.

    remote.py BROKER NODE before|after REVOKED

Prints what it saw as one JSON document, for the test to judge.
"""

import json
import sys

from celery import Celery
from celery.exceptions import TaskRevokedError

WITHIN = 40


def main():
    broker, node, when, unborn = sys.argv[1:]
    app = Celery(broker=broker, backend="rpc://")
    inspect = app.control.inspect(destination=[node], timeout=10)
    seen = {}

    def control(method, **arguments):
        told = app.control.broadcast(
            method, arguments=arguments, destination=[node], reply=True, timeout=10, limit=1
        )
        return told[0][node] if told else None

    def ended(sent):
        try:
            value = sent.get(timeout=WITHIN)
        except TaskRevokedError as error:
            value = f"revoked: {error}"
        return [sent.state, value]

    if when == "before":
        seen["added"] = [control("add_consumer", queue="late") for _ in range(2)]
        seen["exchange"] = control("add_consumer", queue="other", exchange="elsewhere")
        seen["unnamed"] = control("add_consumer")
        seen["ran"] = ended(app.send_task("longshore.ping", queue="late"))
        seen["queues"] = [queue["name"] for queue in inspect.active_queues()[node]]
        seen["canceled"] = control("cancel_consumer", queue="late")
        seen["left"] = [queue["name"] for queue in inspect.active_queues()[node]]
        seen["fixed"] = [
            control("pool_grow", n=1),
            control("pool_shrink", n=1),
            control("rate_limit", task_name="no.such", rate_limit="1/s"),
            control("rate_limit", task_name="longshore.ping", rate_limit="1/s"),
            control("time_limit", task_name="longshore.ping", hard=1),
        ]
        seen["memory"] = control("memsample")
        seen["revoke"] = control("revoke", task_id=unborn)
        greeting = app.control.inspect(destination=[node], timeout=10)
        seen["greeted"] = greeting.hello("celery@me", {"told-by-another": 1.0})[node]["revoked"]
    else:
        seen["revoked"] = inspect.revoked()[node]
        seen["unborn"] = ended(app.send_task("longshore.ping", task_id=unborn))
        seen["told"] = ended(app.send_task("longshore.ping", task_id="told-by-another"))
    print(json.dumps(seen))


main()

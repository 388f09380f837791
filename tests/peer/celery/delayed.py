"""A Celery producer of quorum queues, which sends what has a time through the exchanges of native delayed delivery.

    delayed.py BROKER now|later

Prints what became of its task, and how long that took, as one JSON document.
"""

import json
import sys
import time

from celery import Celery


def main():
    broker, when = sys.argv[1:]
    app = Celery(broker=broker, backend="rpc://")
    app.conf.update(
        task_default_queue_type="quorum",
        task_default_exchange_type="topic",
        broker_transport_options={"confirm_publish": True},
    )
    started = time.monotonic()
    timing = {"countdown": 3} if when == "later" else {}
    sent = app.send_task("longshore.ping", **timing)
    result = sent.get(timeout=40)
    print(json.dumps([sent.state, result, time.monotonic() - started]))


main()

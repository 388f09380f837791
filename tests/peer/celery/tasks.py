"""A plain Celery worker's tasks, which note what they were called with.

    celery -A tasks worker    with PEER_BROKER, PEER_NOTES (a file that gets a line of JSON for each call)
"""

import json
import os

from celery import Celery

app = Celery("peer", broker=os.environ["PEER_BROKER"], backend=os.environ.get("PEER_BACKEND", "rpc://"))
app.conf.broker_connection_retry_on_startup = True


def note(request, args, kwargs):
    noted = {
        "id": request.id,
        "root": request.root_id,
        "parent": request.parent_id,
        "group": request.group,
        "args": args,
        "kwargs": kwargs,
    }
    with open(os.environ["PEER_NOTES"], "ab", buffering=0) as notes:
        notes.write(json.dumps(noted).encode() + b"\n")


@app.task(bind=True, name="peer.see")
def see(self, *args, **kwargs):
    note(self.request, args, kwargs)
    return args


@app.task(bind=True, name="peer.mourn")
def mourn(self, failed):
    """An errback of the old style: it takes an id."""
    note(self.request, [failed], {})

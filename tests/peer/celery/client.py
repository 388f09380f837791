"""A Celery client as a Girder plugin is one: sends tasks to a worker, looks at it, revokes, and reads results.

    client.py BROKER NODE BACKEND

Prints what it saw as one JSON document, for the test to judge.
"""

import json
import sys
import threading
import time
import uuid

from celery import Celery
from celery.exceptions import TaskRevokedError

WITHIN = 40
NAME = "girder_worker.docker.tasks.docker_run"
SECRET = "not-for-others"


def main():
    broker, node, backend = sys.argv[1:]
    app = Celery(broker=broker, backend=backend)
    seen = {}

    def send(script, **options):
        kwargs = {"container_args": ["sh", "-c", script], "pull_image": False, "environment": {"TOKEN": SECRET}}
        return app.send_task(NAME, args=["busybox:latest"], kwargs=kwargs, **options)

    def ended(sent):
        try:
            value = sent.get(timeout=WITHIN)
        except TaskRevokedError as error:
            value = f"revoked: {error}"
        except Exception as error:  # whatever the failure's class is in this process
            value = f"{type(error).__name__}: {error}"
        return [sent.state, value]

    state = app.events.State()
    events = []

    def hear(event):
        state.event(dict(event))
        events.append([event["type"], event.get("uuid")])

    def listen():
        with app.connection() as connection:
            app.events.Receiver(connection, handlers={"*": hear}).capture(limit=None, timeout=None, wakeup=False)

    def until_told(*kinds):
        until = time.monotonic() + WITHIN
        while not set(kinds) <= {kind for kind, _ in events} and time.monotonic() < until:
            time.sleep(0.1)

    threading.Thread(target=listen, daemon=True).start()
    seen["enabled"] = [app.control.enable_events(destination=[node], reply=True, timeout=10, limit=1) for _ in range(2)]
    until_told("worker-heartbeat")
    seen["good"] = ended(send("exit 0"))
    seen["bad"] = ended(send("exit 3"))
    inspect = app.control.inspect(destination=[node], timeout=10)
    for method in ["ping", "registered", "active_queues", "scheduled", "reserved", "stats", "report", "conf", "clock"]:
        seen[method] = (getattr(inspect, method)() or {}).get(node)
    seen["unknown"] = app.control.broadcast("no_such", destination=[node], reply=True, timeout=10, limit=1)
    seen["others"] = app.control.broadcast("ping", destination=["celery@elsewhere"], reply=True, timeout=1)
    seen["greeted"] = app.control.inspect(destination=[node], timeout=10).hello("celery@me", {})

    running = send("sleep 300")
    until = time.monotonic() + WITHIN
    while ["task-started", running.id] not in events and time.monotonic() < until:
        time.sleep(0.1)
    seen["active"] = inspect.active()
    seen["queried"] = inspect.query_task(running.id)
    app.control.revoke(running.id)
    seen["stopped"] = ended(running)

    unborn = str(uuid.uuid4())
    app.control.broadcast("revoke", arguments={"task_id": unborn}, destination=[node], reply=True, timeout=10, limit=1)
    seen["unborn"] = ended(send("exit 0", task_id=unborn))
    seen["revoked"] = inspect.revoked()
    seen["ids"] = {"running": running.id, "unborn": unborn}
    seen["told"] = SECRET in json.dumps([seen, events])
    until_told("task-revoked")
    app.control.shutdown(destination=[node])
    until_told("worker-offline")
    seen["events"] = events
    seen["states"] = {task.uuid: [task.name, task.state, task.worker.hostname] for task in state.tasks.values()}
    print(json.dumps(seen))


main()

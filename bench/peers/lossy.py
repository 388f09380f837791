"""girder_worker's app with one more task, which sleeps: what a kill of its worker loses is seen by who ends.

    lossy.py COUNT    queues so many

As in plain.py moments are lines in the file $BENCH_MOMENTS, here with the task's id: `begin 1.5 <id>`.
"""
import os
import sys
import time

from girder_worker.app import app

app.conf.broker_url = os.environ["BENCH_BROKER"]
app.conf.task_ignore_result = True
app.conf.task_default_queue = os.environ["BENCH_QUEUE"]


def moment(what, task):
    """Adds a line; one write, so that lines of several processes do not mix."""
    line = f"{what} {time.monotonic():.6f} {task}\n"
    with open(os.environ["BENCH_MOMENTS"], "ab", buffering=0) as moments:
        moments.write(line.encode())


@app.task(name="lossy.sleep", bind=True)
def sleep(self, seconds):
    """Sleeps, and marks its begin and end."""
    moment("begin", self.request.id)
    time.sleep(seconds)
    moment("end", self.request.id)


if __name__ == "__main__":
    for _ in range(int(sys.argv[1])):
        app.send_task("lossy.sleep", args=[2.0], queue=os.environ["BENCH_QUEUE"])

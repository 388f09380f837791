"""A plain Celery worker's tasks: one that does nothing, one that sleeps, one that marks a moment.

Moments are lines in the file $BENCH_MOMENTS on the machine's monotonic clock, which all processes share.
"""
import os
import time

from celery import Celery

app = Celery("plain", broker=os.environ["BENCH_BROKER"])
app.conf.task_ignore_result = True
app.conf.task_default_queue = os.environ["BENCH_QUEUE"]


def moment(what):
    """Adds a line; one write, so that lines of several processes do not mix."""
    line = f"{what} {time.monotonic():.6f}\n"
    with open(os.environ["BENCH_MOMENTS"], "ab", buffering=0) as moments:
        moments.write(line.encode())


@app.task
def noop(payload):
    """Does nothing."""


@app.task
def mark():
    """Marks the moment in which it runs."""
    moment("mark")


@app.task
def sleep(seconds):
    """Sleeps, and marks its begin and end."""
    moment("begin")
    time.sleep(seconds)
    moment("end")

"""girder_worker's own app and docker_run; begin and end of each task are marked as in plain.py."""
import os

from celery.signals import task_postrun, task_prerun

from girder_worker.app import app
from girder_worker.docker.tasks import docker_run  # noqa: F401: registers the task
from plain import moment

app.conf.broker_url = os.environ["BENCH_BROKER"]
app.conf.task_ignore_result = True
app.conf.task_default_queue = os.environ["BENCH_QUEUE"]


@task_prerun.connect
def begin(**_):
    moment("begin")


@task_postrun.connect
def end(**_):
    moment("end")

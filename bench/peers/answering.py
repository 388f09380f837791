"""The plain worker's tasks with results on rpc://."""
from plain import app, mark, noop  # noqa: F401

app.conf.task_ignore_result = False
app.conf.result_backend = "rpc://"

"""A real Girder 5 on an in-memory database, for the tests.

    python server.py FOLDER PORT REDIS_URL

Serves on 127.0.0.1:PORT, stores files under FOLDER, and writes FOLDER/girder.json (the administrator's token) before it
listens. Everything is Girder's own but the database and these routes:

    POST worker/job             a new queued job as a producer makes it, with the tokens that travel with its task
    POST, GET job/ID/artifact   what Girder 3 had and Girder 5 lost
"""

import hashlib
import json
import os
import sys
from pathlib import Path

FOLDER, PORT, REDIS_URL = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
os.environ["GIRDER_NOTIFICATION_REDIS_URL"] = REDIS_URL
os.environ.setdefault("GIRDER_WORKER_BROKER", REDIS_URL)
os.environ.setdefault("GIRDER_WORKER_BACKEND", REDIS_URL)
os.environ.setdefault("LOGLEVEL", "WARNING")


def use_memory_database():
    """Bends mongomock where Girder notices that it is no MongoDB; must come before the first import of Girder."""
    import mongomock
    import mongomock.codec_options
    import mongomock.collection
    import pymongo
    import pymongo.cursor

    client = mongomock.MongoClient("mongodb://localhost:27017/girder")
    pymongo.MongoClient = lambda *args, **kwargs: client

    def without_time_zone(options):
        if options is None:
            return None
        return mongomock.codec_options.CodecOptions(**{**options._asdict(), "tzinfo": None})

    mongomock.codec_options.is_supported = without_time_zone

    # Girder tells cursors by this type, and counts them as pymongo 3 did.
    mongomock.collection.Cursor.count = lambda self, *args, **kwargs: self.collection.count_documents(self._spec or {})
    pymongo.cursor.Cursor = mongomock.collection.Cursor


use_memory_database()

import cherrypy  # noqa: E402
import uvicorn  # noqa: E402
from girder.asgi import app  # noqa: E402
from girder.api import access  # noqa: E402
from girder.api.describe import Description, autoDescribeRoute  # noqa: E402
from girder.api.rest import getCurrentUser  # noqa: E402
from girder.constants import AccessType, TokenScope  # noqa: E402
from girder.models.assetstore import Assetstore  # noqa: E402
from girder.models.setting import Setting  # noqa: E402
from girder.models.token import Token  # noqa: E402
from girder.models.user import User  # noqa: E402
from girder.wsgi import info  # noqa: E402
from girder_jobs.constants import JobStatus  # noqa: E402
from girder_jobs.models.job import Job  # noqa: E402
from girder_plugin_worker.utils import jobInfoSpec  # noqa: E402

# What a task's transforms may do with their token.
TASK_SCOPES = [TokenScope.DATA_READ, TokenScope.DATA_WRITE]
ARTIFACTS = {}


@access.user
@autoDescribeRoute(Description("Make a job as one is made when a plugin calls docker_run.delay().").param("title", ""))
def make_job(title):
    user = getCurrentUser()
    job = Job().createJob(title=title, type="celery", handler="worker_handler", user=user)
    job = Job().updateJob(job, status=JobStatus.QUEUED)
    token = Token().createToken(user, days=7, scope=TASK_SCOPES)
    return {"id": str(job["_id"]), "spec": jobInfoSpec(job, Job().createJobToken(job)), "token": str(token["_id"])}


@access.public(scope=TokenScope.DATA_WRITE)
@autoDescribeRoute(
    Description("Keep a file with a job, as Girder 3 did.")
    .modelParam("id", model=Job, level=AccessType.WRITE)
    .param("name", "The file's name.")
    .param("size", "Its length in bytes.", dataType="integer")
    .param("mimeType", "Its type.", required=False)
)
def keep_artifact(job, name, size, mimeType):
    # girder.api.rest.iterBody does not work under uvicorn.
    content = cherrypy.request.body.fp.read(size)
    artifact = {"name": name, "size": len(content), "mimeType": mimeType, "sha512": hashlib.sha512(content).hexdigest()}
    ARTIFACTS.setdefault(str(job["_id"]), []).append(artifact)
    return artifact


@access.public(scope=TokenScope.DATA_READ)
@autoDescribeRoute(Description("List a job's artifacts.").modelParam("id", model=Job, level=AccessType.READ))
def list_artifacts(job):
    return ARTIFACTS.get(str(job["_id"]), [])


def prepare():
    """What an administrator does once on a new site."""
    admin = User().createUser("admin", "password", "A", "Admin", "admin@girder.test", admin=True)
    Assetstore().createFilesystemAssetstore("files", str(FOLDER / "assetstore"))
    address = f"http://127.0.0.1:{PORT}"
    Setting().set("core.server_root", address)
    Setting().set("worker.api_url", f"{address}/api/v1")
    info["apiRoot"].worker.route("POST", ("job",), make_job)
    info["apiRoot"].job.route("POST", (":id", "artifact"), keep_artifact)
    info["apiRoot"].job.route("GET", (":id", "artifact"), list_artifacts)
    token = Token().createToken(admin, days=1)
    (FOLDER / "girder.json").write_text(json.dumps({"token": str(token["_id"]), "user": str(admin["_id"])}))


prepare()
uvicorn.run(app, host="127.0.0.1", port=PORT, log_level="warning")

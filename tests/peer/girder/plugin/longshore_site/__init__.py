"""A Girder plugin as sites have them: its routes send tasks to whatever worker takes them.

    POST site/task/NAME      sends the task of that name (tasks.py); the body holds its parameters as JSON
    POST site/sink/NAME      keeps the body, as the server of a ChunkedTransferEncodingStream does
    GET  site/sink/NAME      gives it back

It stands on Python's path as an installed package does; Girder finds it by its entry point.
"""

import json

import cherrypy
from girder.api import access
from girder.api.describe import Description, autoDescribeRoute
from girder.api.rest import Resource, setRawResponse
from girder.plugin import GirderPlugin, getPlugin

from .tasks import TASKS


class Site(Resource):
    def __init__(self):
        super().__init__()
        self.resourceName = "site"
        self.kept = {}
        self.route("POST", ("task", ":name"), self.send)
        self.route("POST", ("sink", ":name"), self.keep)
        self.route("GET", ("sink", ":name"), self.give)

    @access.user
    @autoDescribeRoute(Description("Send a task.").param("name", "Which one.", paramType="path"))
    def send(self, name):
        # girder.api.rest.iterBody does not work under uvicorn.
        body = cherrypy.request.body.fp.read(int(cherrypy.request.headers.get("Content-Length") or 0))
        return TASKS[name](**json.loads(body or b"{}"))

    @access.public
    @autoDescribeRoute(Description("Keep what is sent.").param("name", "Under which name.", paramType="path"))
    def keep(self, name):
        pieces = []
        while piece := cherrypy.request.body.fp.read(65536):
            pieces.append(piece)
        self.kept[name] = b"".join(pieces)
        return {"chunked": cherrypy.request.headers.get("Transfer-Encoding"), "test": cherrypy.request.headers.get("X-Test")}

    @access.public
    @autoDescribeRoute(Description("Give back what was sent.").param("name", "Under which name.", paramType="path"))
    def give(self, name):
        setRawResponse()
        return self.kept.get(name, b"")


class SitePlugin(GirderPlugin):
    DISPLAY_NAME = "Site"

    def load(self, info):
        getPlugin("worker").load(info)
        info["apiRoot"].site = Site()

"""What a site sends, each as a plugin's author writes it: `docker_run.delay(...)` and its transforms, nothing of longshore.

A task answers with the ids of its job and of its Celery task.
"""

import datetime

from girder.api.rest import getCurrentUser
from girder_jobs.models.job import Job
from girder_worker.docker.tasks import docker_run
from girder_worker.docker.transforms import (
    BindMountVolume,
    ChunkedTransferEncodingStream,
    Connect,
    ContainerStdOut,
    HostStdErr,
    HostStdOut,
    NamedInputPipe,
    NamedOutputPipe,
    TemporaryVolume,
    VolumePath,
)
from girder_worker.docker.transforms.girder import (
    GirderFileIdToStream,
    GirderFileIdToVolume,
    GirderFolderIdToVolume,
    GirderItemIdToVolume,
    GirderUploadVolumePathJobArtifact,
    GirderUploadVolumePathToFolder,
    GirderUploadVolumePathToItem,
    ProgressPipe,
)
from slicer_cli_web.girder_worker_plugin.direct_docker_run import (
    CommaJoinedVolumes,
    DirectGirderFileIdToVolume,
    GirderApiUrl,
    GirderToken,
)
from slicer_cli_web.girder_worker_plugin.direct_docker_run import run as slicer_run

IMAGE = "busybox:latest"
TASKS = {}


def task(function):
    """Makes a route of it."""

    def answered(**parameters):
        sent = function(**parameters)
        if isinstance(sent, dict):
            return sent
        return {"task": sent.id, "job": str(sent.job["_id"]) if sent.job else None}

    TASKS[function.__name__] = answered
    return function


def sh(script, *args, hooks=(), **kwargs):
    """The script with its arguments as $0, $1, ..."""
    if hooks:
        kwargs["girder_result_hooks"] = list(hooks)
    kwargs.setdefault("network_mode", "none")
    return docker_run.delay(
        IMAGE, pull_image=False, entrypoint=["sh", "-c"], container_args=[script, *args], **kwargs
    )


def later(script, **options):
    """The same with Celery's options."""
    kwargs = {"pull_image": False, "entrypoint": ["sh", "-c"], "container_args": [script], "network_mode": "none"}
    return docker_run.apply_async((IMAGE,), kwargs, **options)


# What is said


@task
def hello(name):
    return sh("echo hello, $0; echo oops >&2", name)


@task
def say(script):
    return sh(script)


@task
def titled(title):
    return docker_run.delay(
        IMAGE,
        pull_image=False,
        container_args=["echo", "titled"],
        network_mode="none",
        girder_job_title=title,
        girder_job_type="site",
        girder_job_public=True,
        girder_job_other_fields={"study": "a"},
    )


@task
def keywords():
    return sh(
        'echo "$A|$(pwd)|$(id -u)|$(hostname)"; grep -c memory /proc/self/cgroup > /dev/null; touch /x || echo read-only',
        environment={"A": "ä b"},
        working_dir="/tmp",
        user="1234",
        hostname="quay",
        mem_limit="64m",
        read_only=True,
    )


@task
def values():
    return docker_run.delay(
        IMAGE, pull_image=False, container_args=["echo", 1, 2.5, True, None, "a b"], network_mode="none"
    )


# Data in


@task
def file(file):
    return sh('cat "$0"', GirderFileIdToVolume(file))


@task
def named_file(file):
    return sh('cat "$0"; basename "$0"', GirderFileIdToVolume(file, filename="given name.txt"))


@task
def file_in_bind(file, host):
    volume = BindMountVolume(host, "/mnt/inputs")
    return sh("cat $0; ls -d $1", GirderFileIdToVolume(file, volume=volume), volume, volumes=[volume])


@task
def item(item):
    return sh("cat $0/a.txt $0/b.txt", GirderItemIdToVolume(item))


@task
def folder(folder):
    return sh("cd $0 && find . -type f | sort && cat top.txt sub/inner.txt", GirderFolderIdToVolume(folder))


@task
def pipe_in(file):
    stream = Connect(GirderFileIdToStream(file), NamedInputPipe("in"))
    return sh("test -p $0 && cmp $0 $1 && echo same", stream, GirderFileIdToVolume(file))


@task
def slow_reader(file):
    stream = Connect(GirderFileIdToStream(file), NamedInputPipe("in"))
    return sh("exec 3<$0; for n in 1 2 3; do head -c 1000 <&3 >/dev/null; sleep 1; done; cat <&3 | tail -c 4", stream)


@task
def early_reader(file):
    return sh("head -c 4 $0; echo; echo enough", Connect(GirderFileIdToStream(file), NamedInputPipe("in")))


@task
def absent_reader(file):
    return sh("echo not interested", Connect(GirderFileIdToStream(file), NamedInputPipe("in")))


# Data out


@task
def to_item(item):
    path = VolumePath("result.txt")
    return sh("printf 'for the item' > $0", path, hooks=[GirderUploadVolumePathToItem(path, item)])


@task
def to_folder(folder):
    path = VolumePath("Ergebnis ü.txt")
    return sh('printf "grün 世界" > "$0"', path, hooks=[GirderUploadVolumePathToFolder(path, folder)])


@task
def tree_to_folder(folder):
    path = VolumePath("tree")
    script = "mkdir -p $0/sub; printf one > $0/one.txt; printf two > $0/sub/two.txt"
    return sh(script, path, hooks=[GirderUploadVolumePathToFolder(path, folder)])


@task
def large_to_item(item, size):
    path = VolumePath("large.bin")
    return sh(f"head -c {size} /dev/zero > $0", path, hooks=[GirderUploadVolumePathToItem(path, item)])


@task
def temporary_to_item(item):
    volume = TemporaryVolume()
    path = VolumePath("own.txt", volume)
    return sh("printf own > $0", path, hooks=[GirderUploadVolumePathToItem(path, item)])


@task
def nothing_to_item(item):
    return sh("echo made nothing", hooks=[GirderUploadVolumePathToItem(VolumePath("missing.txt"), item)])


@task
def failing_to_item(item):
    path = VolumePath("half.txt")
    return sh("printf half > $0; exit 7", path, hooks=[GirderUploadVolumePathToItem(path, item)])


@task
def pipe_out_to_host(text):
    return sh(f"echo {text} > $0", Connect(NamedOutputPipe("out"), HostStdOut()))


@task
def pipe_out_to_host_stderr(text):
    return sh(f"echo {text} > $0", Connect(NamedOutputPipe("out"), HostStdErr()))


@task
def stdout_to_host(text):
    return sh(f"echo {text}", stream_connectors=[Connect(ContainerStdOut(), HostStdOut())])


@task
def chunked(url, size):
    stream = ChunkedTransferEncodingStream(url, {"X-Test": "a"})
    return sh(f"head -c {size} /dev/zero | tr '\\0' z > $0", Connect(NamedOutputPipe("out"), stream))


# Volumes


@task
def docker_py_volumes(host):
    return sh("cat /mnt/docker/in.txt; printf back > /mnt/docker/out.txt", volumes={host: {"bind": "/mnt/docker", "mode": "rw"}})


@task
def ledger(host, name):
    return sh(f"echo {name} >> /mnt/ledger/ran; sleep 1", volumes={host: {"bind": "/mnt/ledger", "mode": "rw"}})


@task
def read_only_bind(host):
    volume = BindMountVolume(host, "/mnt/data", mode="ro")
    return sh("cat $0/in.txt; touch $0/x || echo refused", volume, volumes=[volume])


@task
def default_volume():
    return sh("test -d $0 && echo a > $0/x && cat $0/x && ls -d $0", TemporaryVolume.default)


# Progress and artifacts


@task
def progress():
    script = """for n in 1 2 3; do echo "{\\"message\\": \\"Step $n of 3\\", \\"total\\": 3, \\"current\\": $n}" > $0; sleep 0.3; done"""
    return sh(script, ProgressPipe())


@task
def artifact():
    path = VolumePath("job_artifacts")
    script = "mkdir $0; printf one > $0/one.log; printf two > $0/two.log; mkdir $0/below; printf three > $0/below/three.log"
    return sh(script, path, hooks=[GirderUploadVolumePathJobArtifact(path)])


@task
def artifact_of_failure(anyway):
    path = VolumePath("trace.log")
    hook = GirderUploadVolumePathJobArtifact(path, upload_on_exception=anyway)
    return sh("printf trace > $0; exit 3", path, hooks=[hook])


@task
def missing_artifact():
    return sh("echo none", hooks=[GirderUploadVolumePathJobArtifact(VolumePath("none.log"))])


# Ends


@task
def fails(code):
    return sh(f"echo cannot go on >&2; exit {code}")


@task
def missing_image():
    return docker_run.delay("longshore-test/no-such-image:1", pull_image=False, container_args=["true"])


@task
def stops_on_term(item=None):
    path = VolumePath("late.txt")
    hooks = [GirderUploadVolumePathToItem(path, item)] if item else []
    return sh("trap 'echo asked to stop; exit 0' TERM; printf late > $0; echo up; sleep 600 & wait", path, hooks=hooks)


@task
def countdown(seconds):
    return later("echo $(date +%s) ran", countdown=seconds)


@task
def expires(countdown, expires):
    at = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=expires)
    return later("echo ran", countdown=countdown, expires=at)


@task
def time_limit(hard):
    return later("echo up; sleep 600", time_limit=hard)


@task
def awaited(script):
    """In a request, as a plugin that cannot go on without the result."""
    sent = sh(script)
    job = str(sent.job["_id"])
    try:
        value = sent.get(timeout=60)
    except Exception as error:  # whatever class Celery makes of it here
        value = f"{type(error).__name__}: {error}"
    return {"task": sent.id, "job": job, "state": sent.state, "value": value}


@task
def scheduled(script):
    """A job of the old kind, which Girder itself queues when it is scheduled."""
    job = Job().createJob(
        title="scheduled",
        type="worker",
        handler="worker_handler",
        user=getCurrentUser(),
        args=(IMAGE,),
        kwargs={"pull_image": False, "entrypoint": ["sh", "-c"], "container_args": [script], "network_mode": "none"},
        otherFields={"celeryTaskName": "girder_worker.docker.tasks.docker_run"},
    )
    Job().scheduleJob(job)
    job = Job().load(job["_id"], force=True)
    return {"task": job["celeryTaskId"], "job": str(job["_id"])}


# slicer_cli_web


def slicer(script, *args, **kwargs):
    return slicer_run.delay(
        image=IMAGE, entrypoint=["sh", "-c"], container_args=[script, *args], network_mode="none", **kwargs
    )


@task
def slicer_direct(file, path):
    """One file where it lies, one that is fetched since it lies nowhere."""
    script = 'cat $0; touch $0 2>/dev/null || echo " read-only"; cat $1; echo; echo $0 $1'
    direct = DirectGirderFileIdToVolume(file, direct_file_path=path)
    fetched = DirectGirderFileIdToVolume(file, filename="fetched.txt", direct_file_path="/nowhere/a.txt")
    return slicer(script, direct, fetched, pull_image="if-not-present")


@task
def slicer_joined(first, second):
    files = [DirectGirderFileIdToVolume(first, filename="1.txt"), DirectGirderFileIdToVolume(second, filename="2.txt")]
    return slicer('IFS=,; set -- $0; cat "$1" "$2"; echo; echo $#', CommaJoinedVolumes(files), pull_image=False)


@task
def slicer_token():
    script = 'echo "$0"; test ${#1} -gt 30 && echo has a token; echo "$1"; echo "x${1}x" >&2; exit 3'
    return slicer(script, GirderApiUrl(), GirderToken(), pull_image=False)


@task
def slicer_progress():
    script = """
        echo before
        echo '<filter-start><filter-name>Median</filter-name><filter-comment>Smooth &lt;it&gt;</filter-comment></filter-start>'
        for n in 0.25 0.5 1; do echo "<filter-progress>$n</filter-progress>"; echo at $n; sleep 0.2; done
        echo '<filter-end><filter-name>Median</filter-name><filter-time>1</filter-time></filter-end>'
        echo after"""
    return slicer(script, pull_image=False)


@task
def slicer_missing_image():
    return slicer_run.delay(image="127.0.0.1:9/no-such:1", pull_image="if-not-present", container_args=["true"])

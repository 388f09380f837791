//! Which volumes a request names anywhere in it, before anything is made. Called by `driver`.

use super::Request;
use crate::task::TransformSpec;
use crate::task::transform::{UploadSource, Volume};

/// Every mention of a volume, in the order of the request.
pub fn volumes_of(request: &Request) -> Vec<Volume> {
    let mut found = Vec::new();
    for spec in &request.volumes {
        collect(spec, &mut found);
    }
    let mut visit = |spec: &TransformSpec| collect(spec, &mut found);
    request.entrypoint.iter().flatten().for_each(|arg| arg.each_transform(&mut visit));
    request.container_args.iter().for_each(|arg| arg.each_transform(&mut visit));
    request.options.values().for_each(|arg| arg.each_transform(&mut visit));
    request.stream_connectors.iter().chain(&request.result_hooks).for_each(visit);
    found
}

fn collect(spec: &TransformSpec, found: &mut Vec<Volume>) {
    match spec {
        TransformSpec::BindMountVolume(bind) => found.push(Volume::BindMountVolume(bind.clone())),
        TransformSpec::TemporaryVolume(volume) => found.push(Volume::TemporaryVolume(volume.clone())),
        TransformSpec::VolumePath(path) => found.extend(path.volume.clone()),
        TransformSpec::NamedInputPipe(pipe) | TransformSpec::NamedOutputPipe(pipe) => {
            found.extend(pipe.volume.clone());
        }
        TransformSpec::ProgressPipe(pipe) => found.extend(pipe.volume.clone()),
        TransformSpec::Connect(connect) => {
            collect(&connect.input, found);
            collect(&connect.output, found);
        }
        TransformSpec::GirderFileIdToVolume(file) => found.extend(file.volume.clone()),
        TransformSpec::GirderItemIdToVolume(item) => found.extend(item.volume.clone()),
        TransformSpec::GirderFolderIdToVolume(folder) => found.extend(folder.volume.clone()),
        TransformSpec::DirectGirderFileIdToVolume(file) => found.extend(file.volume.clone()),
        TransformSpec::CommaJoinedVolumes(joined) => {
            joined.volumes.iter().for_each(|spec| collect(spec, found));
        }
        TransformSpec::GirderUploadVolumePathToItem(upload) => source(&upload.volumepath, found),
        TransformSpec::GirderUploadVolumePathToFolder(upload) => source(&upload.volumepath, found),
        TransformSpec::GirderUploadVolumePathJobArtifact(upload) => source(&upload.volumepath, found),
        TransformSpec::HostStdOut
        | TransformSpec::HostStdErr
        | TransformSpec::ContainerStdOut
        | TransformSpec::ContainerStdErr
        | TransformSpec::ChunkedTransferEncodingStream(_)
        | TransformSpec::GirderFileIdToStream(_)
        | TransformSpec::GirderApiUrl(_)
        | TransformSpec::GirderToken(_)
        | TransformSpec::PythonTransform(_) => {}
    }
}

fn source(upload: &UploadSource, found: &mut Vec<Volume>) {
    match upload {
        UploadSource::VolumePath(path) => found.extend(path.volume.clone()),
        UploadSource::HostPath(_) => {}
    }
}

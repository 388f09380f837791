//! `GirderFileIdToVolume`, `GirderItemIdToVolume`, `GirderFolderIdToVolume` and `DirectGirderFileIdToVolume`: inputs from
//! Girder, laid out in a volume as `girder_worker` does (`girder_worker.docker.transforms.girder`).
//!
//! # Decisions
//! - Staging one only asks Girder what there is and makes the files; their contents come together, several at once,
//!   before the container is made.

use std::fs::File;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use super::misplaced;
use crate::error::TaskError;
use crate::girder::{Client, FileDocument, Layout, file, names};
use crate::pipeline::staging::in_folder;
use crate::pipeline::{Mount, MountKind, MountMode, Place, Staging, Transform, beneath};
use crate::task::TransformSpec;
use crate::task::transform::{
    DirectGirderFile, GirderAccess, GirderFile, GirderFolder, GirderItem, RelativePath, Volume,
};

/// Where files that are not fetched are seen (`slicer_cli_web`, `TEMP_VOLUME_DIRECT_MOUNT_PREFIX`).
const DIRECT_PREFIX: &str = "/mnt/girder_direct_worker";

/// The row's maker.
pub(in crate::pipeline) fn file(spec: &TransformSpec) -> Option<Box<dyn Transform>> {
    match spec {
        TransformSpec::GirderFileIdToVolume(file) => Some(Box::new(ToVolume::new(Input::File(file.clone())))),
        _ => None,
    }
}

/// The row's maker.
pub(in crate::pipeline) fn item(spec: &TransformSpec) -> Option<Box<dyn Transform>> {
    match spec {
        TransformSpec::GirderItemIdToVolume(item) => Some(Box::new(ToVolume::new(Input::Item(item.clone())))),
        _ => None,
    }
}

/// The row's maker.
pub(in crate::pipeline) fn folder(spec: &TransformSpec) -> Option<Box<dyn Transform>> {
    match spec {
        TransformSpec::GirderFolderIdToVolume(folder) => {
            Some(Box::new(ToVolume::new(Input::Folder(folder.clone()))))
        }
        _ => None,
    }
}

/// The row's maker.
pub(in crate::pipeline) fn direct(spec: &TransformSpec) -> Option<Box<dyn Transform>> {
    match spec {
        TransformSpec::DirectGirderFileIdToVolume(file) => {
            Some(Box::new(ToVolume::new(Input::Direct(file.clone()))))
        }
        _ => None,
    }
}

/// What is fetched.
enum Input {
    File(GirderFile),
    Item(GirderItem),
    Folder(GirderFolder),
    Direct(DirectGirderFile),
}

impl Input {
    fn girder(&self) -> Option<&GirderAccess> {
        match self {
            Self::File(file) => file.girder.as_ref(),
            Self::Item(item) => item.girder.as_ref(),
            Self::Folder(folder) => folder.girder.as_ref(),
            Self::Direct(file) => file.girder.as_ref(),
        }
    }
    fn volume(&self) -> Option<&Volume> {
        match self {
            Self::File(file) => file.volume.as_ref(),
            Self::Item(item) => item.volume.as_ref(),
            Self::Folder(folder) => folder.volume.as_ref(),
            Self::Direct(file) => file.volume.as_ref(),
        }
    }
    /// The class and the id with its field, for people.
    fn told(&self) -> (&'static str, &'static str, &str) {
        match self {
            Self::File(file) => ("GirderFileIdToVolume", "file_id", &file.file_id),
            Self::Item(item) => ("GirderItemIdToVolume", "item_id", &item.item_id),
            Self::Folder(folder) => ("GirderFolderIdToVolume", "folder_id", &folder.folder_id),
            Self::Direct(file) => ("DirectGirderFileIdToVolume", "file_id", &file.file_id),
        }
    }
}

struct ToVolume {
    input: Input,
    /// What is removed at the end, where the volume itself stays.
    left: Option<(File, Vec<String>)>,
}

#[async_trait]
impl Transform for ToVolume {
    async fn stage(&mut self, place: Place, staging: &mut Staging) -> Result<Option<String>, TaskError> {
        let (class, field, id) = self.input.told();
        if place != Place::Argument {
            return Err(misplaced(class, "it belongs among the arguments"));
        }
        if !file::is_id(id) {
            let text =
                format!("{class}.{field} is {id:?}; it must be an id of Girder, 24 hexadecimal digits");
            return Err(TaskError::permanent("bad_argument", text));
        }
        let told = format!("{class}.{field} = {id:?}");
        let about = |error: TaskError| TaskError { message: format!("{told}: {}", error.message), ..error };
        let client = staging.girder_client(self.input.girder()).map_err(about)?;
        self.fetched(&client, staging).await.map(Some).map_err(about)
    }

    async fn cleanup(&mut self) {
        if let Some((root, path)) = self.left.take() {
            let removed = tokio::task::spawn_blocking(move || beneath::remove_folder(&root, &path)).await;
            if let Ok(Err(error)) = removed {
                tracing::warn!(%error, "fetched files are left behind in a mounted folder");
            }
        }
    }
}

impl ToVolume {
    fn new(input: Input) -> Self {
        Self { input, left: None }
    }

    /// Asks for what is to be fetched; returns where the container will find it.
    async fn fetched(&mut self, client: &Client, staging: &mut Staging) -> Result<String, TaskError> {
        let (id, mut layout) = (self.input.told().2.to_owned(), Layout::default());
        let mut within = staging.fetches().within;
        let top = match &self.input {
            Input::Item(_) => vec![id.clone(), layout.item(client, &id, &mut within).await?],
            Input::Folder(spec) => {
                let named = given_path("GirderFolderIdToVolume.folder_name", spec.folder_name.as_deref())?;
                let name = match named {
                    Some(path) => path,
                    None => vec![folder_name(client, &id).await?],
                };
                layout.folder(client, &id, &mut within).await?;
                [vec![id.clone()], name].concat()
            }
            Input::File(spec) => {
                let given = given_path("GirderFileIdToVolume.filename", spec.filename.as_deref())?;
                self::one(client, &id, given, (&mut layout, &mut within)).await?
            }
            Input::Direct(spec) => {
                let document = FileDocument::get(client, &id).await?;
                let path = spec.direct_file_path.as_deref().map(Path::new);
                let name = spec.filename.clone().or_else(|| Some(path?.file_name()?.to_str()?.to_owned()));
                let given = given_path("DirectGirderFileIdToVolume.filename", name.as_deref())?;
                if let (Some(path), Some(name)) = (path, &given) {
                    match direct_file(path, &client.site().settings().direct_paths, document.size) {
                        Ok(source) => return Ok(mounted(source, name, staging)),
                        Err(why) => {
                            staging.attempt().report().note(format!("{} is fetched: {why}", name.join("/")));
                        }
                    }
                }
                within.take(&document)?;
                let at = given.unwrap_or_else(|| vec![id.clone(), names::component(&document.name)]);
                layout.files.insert(at.clone(), document);
                at
            }
        };
        staging.fetches().within = within;
        self.make(client, (layout, &top), staging)
    }

    /// Makes folders and files, and has the files filled.
    fn make(
        &mut self,
        client: &Client,
        (layout, top): (Layout, &[String]),
        staging: &mut Staging,
    ) -> Result<String, TaskError> {
        let volume = staging.volume(self.input.volume())?;
        let failed = |path: &[String], error: &io::Error| {
            let place = volume.host.join(path.join("/"));
            let text = format!(
                "cannot make {}: {error}; is the volume a folder that the worker may write to?",
                place.display()
            );
            TaskError::retryable("workspace", text)
        };
        let root = beneath::root(&volume.host).map_err(|error| failed(&[], &error))?;
        // A layout of an item begins at the id's folder, one of a folder at the folder itself.
        let base: &[String] = match &self.input {
            Input::Item(_) => &top[..1],
            Input::Folder(_) => top,
            Input::File(_) | Input::Direct(_) => &[],
        };
        if let (Some(Volume::BindMountVolume(_)), Input::Item(_) | Input::Folder(_)) =
            (self.input.volume(), &self.input)
        {
            let root = root.try_clone().map_err(|error| failed(base, &error))?;
            self.left = Some((root, base.to_vec()));
        }
        for text in layout.renamed {
            staging.attempt().report().warn(text);
        }
        beneath::folder(&root, base).map_err(|error| failed(base, &error))?;
        for path in layout.folders {
            let path = [base, &path].concat();
            beneath::folder(&root, &path).map_err(|error| failed(&path, &error))?;
        }
        for (path, document) in layout.files {
            let path = [base, &path].concat();
            let file = beneath::file(&root, &path).map_err(|error| failed(&path, &error))?;
            let name = path.last().cloned().unwrap_or_default();
            staging.fetches().add(client.clone(), document, file, name);
        }
        Ok(in_folder(&volume.container, &top.join("/")))
    }
}

/// A file in a folder named by its id, or at the path that was given.
async fn one(
    client: &Client,
    id: &str,
    given: Option<Vec<String>>,
    (layout, within): (&mut Layout, &mut crate::girder::Ceilings),
) -> Result<Vec<String>, TaskError> {
    let document = FileDocument::get(client, id).await?;
    within.take(&document)?;
    let at = given.unwrap_or_else(|| vec![id.to_owned(), names::component(&document.name)]);
    if at.last().is_some_and(|name| at.len() == 2 && at[0] == id && *name != document.name) {
        layout.renamed.push(format!("{:?} is fetched as {:?}", document.name, at[1]));
    }
    layout.files.insert(at.clone(), document);
    Ok(at)
}

async fn folder_name(client: &Client, id: &str) -> Result<String, TaskError> {
    let folder = client.get_json(&format!("folder/{id}"), &[]).await?;
    Ok(names::component(folder.get("name").and_then(serde_json::Value::as_str).unwrap_or_default()))
}

/// A path that the task gives, component by component.
fn given_path(field: &str, path: Option<&str>) -> Result<Option<Vec<String>>, TaskError> {
    let Some(path) = path else { return Ok(None) };
    let path = RelativePath::try_from(path.to_owned()).map_err(|error| {
        TaskError::permanent("bad_argument", format!("{field}: {error}; give a path inside the volume"))
    })?;
    let parts = path.as_str().split('/').filter(|part| !matches!(*part, "" | ".")).map(str::to_owned);
    let parts: Vec<String> = parts.collect();
    if parts.is_empty() {
        let text = format!("{field} is {:?}; give a path inside the volume", path.as_str());
        return Err(TaskError::permanent("bad_argument", text));
    }
    Ok(Some(parts))
}

/// The file at `path`, when it may be mounted: Girder says that it is there, with the task's own token, and what is
/// there is of the size that Girder says, in a folder that the settings allow, for everybody in the container to read.
fn direct_file(path: &Path, roots: &[PathBuf], size: Option<u64>) -> Result<PathBuf, String> {
    if roots.is_empty() {
        return Err("girder.direct_paths names no folder".to_owned());
    }
    let real =
        path.canonicalize().map_err(|error| format!("{} cannot be seen here ({error})", path.display()))?;
    let inside = |root: &PathBuf| root.canonicalize().is_ok_and(|root| real.starts_with(root));
    if !roots.iter().any(inside) {
        return Err(format!("{} lies in no folder of girder.direct_paths", real.display()));
    }
    let metadata = File::open(&real)
        .and_then(|file| file.metadata())
        .map_err(|error| format!("{} cannot be read here ({error})", real.display()))?;
    if !metadata.is_file() {
        return Err(format!("{} is no file", real.display()));
    }
    if metadata.permissions().mode() & 0o444 == 0 {
        return Err(format!("{} may be read by nobody", real.display()));
    }
    if Some(metadata.len()) != size {
        return Err(format!("{} is not the file that Girder has", real.display()));
    }
    Ok(real)
}

fn mounted(source: PathBuf, name: &[String], staging: &mut Staging) -> String {
    let target = in_folder(DIRECT_PREFIX, &name.join("/"));
    let (mode, kind) = (MountMode::ReadOnly, MountKind::DirectFile);
    staging.mount(Mount { source, target: target.clone(), mode, kind });
    target
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_path_stays_in_the_volume() {
        assert_eq!(given_path("f", None).unwrap(), None);
        assert_eq!(given_path("f", Some("a/./b//c")).unwrap().unwrap(), ["a", "b", "c"]);
        for bad in ["", "/etc/passwd", "../x", "a/../../x", ".", "a\0"] {
            let error = given_path("GirderFileIdToVolume.filename", Some(bad)).unwrap_err();
            assert!(error.message.starts_with("GirderFileIdToVolume.filename"), "{bad:?}: {error}");
        }
    }

    #[test]
    fn only_the_very_file_inside_of_an_allowed_folder_is_mounted() {
        let (base, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let roots = [base.path().to_owned()];
        let (inside, other) = (base.path().join("a"), outside.path().join("b"));
        std::fs::write(&inside, "12345").unwrap();
        std::fs::write(&other, "12345").unwrap();
        assert_eq!(direct_file(&inside, &roots, Some(5)).unwrap(), inside.canonicalize().unwrap());
        assert!(direct_file(&inside, &[], Some(5)).unwrap_err().contains("girder.direct_paths"));
        assert!(direct_file(&inside, &roots, Some(6)).unwrap_err().contains("not the file"));
        assert!(direct_file(&inside, &roots, None).is_err());
        assert!(
            direct_file(&other, &roots, Some(5)).unwrap_err().contains("no folder of girder.direct_paths")
        );
        assert!(direct_file(base.path(), &roots, Some(5)).is_err());
        let link = base.path().join("link");
        std::os::unix::fs::symlink(&other, &link).unwrap();
        assert!(direct_file(&link, &roots, Some(5)).is_err());
        assert!(direct_file(&base.path().join("../x"), &roots, Some(5)).is_err());
    }
}

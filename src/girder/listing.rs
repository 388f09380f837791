//! What an item or a folder holds, laid out as `girder_client` would download it, within bounds.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::file::{FileDocument, is_id};
use super::{Call, Client, GirderError, names};
use crate::error::TaskError;

/// Documents that are asked for at once.
const PAGE: usize = 500;

/// How much one task may fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ceilings {
    /// Files.
    pub files: u64,
    /// Bytes.
    pub bytes: u64,
    /// Folders inside one another.
    pub depth: usize,
}

impl Ceilings {
    /// None at all.
    pub const NONE: Self = Self { files: u64::MAX, bytes: u64::MAX, depth: usize::MAX };

    /// Takes one file from what is left.
    pub fn take(&mut self, file: &FileDocument) -> Result<(), TaskError> {
        let refused = |what: &str, setting: &str| {
            TaskError::permanent(
                "download_too_large",
                format!(
                    "the task fetches more {what} than this worker's policy.download.{setting} allows; \
                     name fewer or smaller inputs, or ask an administrator to raise it"
                ),
            )
        };
        self.files = self.files.checked_sub(1).ok_or_else(|| refused("files", "max_files"))?;
        let size = file.size.unwrap_or(0);
        self.bytes = self.bytes.checked_sub(size).ok_or_else(|| refused("bytes", "max_bytes"))?;
        Ok(())
    }
}

/// Files and folders below one place, by their paths from there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Folders, each after the one that holds it.
    pub folders: BTreeSet<Vec<String>>,
    /// Files.
    pub files: BTreeMap<Vec<String>, FileDocument>,
    /// What was named differently than in Girder, for people.
    pub renamed: Vec<String>,
}

impl Layout {
    /// An item below the place: a file of the item's name when it holds just that, else a folder of its files
    /// (`GirderClient.downloadItem`). Returns the component that it is found under.
    pub async fn item(
        &mut self,
        client: &Client,
        id: &str,
        within: &mut Ceilings,
    ) -> Result<String, TaskError> {
        let item = client.get_json(&format!("item/{id}"), &[]).await?;
        let name = text(&item, "name");
        self.item_named(client, (id, &name), &[], within).await?;
        Ok(names::downloaded(&name))
    }

    /// A folder's content with all below it, at the place itself (`GirderClient.downloadFolderRecursive`).
    pub async fn folder(
        &mut self,
        client: &Client,
        id: &str,
        within: &mut Ceilings,
    ) -> Result<(), TaskError> {
        let mut open = vec![(id.to_owned(), Vec::<String>::new())];
        while let Some((id, path)) = open.pop() {
            if path.len() > within.depth {
                let depth = within.depth;
                return Err(TaskError::permanent(
                    "download_too_large",
                    format!(
                        "the folder holds more than {depth} folders inside one another; raise girder.max_depth, or name a folder further down"
                    ),
                ));
            }
            let query = [("parentType", "folder"), ("parentId", id.as_str())];
            for folder in pages(client, "folder", &query, within.files).await? {
                let path = joined(&path, names::downloaded(&text(&folder, "name")));
                self.add_folder(path.clone());
                open.push((id_of(client, &folder)?, path));
            }
            for item in pages(client, "item", &[("folderId", id.as_str())], within.files).await? {
                let (item_id, name) = (id_of(client, &item)?, text(&item, "name"));
                self.item_named(client, (&item_id, &name), &path, within).await?;
            }
        }
        Ok(())
    }

    async fn item_named(
        &mut self,
        client: &Client,
        (id, name): (&str, &str),
        at: &[String],
        within: &mut Ceilings,
    ) -> Result<(), TaskError> {
        let found = pages(client, &format!("item/{id}/files"), &[], within.files).await?;
        let mut files = Vec::with_capacity(found.len());
        for document in &found {
            let file = FileDocument::read(document).ok_or_else(|| unreadable(client, "file"))?;
            within.take(&file)?;
            files.push(file);
        }
        let own = joined(at, names::downloaded(name));
        if let [file] = &files[..]
            && file.name == name
        {
            self.add_file(&own, file.clone());
            return Ok(());
        }
        self.add_folder(own.clone());
        for file in files {
            self.add_file(&joined(&own, names::downloaded(&file.name)), file);
        }
        Ok(())
    }

    /// Of two files with one name the later one has it, as with `girder_client`, which loses the other one.
    fn add_file(&mut self, path: &[String], file: FileDocument) {
        if path.last().is_some_and(|last| *last != file.name) {
            self.renamed.push(format!(
                "{:?} is fetched as {:?}",
                file.name,
                path.last().map_or("", String::as_str)
            ));
        }
        if self.folders.contains(path) {
            let free = self.free(path);
            self.files.insert(free, file);
        } else if let Some(earlier) = self.files.insert(path.to_vec(), file) {
            let free = self.free(path);
            self.files.insert(free, earlier);
        }
    }

    fn add_folder(&mut self, path: Vec<String>) {
        if let Some(file) = self.files.remove(&path) {
            let free = self.free(&path);
            self.files.insert(free, file);
        }
        self.folders.insert(path);
    }

    fn free(&mut self, path: &[String]) -> Vec<String> {
        let (parent, name) = path.split_at(path.len() - 1);
        let taken = |name: &str| {
            let path = joined(parent, name.to_owned());
            self.files.contains_key(&path) || self.folders.contains(&path)
        };
        let free = names::free(&name[0], taken);
        self.renamed.push(format!("a second {:?} is fetched as {free:?}", name[0]));
        joined(parent, free)
    }
}

fn joined(path: &[String], name: String) -> Vec<String> {
    path.iter().cloned().chain([name]).collect()
}

/// All documents of a list. No more pages than `most` documents need are asked for.
async fn pages(
    client: &Client,
    path: &str,
    query: &[(&str, &str)],
    most: u64,
) -> Result<Vec<Value>, TaskError> {
    let mut all = Vec::new();
    loop {
        let call = query.iter().fold(Call::get(path), |call, (name, value)| call.query(name, *value));
        let call = call.query("limit", PAGE.to_string()).query("offset", all.len().to_string());
        let Value::Array(page) = client.json(call).await? else {
            return Err(unreadable(client, path));
        };
        let last = page.len() < PAGE;
        all.extend(page);
        if last {
            return Ok(all);
        }
        if all.len() as u64 > most {
            let text = format!(
                "{path} lists more than {most} entries, which is more than policy.download.max_files leaves; \
                 name fewer inputs, or ask an administrator to raise it"
            );
            return Err(TaskError::permanent("download_too_large", text));
        }
    }
}

fn text(document: &Value, field: &str) -> String {
    document.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn id_of(client: &Client, document: &Value) -> Result<String, TaskError> {
    Some(text(document, "_id")).filter(|id| is_id(id)).ok_or_else(|| unreadable(client, "list"))
}

fn unreadable(client: &Client, what: &str) -> TaskError {
    TaskError::from(GirderError::Answer {
        call: format!("GET {what}"),
        server: client.server(),
        reason: "the answer is not what Girder's API promises; is the API address right?".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(id: &str, name: &str, size: u64) -> FileDocument {
        FileDocument {
            id: id.to_owned(),
            name: name.to_owned(),
            size: Some(size),
            sha512: None,
            changed: String::new(),
        }
    }
    fn at(path: &[&str]) -> Vec<String> {
        path.iter().map(|part| (*part).to_owned()).collect()
    }

    #[test]
    fn the_later_of_two_files_has_the_name_and_none_is_lost() {
        let mut layout = Layout::default();
        for id in ["1", "2", "3"] {
            layout.add_file(&at(&["i", "a.txt"]), file(id, "a.txt", 1));
        }
        let ids: Vec<(String, &str)> =
            layout.files.iter().map(|(path, file)| (path.join("/"), file.id.as_str())).collect();
        assert_eq!(ids, [("i/a (1).txt".into(), "1"), ("i/a (2).txt".into(), "2"), ("i/a.txt".into(), "3")]);
        assert_eq!(layout.renamed.len(), 2);
    }

    #[test]
    fn a_file_never_takes_the_place_of_a_folder() {
        let mut layout = Layout::default();
        layout.add_file(&at(&["x"]), file("1", "x", 1));
        layout.add_folder(at(&["x"]));
        layout.add_file(&at(&["x"]), file("2", "x", 1));
        assert!(layout.folders.contains(&at(&["x"])));
        assert_eq!(layout.files.keys().cloned().collect::<Vec<_>>(), [at(&["x (1)"]), at(&["x (2)"])]);
    }

    #[test]
    fn what_is_too_much_is_told_with_its_setting() {
        let mut within = Ceilings { files: 2, bytes: 10, depth: 1 };
        within.take(&file("1", "a", 10)).unwrap();
        let error = within.take(&file("2", "b", 1)).unwrap_err();
        assert!(error.message.contains("policy.download.max_bytes"), "{error}");
        let mut within = Ceilings { files: 0, ..Ceilings::NONE };
        let error = within.take(&file("1", "a", 0)).unwrap_err();
        assert!(error.message.contains("policy.download.max_files"), "{error}");
    }
}

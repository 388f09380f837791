//! A Girder of one's own words that takes uploads as the real one does, and fails as it is told to.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::{Value, json};

use super::staged::TOKEN;
use crate::support::faulty::{Asked, Faulty, Reply};

/// What goes wrong with a request.
pub(super) enum Fault {
    /// This is answered, and nothing is done.
    Instead(Reply),
    /// It is done, and this is answered.
    After(Reply),
    /// Of a chunk only so many bytes are kept, and the connection breaks.
    Half(usize),
}

/// The connection breaks without an answer.
pub(super) fn broken() -> Reply {
    Reply::Cut(10, Vec::new())
}

type Script = dyn Fn(&Asked) -> Option<Fault> + Send + Sync;

/// The server, and what it holds.
pub(super) struct Shore {
    pub(super) server: Faulty,
    held: Arc<Mutex<Held>>,
}

#[derive(Default)]
struct Held {
    files: Vec<File>,
    uploads: BTreeMap<String, Upload>,
    count: usize,
}

#[derive(Clone, Debug)]
pub(super) struct File {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) item: String,
    pub(super) folder: Option<String>,
    pub(super) content: Vec<u8>,
    pub(super) size: u64,
}

struct Upload {
    parent: (String, String),
    name: String,
    size: u64,
    replaces: Option<String>,
    received: u64,
    content: Vec<u8>,
}

impl Shore {
    /// One that holds nothing.
    pub(super) async fn start(script: impl Fn(&Asked) -> Option<Fault> + Send + Sync + 'static) -> Shore {
        let held = Arc::new(Mutex::new(Held::default()));
        let (kept, script): (_, Arc<Script>) = (held.clone(), Arc::new(script));
        let server = Faulty::start(move |asked| {
            let mut held = kept.lock().unwrap();
            match script(asked) {
                None => held.answer(asked),
                Some(Fault::Instead(reply)) => reply,
                Some(Fault::After(reply)) => {
                    held.answer(asked);
                    reply
                }
                Some(Fault::Half(bytes)) => {
                    let upload = held.uploads.get_mut(asked.param("uploadId").unwrap()).unwrap();
                    upload.take(&asked.body[..bytes], bytes as u64);
                    broken()
                }
            }
        })
        .await;
        Shore { server, held }
    }

    /// One that never fails.
    pub(super) async fn calm() -> Shore {
        Shore::start(|_| None).await
    }

    pub(super) fn api_url(&self) -> String {
        format!("{}/api/v1", self.server.url())
    }

    pub(super) fn access(&self) -> Value {
        json!({"api_url": self.api_url(), "token": TOKEN})
    }

    /// Everything that it holds.
    pub(super) fn files(&self) -> Vec<File> {
        self.held().files.clone()
    }

    /// Uploads that were begun and neither finished nor removed.
    pub(super) fn unfinished(&self) -> usize {
        self.held().uploads.len()
    }

    /// The offsets of the chunks that came.
    pub(super) fn offsets(&self) -> Vec<u64> {
        let chunks = self.server.asked().into_iter().filter(|asked| asked.path == "/api/v1/file/chunk");
        chunks.map(|asked| asked.param("offset").unwrap().parse().unwrap()).collect()
    }

    /// An upload as a process that died had begun it, with these bytes acknowledged.
    pub(super) fn begun(&self, parent: (&str, &str), name: &str, (size, got): (u64, &[u8])) -> String {
        let mut held = self.held();
        let id = held.fresh("u");
        let mut upload = Upload {
            parent: (parent.0.to_owned(), parent.1.to_owned()),
            name: name.to_owned(),
            size,
            replaces: None,
            received: 0,
            content: Vec::new(),
        };
        upload.take(got, got.len() as u64);
        held.uploads.insert(id.clone(), upload);
        id
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap()
    }
}

impl Upload {
    fn take(&mut self, content: &[u8], length: u64) {
        self.content.extend(content);
        self.received += length;
    }
}

impl Held {
    fn fresh(&mut self, kind: &str) -> String {
        self.count += 1;
        format!("{kind}{}", self.count)
    }

    fn answer(&mut self, asked: &Asked) -> Reply {
        let path = asked.path.strip_prefix("/api/v1/").unwrap_or_default();
        let parts: Vec<&str> = path.split('/').collect();
        match (asked.method.as_str(), &parts[..]) {
            ("GET", ["token", "current"]) => Reply::json(&json!({"expires": "2126-01-01T00:00:00+00:00"})),
            ("POST", ["folder"]) => {
                let (parent, name) = (asked.param("parentId").unwrap(), asked.param("name").unwrap());
                Reply::json(&json!({"_id": format!("{parent}-{name}")}))
            }
            ("POST", ["file"]) => {
                let parent = (asked.param("parentType").unwrap(), asked.param("parentId").unwrap());
                self.begin(asked, (parent.0.to_owned(), parent.1.to_owned()), None)
            }
            ("PUT", ["file", id, "contents"]) => {
                self.begin(asked, (String::new(), String::new()), Some((*id).to_owned()))
            }
            ("POST", ["file", "chunk"]) => self.chunk(asked),
            ("GET", ["file", "offset"]) => match self.uploads.get(asked.param("uploadId").unwrap()) {
                Some(upload) => Reply::json(&json!({"offset": upload.received})),
                None => Reply::error(400, "no such upload"),
            },
            ("DELETE", ["file", "upload", id]) => match self.uploads.remove(*id) {
                Some(_) => Reply::json(&Value::Null),
                None => Reply::error(400, "no such upload"),
            },
            ("GET", ["item", id, "files"]) => {
                Reply::json(&self.files.iter().filter(|file| file.item == *id).map(document).collect())
            }
            ("GET", ["item"]) => {
                let folder = asked.param("folderId");
                let items = self.files.iter().rev().filter(|file| file.folder.as_deref() == folder);
                Reply::json(&items.map(|file| json!({"_id": file.item, "created": now()})).collect())
            }
            ("GET", ["file", id]) => match self.files.iter().find(|file| file.id == *id) {
                Some(file) => Reply::json(&document(file)),
                None => Reply::error(400, "no such file"),
            },
            ("GET", ["file", id, "download"]) => match self.files.iter().find(|file| file.id == *id) {
                Some(file) => Reply::part(&file.content, asked),
                None => Reply::error(400, "no such file"),
            },
            _ => Reply::error(400, "no such route"),
        }
    }

    fn begin(&mut self, asked: &Asked, parent: (String, String), replaces: Option<String>) -> Reply {
        let size = asked.param("size").unwrap().parse().unwrap();
        let url = reqwest::Url::parse(&format!("http://a/?{}", asked.query)).unwrap();
        let name = url.query_pairs().find(|(name, _)| name == "name").map(|(_, value)| value.into_owned());
        let name = name.unwrap_or_default();
        let upload = Upload { parent, name, size, replaces, received: 0, content: Vec::new() };
        if size == 0 {
            return self.finish(upload);
        }
        let id = self.fresh("u");
        self.uploads.insert(id.clone(), upload);
        Reply::json(&json!({"_id": id}))
    }

    fn chunk(&mut self, asked: &Asked) -> Reply {
        let id = asked.param("uploadId").unwrap().to_owned();
        let Some(upload) = self.uploads.get_mut(&id) else { return Reply::error(400, "no such upload") };
        if asked.param("offset").unwrap().parse::<u64>() != Ok(upload.received) {
            return Reply::error(400, "wrong offset");
        }
        upload.take(&asked.body, asked.length);
        if upload.received < upload.size {
            return Reply::json(&json!({"received": upload.received}));
        }
        let upload = self.uploads.remove(&id).unwrap();
        self.finish(upload)
    }

    fn finish(&mut self, upload: Upload) -> Reply {
        let Upload { parent: (kind, parent), name, size, replaces, content, .. } = upload;
        if let Some(replaced) = replaces {
            let Some(file) = self.files.iter_mut().find(|file| file.id == replaced) else {
                return Reply::error(400, "no such file");
            };
            (file.content, file.size) = (content, size);
            return Reply::json(&document(file));
        }
        let (item, folder) = match kind.as_str() {
            "item" => (parent, None),
            _ => (self.fresh("i"), Some(parent)),
        };
        let file = File { id: self.fresh("f"), name, item, folder, content, size };
        self.files.push(file.clone());
        Reply::json(&document(&file))
    }
}

fn now() -> String {
    jiff::Timestamp::now().to_string()
}

fn document(file: &File) -> Value {
    json!({"_id": file.id, "name": file.name, "size": file.size, "itemId": file.item, "created": now()})
}

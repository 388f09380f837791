//! Girder's document of a file, as far as it matters for fetching it.

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Client, GirderError};

/// A file of Girder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileDocument {
    /// Its id.
    pub id: String,
    /// Its name, as hostile as whoever gave it.
    pub name: String,
    /// Its bytes; none for links to elsewhere, which have no size in Girder.
    pub size: Option<u64>,
    /// SHA-512 of its content in hexadecimal, where the server tells it.
    pub sha512: Option<String>,
    /// When its content and its document were last changed, as Girder writes it: `created` is set anew when a content
    /// is replaced (`girder.models.upload.Upload.finalizeUpload`).
    pub changed: String,
}

impl FileDocument {
    /// Asks for the document of `id`. The answer also proves that the token may read the file.
    pub async fn get(client: &Client, id: &str) -> Result<Self, GirderError> {
        let path = format!("file/{id}");
        let document = client.get_json(&path, &[]).await?;
        Self::read(&document).ok_or_else(|| GirderError::Answer {
            call: format!("GET {path}"),
            server: client.server(),
            reason: "the answer is no document of a file; is the API address right?".to_owned(),
        })
    }

    /// Reads a document.
    pub fn read(document: &Value) -> Option<Self> {
        let text = |field: &str| document.get(field).and_then(Value::as_str);
        let id = text("_id").filter(|id| is_id(id))?;
        Some(Self {
            id: id.to_owned(),
            name: text("name")?.to_owned(),
            size: document.get("size").and_then(Value::as_u64).filter(|_| text("linkUrl").is_none()),
            sha512: text("sha512")
                .filter(|sum| sum.len() == 128 && sum.bytes().all(|byte| byte.is_ascii_hexdigit()))
                .map(str::to_ascii_lowercase),
            changed: format!("{} {}", text("created").unwrap_or("-"), text("updated").unwrap_or("-")),
        })
    }

    /// Names the content: another content, or another server's, has another key.
    pub fn content_key(&self, server: &str) -> String {
        let size = self.size.map_or_else(String::new, |size| size.to_string());
        let sum = self.sha512.as_deref().unwrap_or_default();
        let text = format!("{server}\n{}\n{size}\n{}\n{sum}", self.id, self.changed);
        hex(&Sha256::digest(text.as_bytes()))
    }

    /// Whether `other` has the same content.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.id, self.size, &self.changed, &self.sha512)
            == (&other.id, other.size, &other.changed, &other.sha512)
    }
}

/// Whether `id` may stand in a route and in a path: Girder's ids are 24 hexadecimal digits.
pub fn is_id(id: &str) -> bool {
    !id.is_empty() && id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a text cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(change: impl FnOnce(&mut Value)) -> Option<FileDocument> {
        let mut document = serde_json::json!({
            "_id": "5f0000000000000000000001", "name": "a.bin", "size": 7,
            "created": "2026-01-01T00:00:00+00:00", "updated": null,
        });
        change(&mut document);
        FileDocument::read(&document)
    }

    #[test]
    fn every_change_of_the_content_and_every_server_has_a_key_of_its_own() {
        let file = document(|_| ()).unwrap();
        let key = file.content_key("http://a");
        assert_ne!(key, file.content_key("http://b"));
        let changed: [fn(&mut Value); 4] = [
            |document| document["size"] = 8.into(),
            |document| document["created"] = "2026-01-01T00:00:01+00:00".into(),
            |document| document["updated"] = "2026-01-01T00:00:00+00:00".into(),
            |document| document["sha512"] = "0".repeat(128).into(),
        ];
        for change in changed {
            let other = document(change).unwrap();
            assert_ne!(key, other.content_key("http://a"));
            assert!(!file.is_same(&other));
        }
        let renamed = document(|document| document["name"] = "b".into()).unwrap();
        assert_eq!(key, renamed.content_key("http://a"));
    }

    #[test]
    fn ids_that_could_climb_and_broken_sums_are_not_taken() {
        assert!(document(|document| document["_id"] = "../../etc".into()).is_none());
        assert!(document(|document| document["sha512"] = "zz".into()).unwrap().sha512.is_none());
        assert!(document(|document| document["linkUrl"] = "http://x".into()).unwrap().size.is_none());
    }
}

//! Names of images, as far as the worker must understand them: what is safe to send, which tag is meant, which registry.

use crate::error::TaskError;

/// A name under which an image can be looked up and pulled.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Reference(String);

impl Reference {
    /// Checks that `text` has no characters but those of references. The engine puts it into paths, so a `..` or `?` in it
    /// would ask for something else.
    pub(super) fn read(text: &str) -> Result<Self, TaskError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._-/:@+".contains(c);
        let sound = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[')
            && text.chars().all(|c| allowed(c) || "[]".contains(c))
            && !text.split('/').any(|part| part.is_empty() || part == "." || part == "..");
        if sound {
            return Ok(Self(text.to_owned()));
        }
        Err(TaskError::permanent(
            "image_name",
            format!(
                "args.image is {text:?}: give a name such as busybox:latest or registry:5000/team/tool@sha256:…"
            ),
        ))
    }

    /// As the task gave it.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// With the tag that is meant: a pull without one would fetch every tag there is.
    pub(super) fn tagged(&self) -> String {
        let last = self.0.rsplit('/').next().unwrap_or(&self.0);
        if last.contains([':', '@']) { self.0.clone() } else { format!("{}:latest", self.0) }
    }

    /// `host[:port]` of its registry; `docker.io` when it names none.
    pub(super) fn registry(&self) -> &str {
        match self.0.split_once('/') {
            Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
            _ => "docker.io",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_that_is_meant_is_latest() {
        let tagged = |text| Reference::read(text).unwrap().tagged();
        assert_eq!(tagged("busybox"), "busybox:latest");
        assert_eq!(tagged("localhost:5000/busybox"), "localhost:5000/busybox:latest");
        assert_eq!(tagged("localhost:5000/busybox:1"), "localhost:5000/busybox:1");
        assert_eq!(tagged("a/b@sha256:00"), "a/b@sha256:00");
        assert_eq!(tagged("sha256:00"), "sha256:00");
    }

    #[test]
    fn the_registry_is_the_first_part_if_it_looks_like_a_host() {
        let registry = |text| Reference::read(text).unwrap().registry().to_owned();
        assert_eq!(registry("busybox"), "docker.io");
        assert_eq!(registry("library/busybox"), "docker.io");
        assert_eq!(registry("localhost/busybox"), "localhost");
        assert_eq!(registry("127.0.0.1:5000/busybox"), "127.0.0.1:5000");
        assert_eq!(registry("ghcr.example/a/b:1"), "ghcr.example");
    }

    #[test]
    fn what_would_ask_the_engine_for_something_else_is_refused() {
        for wrong in ["../containers/x", "a/../../b", "a?b", "a#b", "a b", "", "/a", "a//b", "a%2e"] {
            let error = Reference::read(wrong).unwrap_err();
            assert!(error.message.contains("args.image is"), "{error}");
        }
    }
}

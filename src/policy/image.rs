//! Which images a task may run, and when they may be pulled.
//!
//! An image and a pattern are brought into the same full form (`docker.io/library/busybox`) before they are compared,
//! because Docker reads `busybox`, `docker.io/busybox` and `index.docker.io/library/busybox:latest` as one image.
//!
//! # Decisions
//! - A pattern without a tag allows every tag and digest; one with a tag allows that tag only, and not a digest, because
//!   Docker ignores the tag of an image that is named with both.
//! - `*` stays within one part of a name, so that `*.example.org/tool` cannot match `evil.test/a.example.org/tool`;
//!   `**` crosses parts. `*` alone is any image.
//! - A text that Docker may take for the id of a local image matches only a pattern that begins with `sha256:`.

use std::fmt;

use globset::{GlobBuilder, GlobMatcher};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Judging;
use super::denied::quoted;
use super::terms::TermError;

/// When an image is fetched from its registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Pull {
    /// Before every run.
    Always,
    /// When it is not on this host; the registry is not asked otherwise.
    #[serde(alias = "if-not-present")]
    Missing,
    /// Not at all; a missing image fails the task.
    Never,
}

impl Pull {
    /// As it is written in envelopes and settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Missing => "missing",
            Self::Never => "never",
        }
    }
}

impl fmt::Display for Pull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An image's name in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageName {
    /// A repository's image.
    Repository {
        /// With its registry, such as `docker.io/library/busybox`.
        repository: String,
        /// What tells the repository's images apart.
        version: Version,
    },
    /// An image of this host by its id or the beginning of one, as hexadecimal digits.
    Id(String),
}

/// What tells the images of a repository apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Version {
    /// A name that can be given to another image later; `latest` when none was given.
    Tag(String),
    /// The content's own sum, such as `sha256:…`.
    Digest(String),
}

impl ImageName {
    /// Reads `text` as Docker does.
    pub fn read(text: &str) -> Self {
        if let Some(id) = image_id(text) {
            return Self::Id(id.to_owned());
        }
        let (name, tag, digest) = split(text);
        let version = match (digest, tag) {
            (Some(digest), _) => Version::Digest(digest.to_owned()),
            (None, Some(tag)) => Version::Tag(tag.to_owned()),
            (None, None) => Version::Tag("latest".to_owned()),
        };
        Self::Repository { repository: full(name), version }
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repository { repository, version: Version::Tag(tag) } => write!(f, "{repository}:{tag}"),
            Self::Repository { repository, version: Version::Digest(sum) } => write!(f, "{repository}@{sum}"),
            Self::Id(id) => write!(f, "sha256:{id}"),
        }
    }
}

/// The digits, where Docker would look `text` up among the ids of local images.
fn image_id(text: &str) -> Option<&str> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    let hexadecimal = digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    (!digits.is_empty() && digits.len() <= 64 && hexadecimal).then_some(digits)
}

/// Name, tag and digest of a reference or pattern.
fn split(text: &str) -> (&str, Option<&str>, Option<&str>) {
    let (rest, digest) = text.split_once('@').map_or((text, None), |(rest, digest)| (rest, Some(digest)));
    match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag), digest),
        _ => (rest, None, digest),
    }
}

/// The repository with its registry. The first part is a registry if it has a dot or a port or is `localhost`.
fn full(name: &str) -> String {
    let registry =
        |part: &str| part.contains(['.', ':']) || part == "localhost" || part != part.to_lowercase();
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if registry(first) || first == "**" => (first, path),
        _ => ("docker.io", name),
    };
    let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
    if registry == "docker.io" && !path.contains('/') && path != "**" {
        format!("docker.io/library/{path}")
    } else {
        format!("{registry}/{path}")
    }
}

/// Patterns of images: `busybox`, `python:3.*`, `girder/*`, `registry.example.org/**`, `tool@sha256:…`, `*` for any.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<String>", into = "Vec<String>")]
pub struct ImageSet {
    texts: Vec<String>,
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug)]
enum Pattern {
    Any,
    Repository { repository: GlobMatcher, version: VersionPattern },
    Id(String),
}

#[derive(Clone, Debug)]
enum VersionPattern {
    Any,
    Tag(GlobMatcher),
    Digest(String),
}

impl ImageSet {
    /// Whether a pattern allows the image that `text` names.
    pub fn allows(&self, text: &str) -> bool {
        let image = ImageName::read(text);
        self.patterns.iter().any(|pattern| pattern.allows(&image))
    }
}

impl Pattern {
    fn read(text: &str) -> Result<Self, TermError> {
        if text.is_empty() || text.contains(char::is_whitespace) {
            return Err(TermError::new(text, "write an image such as \"busybox\", \"girder/*\" or \"*\""));
        }
        if text == "*" || text == "**" {
            return Ok(Self::Any);
        }
        if let Some(id) = text.strip_prefix("sha256:") {
            return match image_id(text) {
                Some(id) if id.len() == 64 => Ok(Self::Id(id.to_owned())),
                _ => Err(TermError::new(id, "write all 64 digits of the image's id after sha256:")),
            };
        }
        let (name, tag, digest) = split(text);
        let repository = if name == "*" { "**".to_owned() } else { full(name) };
        let version = match (digest, tag) {
            (Some(digest), _) => VersionPattern::Digest(digest.to_owned()),
            (None, Some(tag)) => VersionPattern::Tag(glob(tag)?),
            (None, None) => VersionPattern::Any,
        };
        Ok(Self::Repository { repository: glob(&repository)?, version })
    }

    fn allows(&self, image: &ImageName) -> bool {
        match (self, image) {
            (Self::Any, _) => true,
            (Self::Id(own), ImageName::Id(other)) => own == other,
            (
                Self::Repository { repository, version },
                ImageName::Repository { repository: name, version: asked },
            ) => {
                repository.is_match(name)
                    && match (version, asked) {
                        (VersionPattern::Any, _) => true,
                        (VersionPattern::Tag(tag), Version::Tag(asked)) => tag.is_match(asked),
                        (VersionPattern::Digest(sum), Version::Digest(asked)) => sum == asked,
                        (VersionPattern::Tag(_), Version::Digest(_))
                        | (VersionPattern::Digest(_), Version::Tag(_)) => false,
                    }
            }
            (Self::Id(_), ImageName::Repository { .. }) | (Self::Repository { .. }, ImageName::Id(_)) => {
                false
            }
        }
    }
}

fn glob(text: &str) -> Result<GlobMatcher, TermError> {
    GlobBuilder::new(text)
        .literal_separator(true)
        .build()
        .map(|glob| glob.compile_matcher())
        .map_err(|error| TermError::new(text, format!("it is no pattern: {}", error.kind())))
}

impl TryFrom<Vec<String>> for ImageSet {
    type Error = TermError;
    fn try_from(texts: Vec<String>) -> Result<Self, TermError> {
        let patterns = texts.iter().map(|text| Pattern::read(text)).collect::<Result<_, _>>()?;
        Ok(Self { texts, patterns })
    }
}
impl From<ImageSet> for Vec<String> {
    fn from(set: ImageSet) -> Self {
        set.texts
    }
}
impl PartialEq for ImageSet {
    fn eq(&self, other: &Self) -> bool {
        self.texts == other.texts
    }
}

/// Judges the image itself and when it is pulled.
pub(super) fn judge(judging: &mut Judging<'_>) {
    let (image, pull) = (judging.request.image, judging.request.pull);
    judge_name(judging, image, "image");
    // The body is what the engine reads; it may name the image by the digest that was pulled.
    if !judging.rules().images.pull_policies.contains(&pull) {
        judging.deny("images.pull_policies", format!("pull={:?}", pull.as_str()));
    }
}

/// Judges one image; `role` says what it is for.
pub(super) fn judge_name(judging: &mut Judging<'_>, image: &str, role: &str) {
    let rules = &judging.rules().images;
    let allowed = rules.allowed.allows(image);
    let by_tag = matches!(ImageName::read(image), ImageName::Repository { version: Version::Tag(_), .. });
    let digest_missing = rules.require_digest && by_tag;
    if !allowed {
        judging.deny("images.allowed", format!("{role} {}", quoted(image)));
    }
    if digest_missing {
        judging.deny("images.require_digest", format!("{role} {} without a digest", quoted(image)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUM: &str = "sha256:0123456789012345678901234567890123456789012345678901234567890123";

    fn set(patterns: &[&str]) -> ImageSet {
        ImageSet::try_from(patterns.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn names_are_completed_as_docker_completes_them() {
        for (short, long) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/library/busybox:1", "docker.io/library/busybox:1"),
            ("girder/tool:v2", "docker.io/girder/tool:v2"),
            ("localhost/tool", "localhost/tool:latest"),
            ("localhost:5000/tool", "localhost:5000/tool:latest"),
            ("ghcr.io/a/b/c:x", "ghcr.io/a/b/c:x"),
            ("deadbeef", "sha256:deadbeef"),
            ("deadbeef:latest", "docker.io/library/deadbeef:latest"),
        ] {
            assert_eq!(ImageName::read(short).to_string(), long);
        }
        assert_eq!(ImageName::read(&format!("a/b:1@{SUM}")).to_string(), format!("docker.io/a/b@{SUM}"));
        assert_eq!(ImageName::read(SUM).to_string(), SUM);
    }

    #[test]
    fn a_pattern_allows_what_a_person_expects_and_no_look_alike() {
        let digest = format!("busybox@{SUM}");
        let pinned = format!("tool@{SUM}");
        let tagged = format!("python:3.12@{SUM}");
        for (pattern, image, allowed) in [
            ("*", "evil.test/x", true),
            ("*", SUM, true),
            ("busybox", "busybox", true),
            ("busybox", "busybox:1.36", true),
            ("busybox", "docker.io/library/busybox", true),
            ("busybox", digest.as_str(), true),
            ("busybox", "evil/busybox", false),
            ("busybox", "busybox.evil/busybox", false),
            ("busybox", "busybox2", false),
            ("library/busybox", "busybox", true),
            ("docker.io/library/*", "busybox", true),
            ("busybox:latest", "busybox", true),
            ("busybox:latest", "busybox:1.36", false),
            ("python:3.*", "python:3.12", true),
            ("python:3.*", "python:2.7", false),
            ("python:3.*", tagged.as_str(), false),
            ("girder/*", "girder/tool:v1", true),
            ("girder/*", "girder/sub/tool", false),
            ("girder/**", "girder/sub/tool", true),
            ("girder/*", "girder.evil/tool", false),
            ("girder/*", "evil.test/girder/tool", false),
            ("*.example.org/*", "a.example.org/tool", true),
            ("*.example.org/*", "evil.test/a.example.org/tool", false),
            ("ok", "ok.evil/ok", false),
            ("ok", "okevil", false),
            ("localhost:5000/**", "localhost:5000/a/b", true),
            ("localhost:5000/**", "localhost:5001/a/b", false),
            (pinned.as_str(), pinned.as_str(), true),
            (pinned.as_str(), "tool", false),
            ("docker.io/library/*", "deadbeef", false),
            ("docker.io/library/*", SUM, false),
            (SUM, SUM, true),
            (SUM, &SUM[..20], false),
            ("**/tool", "evil.test/tool", true),
            ("*:stable", "evil.test/tool:stable", true),
            ("*:stable", "tool:latest", false),
        ] {
            assert_eq!(set(&[pattern]).allows(image), allowed, "{pattern} for {image}");
        }
        assert!(!set(&[]).allows("busybox"));
    }

    #[test]
    fn a_pattern_that_cannot_be_meant_is_refused() {
        for wrong in ["", "a b", "[", "sha256:12"] {
            assert!(ImageSet::try_from(vec![wrong.to_owned()]).is_err(), "{wrong:?}");
        }
    }
}

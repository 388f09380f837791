//! What staging decided about a container: plain data that the engine's room turns into a request.

use std::path::PathBuf;

use crate::task::ArgMap;

/// What staging decided.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerPlan {
    /// Instead of the image's own.
    pub entrypoint: Option<Vec<String>>,
    /// Each transform replaced by its text.
    pub arguments: Vec<String>,
    /// The request's options, each transform in them replaced by its text.
    pub options: ArgMap,
    /// In the order in which they must be mounted: a FIFO comes after the folder that holds its target.
    pub mounts: Vec<Mount>,
}

/// Something of the host that the container sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Absolute path on the host; a named volume when it does not start with a slash.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub target: String,
    /// How it is mounted.
    pub mode: MountMode,
    /// Why it is mounted.
    pub kind: MountKind,
}

/// How something is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountMode {
    /// The container may write.
    ReadWrite,
    /// It may not.
    ReadOnly,
    /// Whatever else stood after the second colon of a bind, such as `ro,z`.
    Other(String),
}

impl MountMode {
    /// Reads what stands after the second colon of a bind.
    pub fn parse(text: &str) -> Self {
        match text {
            "" | "rw" => Self::ReadWrite,
            "ro" => Self::ReadOnly,
            other => Self::Other(other.to_owned()),
        }
    }
    /// As Docker's bind syntax has it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::ReadWrite => "rw",
            Self::ReadOnly => "ro",
            Self::Other(text) => text,
        }
    }
    /// Whether the container may write.
    pub fn is_writable(&self) -> bool {
        !self.as_str().split(',').any(|word| word == "ro")
    }
}

/// Why something is mounted, which decides who judges it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MountKind {
    /// A folder that the pipeline made.
    Folder,
    /// A FIFO that the pipeline made. It is a mount of its own so that the container can neither remove nor replace it.
    Fifo,
    /// A file of the worker's own that the pipeline made.
    WorkerFile,
    /// A file that is read where it lies.
    DirectFile,
    /// What the task asked for; policy judges it.
    AskedBind,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_with_ro_among_its_words_is_not_writable() {
        assert!(!MountMode::parse("ro,z").is_writable());
        assert!(MountMode::parse("rw,z").is_writable());
        assert!(MountMode::parse("").is_writable());
        assert_eq!(MountMode::parse("ro").as_str(), "ro");
    }
}

//! Where a host path leads: cleaned as Docker cleans it, then with every link followed as the kernel follows it.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// What a path is on this host at this moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resolved {
    /// Without `.`, `..` and double slashes; Docker does this by text, before any link is followed.
    pub(super) given: PathBuf,
    /// With every link followed; the part that does not exist yet is kept as it is.
    pub(super) real: PathBuf,
    /// Device and inode, if it exists.
    pub(super) identity: Option<(u64, u64)>,
}

/// Whether the engine's files are this process's files, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostFiles {
    /// They are: links can be followed.
    #[default]
    Here,
    /// The worker runs in a container, or the engine on another host: paths are judged by their text alone.
    Elsewhere,
}

impl HostFiles {
    /// Follows `path`, which is absolute. An error means that nobody can say where it leads.
    pub(super) fn resolve(self, path: &Path) -> Result<Resolved, std::io::Error> {
        match self {
            Self::Here => resolve(path),
            Self::Elsewhere => {
                let given = clean(path);
                Ok(Resolved { real: given.clone(), given, identity: None })
            }
        }
    }
    /// Where `path` leads, or itself where nobody can say.
    pub(super) fn real(self, path: &Path) -> PathBuf {
        self.resolve(path).map_or_else(|_| path.to_owned(), |resolved| resolved.real)
    }
}

/// Links followed before a path is taken for a loop; the kernel's own bound.
const MOST_LINKS: usize = 40;

fn resolve(path: &Path) -> Result<Resolved, std::io::Error> {
    let given = clean(path);
    let real = follow(&given)?;
    let identity = match std::fs::symlink_metadata(&real) {
        Ok(found) => Some((found.dev(), found.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound || error.kind() == ErrorKind::NotADirectory => None,
        Err(error) => return Err(error),
    };
    Ok(Resolved { given, real, identity })
}

/// Go's `path.Clean`.
pub(super) fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    out
}

/// A walk of its own rather than `canonicalize`, because a link may point to something that does not exist yet.
fn follow(path: &Path) -> Result<PathBuf, std::io::Error> {
    let mut real = PathBuf::from("/");
    let mut rest: Vec<OsString> = parts(path);
    let mut links = 0;
    while let Some(name) = rest.pop() {
        if name == ".." {
            real.pop();
            continue;
        }
        let next = real.join(&name);
        match std::fs::symlink_metadata(&next) {
            Ok(found) if found.file_type().is_symlink() => {
                links += 1;
                if links > MOST_LINKS {
                    return Err(std::io::Error::new(ErrorKind::InvalidInput, "too many links"));
                }
                let target = std::fs::read_link(&next)?;
                if target.is_absolute() {
                    real = PathBuf::from("/");
                }
                rest.extend(parts(&target));
            }
            Ok(_) => real = next,
            Err(error) if error.kind() == ErrorKind::NotFound || error.kind() == ErrorKind::NotADirectory => {
                real = next;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(real)
}

/// The parts of a path, last first.
fn parts(path: &Path) -> Vec<OsString> {
    let mut parts: Vec<OsString> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect();
    parts.reverse();
    parts
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn real(path: &Path) -> PathBuf {
        resolve(path).unwrap().real
    }

    #[test]
    fn a_path_is_cleaned_by_its_text() {
        for (path, cleaned) in [("//a/./b/../c/", "/a/c"), ("/../../etc", "/etc"), ("/", "/"), ("/a/..", "/")]
        {
            assert_eq!(clean(Path::new(path)), Path::new(cleaned));
        }
    }

    #[test]
    fn links_are_followed_even_to_what_does_not_exist_yet() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().canonicalize().unwrap();
        std::fs::create_dir(base.join("real")).unwrap();
        symlink("real", base.join("relative")).unwrap();
        symlink("/nowhere/at/all", base.join("dangling")).unwrap();
        symlink("relative/../dangling", base.join("chain")).unwrap();
        assert_eq!(real(&base.join("relative/new/file")), base.join("real/new/file"));
        assert_eq!(real(&base.join("dangling/x")), Path::new("/nowhere/at/all/x"));
        assert_eq!(real(&base.join("chain")), Path::new("/nowhere/at/all"));
        assert_eq!(real(&base.join("missing/x")), base.join("missing/x"));
    }

    #[test]
    fn a_loop_of_links_leads_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        symlink("b", folder.path().join("a")).unwrap();
        symlink("a", folder.path().join("b")).unwrap();
        assert!(resolve(&folder.path().join("a/x")).is_err());
    }

    #[test]
    fn the_identity_is_that_of_the_target() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("target");
        std::fs::write(&target, "x").unwrap();
        symlink(&target, folder.path().join("link")).unwrap();
        let direct = resolve(&target).unwrap().identity;
        assert!(direct.is_some());
        assert_eq!(resolve(&folder.path().join("link")).unwrap().identity, direct);
        assert_eq!(resolve(&folder.path().join("other")).unwrap().identity, None);
    }
}

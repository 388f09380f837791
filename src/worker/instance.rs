//! Who a worker is: its name, host, and the instance id by which it knows its own containers after a restart.
//!
//! Instance ids lie in the state folder, one per process that uses it at the same time. A process takes the first that no
//! other holds, so a restarted worker takes its old one up again, and two processes never take each other's containers for
//! orphans.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use uuid::Uuid;

use super::{WorkerError, make_folder};
use crate::config::Settings;
use crate::handler::Identity;

/// Most processes on one state folder at the same time.
const MOST: usize = 1_000;

/// An instance id, held until this is dropped.
#[derive(Debug)]
pub struct InstanceLock {
    _file: File,
}

/// Takes an instance id from the folder `kind` of the state folder and says who this process is.
pub fn identity(settings: &Settings, kind: &str) -> Result<(Identity, InstanceLock), WorkerError> {
    let folder = settings.state_dir.join(kind);
    make_folder(&folder)?;
    let (instance, lock) = take(&folder).map_err(|error| WorkerError::Folder {
        action: "take an instance id in",
        path: folder.display().to_string(),
        reason: error.to_string(),
    })?;
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let identity = Identity {
        worker: settings.worker.name.as_str().into(),
        instance: instance.into(),
        incarnation: Uuid::now_v7().to_string().into(),
        host: host.into(),
    };
    Ok((identity, lock))
}

fn take(folder: &Path) -> std::io::Result<(String, InstanceLock)> {
    for slot in 0..MOST {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(folder.join(slot.to_string()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => continue,
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let mut id = String::new();
        file.read_to_string(&mut id)?;
        if id.trim().is_empty() {
            id = Uuid::now_v7().simple().to_string();
            file.rewind()?;
            file.write_all(id.as_bytes())?;
        }
        return Ok((id.trim().to_owned(), InstanceLock { _file: file }));
    }
    Err(std::io::Error::other(format!("{MOST} processes use it already")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_has_an_id_of_its_own_and_finds_it_again() {
        let folder = tempfile::tempdir().unwrap();
        let (first, lock) = take(folder.path()).unwrap();
        let (second, _second_lock) = take(folder.path()).unwrap();
        assert_ne!(first, second);
        drop(lock);
        let (again, _lock) = take(folder.path()).unwrap();
        assert_eq!(again, first);
    }
}

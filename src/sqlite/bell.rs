//! The doorbell: wakes whoever waits for a commit, in this process and in others.
//!
//! In a process a watch channel rings. Between processes each [`Waiter`] binds a datagram socket in the folder
//! `<file>.bell`, named `<process>-<number>.<what it waits for>`; after a commit the writer sends a byte to those
//! that wait for what it changed.
//!
//! # Decisions
//! - A waiter reads its socket only while it waits. A busy one lets its queue fill (`net.unix.max_dgram_qlen`), and
//!   then rings to it fail at once and cost nothing: it will look anyway before it waits.
//! - Each peer has a sending socket of its own, because undelivered rings are charged to the sender's buffer.
//! - The folder is read again only when its time of change moved, or is so fresh that a change may hide in it.
//! - A look every [`SAFETY`] finds what a lost ring would have told. All waiters of a process look at the same moments: each
//!   moment at which an idle process wakes costs more than what it does then.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixDatagram as Sending;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::net::UnixDatagram;
use tokio::sync::watch;
use tokio::time::Instant;

/// How long a waiter trusts its bell: as long as presence is announced at, so that an idle worker wakes for both at once.
const SAFETY: Duration = Duration::from_secs(15);
/// How long one waits that has no socket and hears this process alone.
const DEAF: Duration = Duration::from_secs(5);
/// The coarsest clock with which a file system stamps changes, with room to spare.
const STAMP: Duration = Duration::from_millis(50);
/// The longest path of a socket (`sun_path` holds 108 bytes with the final zero).
const LONGEST_ADDRESS: usize = 107;

/// What can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signal {
    /// A message may have become ready, or will be sooner than was known.
    Work,
    /// An event was published.
    Event,
    /// A command was sent.
    Command,
}

impl Signal {
    const ALL: [Self; 3] = [Self::Work, Self::Event, Self::Command];

    fn name(self) -> &'static str {
        match self {
            Self::Work => "work",
            Self::Event => "event",
            Self::Command => "command",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|signal| signal.name() == name)
    }
}

/// What a commit changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Signals(u8);

impl Signals {
    pub(super) fn add(&mut self, signal: Signal) {
        self.0 |= 1 << signal as u8;
    }

    fn contain(self, signal: Signal) -> bool {
        self.0 & (1 << signal as u8) != 0
    }
}

/// The bell of one file.
#[derive(Debug)]
pub(super) struct Bell {
    local: [watch::Sender<u64>; 3],
    /// None when the folder could not be made; then other processes are heard by the safety look only.
    folder: Option<Folder>,
    peers: Mutex<Peers>,
}

/// The waiters of other processes, as last seen.
#[derive(Debug, Default)]
struct Peers {
    sockets: HashMap<OsString, (Signal, Sending)>,
    /// The folder's time of change, when it was old enough to be trusted.
    seen: Option<SystemTime>,
}

impl Bell {
    /// The bell of the database at `path`.
    pub(super) fn beside(path: &Path) -> Self {
        let folder = Folder::beside(path)
            .inspect_err(|error| {
                tracing::warn!(%error, "no doorbell beside the database: other processes are heard with up to 5 s delay");
            })
            .ok();
        Self { local: Default::default(), folder, peers: Mutex::default() }
    }

    /// Wakes those who wait for `signals`.
    pub(super) fn ring(&self, signals: Signals) {
        if signals == Signals::default() {
            return;
        }
        for (sender, signal) in self.local.iter().zip(Signal::ALL) {
            if signals.contain(signal) && sender.receiver_count() > 0 {
                sender.send_modify(|n| *n = n.wrapping_add(1));
            }
        }
        if let Some(folder) = &self.folder {
            let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
            peers.refresh(folder);
            peers.ring(folder, signals);
        }
    }

    pub(super) fn waiter(&self, wanted: Signal) -> Waiter {
        let socket = self.folder.as_ref().and_then(|folder| {
            folder
                .bind(wanted)
                .inspect_err(|error| {
                    tracing::warn!(%error, "no doorbell socket: other processes are heard with up to 5 s delay");
                })
                .ok()
        });
        Waiter { local: self.local[wanted as usize].subscribe(), socket }
    }
}

impl Peers {
    fn refresh(&mut self, folder: &Folder) {
        let Ok(changed) = fs::metadata(&folder.path).and_then(|metadata| metadata.modified()) else { return };
        if self.seen == Some(changed) {
            return;
        }
        self.seen = None;
        let Ok(entries) = fs::read_dir(&folder.path) else { return };
        let names: Vec<OsString> = entries.flatten().map(|entry| entry.file_name()).collect();
        self.sockets.retain(|name, _| names.contains(name));
        for name in names {
            if !self.sockets.contains_key(&name) {
                self.meet(folder, &name);
            }
        }
        let age = SystemTime::now().duration_since(changed).unwrap_or_default();
        self.seen = Some(changed).filter(|_| age > STAMP);
    }

    fn meet(&mut self, folder: &Folder, name: &OsString) {
        let text = name.to_string_lossy();
        let Some((who, wanted)) = text.split_once('.') else { return };
        let Some(wanted) = Signal::named(wanted) else { return };
        let ours = who.split_once('-').is_some_and(|(process, _)| process == *PROCESS);
        if ours {
            return;
        }
        let connected = Sending::unbound().and_then(|socket| {
            socket.set_nonblocking(true)?;
            socket.connect(folder.address(name))?;
            Ok(socket)
        });
        match connected {
            Ok(socket) => {
                self.sockets.insert(name.clone(), (wanted, socket));
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => folder.remove(name),
            Err(error) => tracing::debug!(%error, socket = %text, "a doorbell socket could not be reached"),
        }
    }

    fn ring(&mut self, folder: &Folder, signals: Signals) {
        self.sockets.retain(|name, (wanted, socket)| {
            if !signals.contain(*wanted) {
                return true;
            }
            match socket.send(&[0]) {
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::NotConnected
                    ) =>
                {
                    folder.remove(name);
                    false
                }
                // Taken, or its queue is full: it has rings that it did not read yet.
                Ok(_) | Err(_) => true,
            }
        });
    }
}

/// Tells the sockets of this process from those of others. Not the process id: containers may share a folder.
static PROCESS: LazyLock<String> = LazyLock::new(|| format!("{:016x}", rand::random::<u64>()));

/// Where the sockets are.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    /// Keeps the short way to it open.
    handle: File,
}

impl Folder {
    fn beside(database: &Path) -> std::io::Result<Self> {
        let mut name = database.as_os_str().to_owned();
        name.push(".bell");
        let path = PathBuf::from(name);
        DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
        let handle = File::open(&path)?;
        Ok(Self { path, handle })
    }

    /// An address of `name` that is short enough for a socket.
    fn address(&self, name: impl AsRef<Path>) -> PathBuf {
        let address = self.path.join(&name);
        if address.as_os_str().as_bytes().len() <= LONGEST_ADDRESS {
            return address;
        }
        Path::new("/proc/self/fd").join(self.handle.as_raw_fd().to_string()).join(name)
    }

    fn bind(&self, wanted: Signal) -> std::io::Result<Socket> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}.{}", *PROCESS, wanted.name());
        let socket = UnixDatagram::bind(self.address(&name))?;
        Ok(Socket { socket, path: self.path.join(name) })
    }

    /// Removes the socket of one who was killed.
    fn remove(&self, name: &OsString) {
        // Another process may have been faster.
        let _ = fs::remove_file(self.path.join(name));
    }
}

/// One who waits for commits.
#[derive(Debug)]
pub(crate) struct Waiter {
    local: watch::Receiver<u64>,
    socket: Option<Socket>,
}

#[derive(Debug)]
struct Socket {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Drop for Socket {
    fn drop(&mut self) {
        // What remains is removed by the next who rings.
        let _ = fs::remove_file(&self.path);
    }
}

impl Waiter {
    /// Forgets earlier rings. Call it before looking: whatever rings after it is heard by [`Waiter::rung`].
    pub(crate) fn arm(&mut self) {
        self.local.mark_unchanged();
        if let Some(Socket { socket, .. }) = &self.socket {
            while socket.try_recv(&mut [0; 8]).is_ok() {}
        }
    }

    /// Waits for a ring since [`Waiter::arm`], at most until a look is due for safety. Cancel-safe.
    pub(crate) async fn rung(&mut self) {
        let remote = async {
            let heard = match &self.socket {
                Some(Socket { socket, .. }) => socket.recv(&mut [0; 8]).await.is_ok(),
                None => false,
            };
            if !heard {
                std::future::pending::<()>().await;
            }
        };
        let pause = if self.socket.is_some() { SAFETY } else { DEAF };
        tokio::select! {
            // Never an error: who holds the database holds its bell.
            _ = self.local.changed() => {}
            () = remote => {}
            () = tokio::time::sleep_until(next_look(pause)) => {}
        }
    }
}

/// The next of the moments, `pause` apart, at which this process looks for what its bells did not tell.
fn next_look(pause: Duration) -> Instant {
    static FIRST: LazyLock<Instant> = LazyLock::new(Instant::now);
    let passed = FIRST.elapsed().as_nanos() / pause.as_nanos().max(1);
    *FIRST + pause.saturating_mul(u32::try_from(passed).unwrap_or(u32::MAX).saturating_add(1))
}

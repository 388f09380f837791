//! A process that swaps what stands at a FIFO's path gains nothing: what is opened is our FIFO, or nothing is.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use longshore::pipeline::fifo::Fifo;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

/// Tells another process of this binary where to flip.
const FOLDER: &str = "LONGSHORE_TEST_FLIPS_IN";
/// What it swaps with `pipe`.
const OTHERS: [&str; 3] = ["link", "canary", "other"];

#[test]
fn ten_thousand_opens_against_a_flipper_open_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let content = format!("canary-{}", uuid::Uuid::now_v7());
    std::fs::write(folder.path().join("canary"), &content).unwrap();
    let file = Arc::new(File::open(folder.path()).unwrap());
    let fifo = Fifo::make(&file, folder.path(), "pipe").unwrap();
    Fifo::make(&file, folder.path(), "other").unwrap();
    symlink(folder.path().join("canary"), folder.path().join("link")).unwrap();
    let hold = fifo.hold().unwrap();

    let flipper = Flipper::start(folder.path());
    let (mut opened, mut refused) = (0, 0);
    for n in 0..10_000_u16 {
        // Each way of opening it, and each must lead to the very FIFO that `hold` is.
        let ends: Option<(OwnedFd, bool)> = match n % 3 {
            0 => fifo.writer().ok().map(|end| (end, true)),
            1 => fifo.reader().ok().map(|end| (end, false)),
            _ => fifo.hold().ok().map(|end| (end, true)),
        };
        let Some((end, writes)) = ends else {
            refused += 1;
            continue;
        };
        opened += 1;
        let (from, to) = if writes { (&end, &hold) } else { (&hold, &end) };
        nix::unistd::write(from, &n.to_le_bytes()).unwrap();
        let mut got = [0; 64];
        assert_eq!(nix::unistd::read(to, &mut got), Ok(2));
        assert_eq!(got[..2], n.to_le_bytes());
    }
    drop(flipper);
    assert!(opened > 0 && refused > 0, "{opened} opened, {refused} refused");

    // The swaps may have left it under another name, once, and as it was.
    let contents: Vec<String> = folder
        .path()
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| std::fs::read_to_string(entry.path()).unwrap())
        .collect();
    assert_eq!(contents, [content]);
}

/// Another process, which ends with the thread that started it.
struct Flipper(Child);

impl Flipper {
    /// Starts it and waits until it flips.
    fn start(folder: &Path) -> Self {
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "pipeline::flipper::flips_when_it_is_told_to", "--nocapture"])
            .env(FOLDER, folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        let flips = said.any(|line| line.unwrap().contains("flipping"));
        assert!(flips, "the flipper ended before it began");
        Self(child)
    }
}

impl Drop for Flipper {
    fn drop(&mut self) {
        assert!(matches!(self.0.try_wait(), Ok(None)), "the flipper still flips");
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The other process; as a test of its own it has nothing to do.
#[test]
fn flips_when_it_is_told_to() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let at = |name: &str| Path::new(&folder).join(name);
    let flip = |other: &str| {
        renameat2(AT_FDCWD, &at("pipe"), AT_FDCWD, &at(other), RenameFlags::RENAME_EXCHANGE).unwrap();
    };
    flip("other");
    flip("other");
    writeln!(std::io::stdout(), "flipping").unwrap();
    loop {
        for other in OTHERS {
            flip(other);
            flip(other);
        }
    }
}

//! What hostile volumes hold, and that none of it is ever read.

use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::unistd::mkfifo;

use super::*;

const CANARY: &str = "canary-7f3a";

/// A volume, and beside it a canary that must never be read.
fn volume() -> (tempfile::TempDir, PathBuf, Outputs) {
    let base = tempfile::tempdir().unwrap();
    fs::create_dir_all(base.path().join("secrets")).unwrap();
    fs::write(base.path().join("secrets/canary"), CANARY).unwrap();
    let root = base.path().join("volume");
    fs::create_dir(&root).unwrap();
    let outputs = Outputs::below(&root).unwrap();
    (base, root, outputs)
}

fn refusal(outputs: &Outputs, path: &str) -> String {
    match outputs.find(path, Depth::Recursive) {
        Err(error) => {
            assert_eq!(error.code, "upload_refused", "{error}");
            error.message
        }
        Ok(found) => panic!("{path}: {found:?}"),
    }
}

#[test]
fn a_file_is_read_and_a_missing_path_is_told_apart() {
    let (_base, root, outputs) = volume();
    fs::create_dir(root.join("deep")).unwrap();
    fs::write(root.join("deep/file"), "content").unwrap();
    let Found::File(file) = outputs.find("./deep/file", Depth::Flat).unwrap() else { panic!() };
    assert_eq!((file.size, file.name()), (7, ("file".to_owned(), false)));
    let mut text = String::new();
    outputs.open(&file).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "content");
    assert!(matches!(outputs.find("deep/none", Depth::Flat).unwrap(), Found::Missing));
    assert!(matches!(outputs.find("none/none", Depth::Flat).unwrap(), Found::Missing));
}

#[test]
fn no_link_is_followed_whether_it_is_the_file_or_on_the_way() {
    let (base, root, outputs) = volume();
    let secrets = base.path().join("secrets");
    symlink(secrets.join("canary"), root.join("absolute")).unwrap();
    symlink("../secrets/canary", root.join("relative")).unwrap();
    symlink(&secrets, root.join("folder")).unwrap();
    symlink("/proc/self/root", root.join("proc")).unwrap();
    symlink(".", root.join("here")).unwrap();
    for path in ["absolute", "relative", "folder", "folder/canary", "proc/etc/passwd", "here/absolute"] {
        let told = refusal(&outputs, path);
        assert!(told.contains("links are never followed"), "{told}");
    }
    let Found::Folder(listing) = outputs.find(".", Depth::Recursive).unwrap() else { panic!() };
    assert!(listing.files.is_empty() && listing.folders.is_empty(), "{listing:?}");
    assert_eq!(listing.skipped.len(), 5);
}

#[test]
fn pipes_sockets_and_devices_are_refused_at_once() {
    let (_base, root, outputs) = volume();
    mkfifo(&root.join("pipe"), Mode::S_IRWXU).unwrap();
    let _socket = UnixListener::bind(root.join("socket")).unwrap();
    for path in ["pipe", "socket"] {
        assert!(refusal(&outputs, path).contains("no regular file"));
    }
}

#[test]
fn a_hard_link_to_something_outside_is_refused_and_one_inside_is_fine() {
    let (base, root, outputs) = volume();
    fs::hard_link(base.path().join("secrets/canary"), root.join("planted")).unwrap();
    let Found::File(planted) = outputs.find("planted", Depth::Flat).unwrap() else { panic!() };
    let error = outputs.open(&planted).unwrap_err();
    assert!(error.message.contains("2 names of which 1 lie in the volume"), "{error}");
    fs::create_dir(root.join("deep")).unwrap();
    fs::write(root.join("own"), "x").unwrap();
    fs::hard_link(root.join("own"), root.join("deep/again")).unwrap();
    let Found::File(own) = outputs.find("own", Depth::Flat).unwrap() else { panic!() };
    outputs.open(&own).unwrap();
}

#[test]
fn a_listing_is_flat_or_recursive_and_in_order() {
    let (_base, root, outputs) = volume();
    fs::create_dir_all(root.join("out/b/c")).unwrap();
    for name in ["out/z", "out/a", "out/b/x", "out/b/c/y"] {
        fs::write(root.join(name), name).unwrap();
    }
    let paths = |depth| {
        let Found::Folder(listing) = outputs.find("out", depth).unwrap() else { panic!() };
        let files: Vec<String> = listing.files.iter().map(|file| file.path.display().to_string()).collect();
        (files.join(" "), listing.folders.len())
    };
    assert_eq!(paths(Depth::Flat), ("out/a out/z".to_owned(), 0));
    assert_eq!(paths(Depth::Recursive), ("out/a out/b/c/y out/b/x out/z".to_owned(), 2));
}

#[test]
fn a_name_that_is_no_text_is_written_out() {
    let name = OsStr::from_bytes(b"a\xff\n\xc3\xbc");
    assert_eq!(told(name), ("a\\xff\\x0a\u{fc}".to_owned(), true));
    assert_eq!(path_from_bytes(path_bytes(Path::new(name))), Path::new(name));
}

#[test]
fn what_is_swapped_for_a_link_while_it_is_read_never_gives_a_byte_of_the_canary() {
    let (base, root, outputs) = volume();
    let canary = base.path().join("secrets/canary");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for make in [0, 1] {
                    let _ = fs::remove_file(root.join("flip"));
                    let _ = if make == 0 {
                        fs::write(root.join("flip"), "fine")
                    } else {
                        symlink(&canary, root.join("flip"))
                    };
                }
            }
        });
        let mut read = 0;
        for _ in 0..10_000 {
            let Ok(Found::File(file)) = outputs.find("flip", Depth::Flat) else { continue };
            let Ok(mut file) = outputs.open(&file) else { continue };
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            assert!(!text.contains(CANARY));
            read += 1;
        }
        stop.store(true, Ordering::Relaxed);
        assert!(read > 0, "the race was run");
    });
}

#[test]
fn what_is_removed_is_the_named_thing_and_never_what_a_link_leads_to() {
    let (base, root, outputs) = volume();
    fs::create_dir_all(root.join("out/deep")).unwrap();
    fs::write(root.join("out/deep/file"), "x").unwrap();
    symlink(base.path().join("secrets"), root.join("link")).unwrap();
    outputs.remove("out").unwrap();
    outputs.remove("link").unwrap();
    outputs.remove("nothing").unwrap();
    assert!(!root.join("out").exists() && root.join("link").symlink_metadata().is_err());
    assert!(base.path().join("secrets/canary").exists());
    assert!(outputs.remove("link/canary").is_ok());
}

#[test]
fn a_file_is_taken_out_by_moving_or_by_copying() {
    let (base, root, outputs) = volume();
    fs::write(root.join("a"), "moved").unwrap();
    fs::write(root.join("b"), "copied").unwrap();
    for (name, how) in [("a", Taking::Move), ("b", Taking::Copy)] {
        let Found::File(file) = outputs.find(name, Depth::Flat).unwrap() else { panic!() };
        outputs.take(&file, &base.path().join(format!("kept-{name}")), how).unwrap();
    }
    assert_eq!(fs::read_to_string(base.path().join("kept-a")).unwrap(), "moved");
    assert_eq!(fs::read_to_string(base.path().join("kept-b")).unwrap(), "copied");
    assert!(!root.join("a").exists() && root.join("b").exists());
}

//! Host paths on a real file system: links, folders above and below, identities.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use super::super::section::PolicyError;
use super::*;

fn denied_settings(settings: Value, binds: &[String]) -> Vec<String> {
    let policy = policy(settings);
    let mut asked = Asked::default();
    asked.host().binds = Some(binds.to_vec());
    policy.judge(&asked.request()).denied.into_iter().map(|denied| denied.setting).collect()
}

fn bind(path: &Path) -> Vec<String> {
    vec![format!("{}:/x", path.display())]
}

/// A temporary folder by its real path.
fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().canonicalize().unwrap();
    (folder, path)
}

#[test]
fn the_default_grants_data_and_denies_the_system_and_all_that_holds_it() {
    for path in ["/data", "/mnt/x", "/home/user/data", "/srv/data", "/opt", "/libation", "/etcetera"] {
        let expected: &[&str] = if path == "/libation" { &["policy.binds.denied"] } else { &[] };
        assert_eq!(denied_settings(json!({}), &bind(Path::new(path))), expected, "{path}");
    }
    for path in [
        "/",
        "//",
        "/data/..",
        "/etc",
        "/etc/passwd",
        "/boot",
        "/dev/sda",
        "/proc/1/root",
        "/root/.ssh",
        "/run/docker.sock",
        "/var/run/docker.sock",
        "/sys",
        "/usr/bin",
        "/bin",
        "/sbin",
        "/lib",
        "/lib64/x",
        "/var/lib/docker/volumes",
        "/var/lib",
        "/var",
        "/data/../etc",
    ] {
        let denied = denied_settings(json!({}), &bind(Path::new(path)));
        assert!(denied.contains(&"policy.binds.denied".to_owned()), "{path}: {denied:?}");
    }
}

#[test]
fn the_open_profile_grants_every_path() {
    for path in ["/", "/etc", "/var/run/docker.sock", "/srv/docker.sock"] {
        assert!(denied_settings(json!({ "profile": "open" }), &bind(Path::new(path))).is_empty(), "{path}");
    }
}

#[test]
fn a_link_is_judged_by_where_it_leads() {
    let (_keep, base) = folder();
    fs::create_dir(base.join("data")).unwrap();
    symlink("/etc", base.join("data/innocent")).unwrap();
    symlink(base.join("data"), base.join("alias")).unwrap();
    let settings = json!({ "binds": { "roots": [base.join("alias")] } });
    assert!(
        denied_settings(settings.clone(), &bind(&base.join("data"))).is_empty(),
        "a root may be a link itself"
    );
    assert!(denied_settings(settings.clone(), &bind(&base.join("alias/new"))).is_empty());
    let denied = denied_settings(settings, &bind(&base.join("alias/innocent/ssl")));
    assert_eq!(denied, ["policy.binds.roots", "policy.binds.denied"]);
}

#[test]
fn a_root_is_compared_by_whole_names() {
    let settings = json!({ "binds": { "roots": ["/data/a", "/read:ro"] } });
    assert!(
        denied_settings(settings.clone(), &["/data/a/b:/x".to_owned(), "/read/x:/y:ro,z".to_owned()])
            .is_empty()
    );
    for outside in ["/data/ab:/x", "/data:/x", "/data/a/../b:/x", "/read/x:/y", "/read/x:/y:z"] {
        assert_eq!(
            denied_settings(settings.clone(), &[outside.to_owned()]),
            ["policy.binds.roots"],
            "{outside}"
        );
    }
}

#[test]
fn what_the_worker_made_is_not_judged_and_is_remembered() {
    let (_keep, base) = folder();
    let made = base.join("scratch");
    fs::create_dir(&made).unwrap();
    let policy = policy(json!({ "profile": "strict", "images": { "allowed": ["*"] } }));
    let mut asked = Asked::default();
    asked.host().binds = Some(bind(&made));
    policy.apply(&asked.queue, &mut asked.body);
    assert_eq!(policy.judge(&asked.request()).denied.len(), 1);
    asked.made = vec![made.clone()];
    let granted = policy.judge(&asked.request()).into_result().unwrap();
    let found = fs::metadata(&made).unwrap();
    let expected =
        MountIdentity { source: made, target: "/x".to_owned(), device: found.dev(), inode: found.ino() };
    assert_eq!(granted.mounts.first(), Some(&expected));
    assert!(expected.compare(found.dev(), found.ino()).is_ok());
    let swapped = expected.compare(found.dev(), found.ino() + 1).unwrap_err().to_string();
    assert!(swapped.contains("scratch was replaced"), "{swapped}");
}

#[test]
fn mounts_and_folders_to_write_in_are_judged_like_binds() {
    use bollard::models::{Mount, MountType};
    let mount = |typ: Option<MountType>, read_only: bool| Mount {
        typ,
        source: Some("/archive/x".to_owned()),
        target: Some("/x".to_owned()),
        read_only: Some(read_only),
        ..Mount::default()
    };
    let settings = json!({ "binds": { "roots": ["/archive:ro"] } });
    let count = |change: &dyn Fn(&mut Asked)| {
        let policy = policy(settings.clone());
        let mut asked = Asked::default();
        change(&mut asked);
        policy.judge(&asked.request()).denied.len()
    };
    assert_eq!(count(&|asked| asked.host().mounts = Some(vec![mount(Some(MountType::BIND), true)])), 0);
    assert_eq!(count(&|asked| asked.host().mounts = Some(vec![mount(Some(MountType::BIND), false)])), 1);
    assert_eq!(count(&|asked| asked.host().mounts = Some(vec![mount(None, false)])), 1);
    assert_eq!(count(&|asked| asked.host().mounts = Some(vec![mount(Some(MountType::VOLUME), false)])), 1);
    assert_eq!(count(&|asked| asked.host().mounts = Some(vec![mount(Some(MountType::TMPFS), false)])), 0);
    assert_eq!(count(&|asked| asked.written = vec!["/archive".into()]), 1);
    assert_eq!(count(&|asked| asked.host().binds = Some(vec!["/archive:/x:ro:rw".to_owned()])), 1);
    assert_eq!(count(&|asked| asked.host().binds = Some(vec!["/anonymous".to_owned()])), 0);
}

#[test]
fn an_image_mount_is_an_image() {
    use bollard::models::{Mount, MountType};
    let told = denials(json!({ "images": { "allowed": ["busybox"] } }), |asked| {
        let source = Some("evil/data".to_owned());
        asked.host().mounts = Some(vec![Mount { typ: Some(MountType::IMAGE), source, ..Mount::default() }]);
    });
    assert!(told.contains("image mount \"evil/data\"") && told.contains("policy.images.allowed"), "{told}");
}

#[test]
fn a_loop_of_links_is_denied_because_nobody_can_follow_it() {
    let (_keep, base) = folder();
    symlink("b", base.join("a")).unwrap();
    symlink("a", base.join("b")).unwrap();
    assert_eq!(denied_settings(json!({}), &bind(&base.join("a"))), ["policy.binds.denied"]);
}

#[test]
fn a_device_is_judged_by_where_its_link_leads() {
    use bollard::models::DeviceMapping;
    let (_keep, base) = folder();
    symlink("/dev/null", base.join("fuse")).unwrap();
    let denied = |devices: Value| {
        let path = Some(base.join("fuse").display().to_string());
        !denials(json!({ "devices": devices }), |asked| {
            asked.host().devices =
                Some(vec![DeviceMapping { path_on_host: path, ..DeviceMapping::default() }]);
        })
        .is_empty()
    };
    assert!(denied(json!([base.join("fuse")])));
    assert!(!denied(json!([base.join("fuse"), "/dev/null"])));
    assert!(!denied(json!(["*"])));
}

#[test]
fn elsewhere_paths_are_judged_by_their_text() {
    let (_keep, base) = folder();
    symlink("/etc", base.join("link")).unwrap();
    let surroundings = Surroundings { files: HostFiles::Elsewhere, ..Surroundings::default() };
    let policy = Policy::new(&PolicySettings::default(), surroundings).unwrap();
    let mut asked = Asked::default();
    asked.host().binds = Some(bind(&base.join("link")));
    let verdict = policy.judge(&asked.request());
    assert!(verdict.denied.is_empty() && verdict.mounts.is_empty());
    asked.host().binds = Some(bind(Path::new("/etc")));
    assert_eq!(policy.judge(&asked.request()).denied.len(), 1);
}

#[test]
fn a_root_that_everyone_can_replace_is_refused_at_the_start() {
    let (_keep, base) = folder();
    let root = base.join("open/data");
    fs::create_dir_all(&root).unwrap();
    fs::set_permissions(base.join("open"), fs::Permissions::from_mode(0o777)).unwrap();
    let settings: PolicySettings = serde_json::from_value(json!({ "binds": { "roots": [root] } })).unwrap();
    let error = Policy::new(&settings, Surroundings::default()).unwrap_err();
    assert!(matches!(&error, PolicyError::Root { folder, .. } if *folder == base.join("open")), "{error}");
    fs::set_permissions(base.join("open"), fs::Permissions::from_mode(0o1777)).unwrap();
    assert!(Policy::new(&settings, Surroundings::default()).is_ok());
}

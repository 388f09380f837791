//! Volumes: who may enter them, what they are called, and that nothing of them is left behind.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command as Process;

use serde_json::json;

use super::*;

#[tokio::test]
async fn the_default_volume_is_always_mounted_and_mentions_of_it_are_one() {
    let rig = Rig::new(request(&[
        json!({"$": "TemporaryVolume"}),
        json!({"$": "VolumePath", "filename": "a/b.txt"}),
        json!({"$": "TemporaryVolume", "id": "scratch"}),
        json!({"$": "VolumePath", "filename": "c", "volume": {"$": "TemporaryVolume", "id": "scratch"}}),
        json!(["x", {"$": "VolumePath", "filename": "d"}, true]),
    ]))
    .await;
    let [default, path, scratch, in_scratch, list] = &rig.plan.arguments[..] else { panic!() };
    assert_eq!(*path, format!("{default}/a/b.txt"));
    assert_eq!(*in_scratch, format!("{scratch}/c"));
    assert_eq!(*list, format!("['x', '{default}/d', True]"));
    assert_eq!(rig.plan.mounts.len(), 2, "{:?}", rig.plan.mounts);
    assert!(rig.plan.mounts.iter().all(|mount| mount.kind == MountKind::Folder));
}

#[tokio::test]
async fn transforms_stand_in_the_entrypoint_and_options_too() {
    let mut request = request(&[]);
    request.entrypoint =
        Some(vec![Arg::from("sh"), Arg::from(spec(json!({"$": "VolumePath", "filename": "x"})))]);
    let environment = Arg::from_value(json!({"OUT": {"$": "VolumePath", "filename": "y"}}), "args").unwrap();
    request.options.insert("environment".to_owned(), environment);
    let rig = Rig::new(request).await;
    let entrypoint = rig.plan.entrypoint.clone().unwrap();
    assert!(entrypoint[1].ends_with("/x"), "{entrypoint:?}");
    let out = rig.plan.options["environment"].to_value()["OUT"].as_str().unwrap().to_owned();
    assert_eq!(out.strip_suffix("/y"), entrypoint[1].strip_suffix("/x"));
}

#[tokio::test]
async fn any_container_user_may_write_and_no_other_local_user_may_read() {
    let rig = Rig::new(request(&[json!({"$": "TemporaryVolume"})])).await;
    let volume = rig.host(&rig.plan.arguments[0]);
    assert_eq!(volume.metadata().unwrap().mode() & 0o7777, 0o777);
    std::fs::write(volume.join("secret"), "x").unwrap();
    let nobody = |script: &str, path: &Path| {
        let nobody = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "sh", "-c", script, "sh"];
        Process::new("setpriv").args(nobody).arg(path).stderr(Stdio::null()).status().unwrap().success()
    };
    assert!(nobody("true", &volume), "setpriv works here");
    assert!(!nobody("ls \"$1\"", &volume));
    assert!(!nobody("cat \"$1\"", &volume.join("secret")));
    assert!(!nobody("echo > \"$1\"", &volume.join("new")));
    let ran = rig.run("echo x > $1/f; chmod 0000 $1/f; mkdir -p $1/d/e; chmod 0000 $1/d/e $1/d").await;
    ran.assert_clean();
}

#[tokio::test]
async fn a_volume_can_be_made_elsewhere_and_with_another_mode() {
    let elsewhere = tempfile::tempdir().unwrap();
    let host_dir = elsewhere.path().join("new");
    let rig = Rig::new(request(&[
        json!({"$": "TemporaryVolume", "id": "a", "host_dir": host_dir, "mode": 0o2750}),
    ]))
    .await;
    let volume = rig.host(&rig.plan.arguments[0]);
    assert!(volume.starts_with(&host_dir));
    assert_eq!(volume.metadata().unwrap().mode() & 0o7777, 0o750);
    assert_eq!(volume.parent().unwrap().metadata().unwrap().mode() & 0o777, 0o700);
    rig.run("true").await.assert_clean();
    assert!(walk(&host_dir).iter().all(|path| path.ends_with("longshore-detached")));
}

#[tokio::test]
async fn a_staging_that_fails_leaves_nothing_behind() {
    let work_dir = tempfile::tempdir().unwrap();
    let attempt = Attempt::detached(Task::new("docker_run", ArgMap::new()));
    let request = request(&[json!({"$": "NamedOutputPipe", "name": "out"}), json!({"$": "GirderToken"})]);
    let error = Pipeline::stage(request, &attempt, &Settings::new(work_dir.path())).await.err().unwrap();
    assert_eq!(error.code, "bad_argument");
    assert_eq!(walk(work_dir.path()).len(), 1, "{:?}", walk(work_dir.path()));
}

#[tokio::test]
async fn two_mounts_at_one_place_are_refused() {
    let bind = |host: &str| json!({"$": "BindMountVolume", "host_path": host, "container_path": "/data"});
    let error = Rig::with(request(&[bind("/a"), bind("/b")]), |_| {}).await.err().unwrap();
    assert!(error.message.contains("/a and /b would both be mounted at /data"), "{error}");
    Rig::new(request(&[bind("/a"), bind("/a")])).await;
}

#[tokio::test]
async fn a_result_hook_gets_the_host_path_after_success_only() {
    let hooks = vec![spec(json!({"$": "VolumePath", "filename": "out"}))];
    let mut rig = Rig::new(Request { result_hooks: hooks, ..Request::default() }).await;
    let exit = |code| longshore::pipeline::Exit { code, oom_killed: false };
    assert_eq!(rig.pipeline.finish(&exit(1)).await.unwrap(), Value::Null);
    let value = rig.pipeline.finish(&exit(0)).await.unwrap();
    let path = value[0].as_str().unwrap();
    assert!(Path::new(path).starts_with(rig.work_dir.path()), "{path}");
}

/// What the worker may not remove is removed with the cleaner's help, and only then is the cleaner asked.
#[tokio::test]
async fn the_cleaner_is_asked_only_for_what_the_worker_may_not_remove() {
    struct Chattr(Mutex<u32>);
    #[async_trait]
    impl Cleaner for Chattr {
        async fn clean(&self, folder: &Path) -> Result<(), TaskError> {
            *self.0.lock().unwrap() += 1;
            assert!(Process::new("chattr").args(["-R", "-i"]).arg(folder).status().unwrap().success());
            Ok(())
        }
    }
    let rig = Rig::new(request(&[json!({"$": "TemporaryVolume"})])).await;
    let volume = rig.host(&rig.plan.arguments[0]);
    std::fs::create_dir(volume.join("d")).unwrap();
    std::fs::write(volume.join("d/kept"), "x").unwrap();
    std::fs::set_permissions(volume.join("d/kept"), std::fs::Permissions::from_mode(0o000)).unwrap();
    let immutable = Process::new("chattr").arg("+i").arg(volume.join("d/kept")).status();
    assert!(immutable.is_ok_and(|status| status.success()), "the file system knows immutable files");
    let cleaner = Chattr(Mutex::new(0));
    rig.pipeline.cleanup(&cleaner).await;
    assert_eq!(*cleaner.0.lock().unwrap(), 1);
    assert_eq!(walk(rig.work_dir.path()).len(), 1, "{:?}", walk(rig.work_dir.path()));
}

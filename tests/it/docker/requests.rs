//! What a task asks for, as its container sees it; what policy refuses; names and labels.

use std::collections::HashSet;

use longshore::error::ErrorClass;
use longshore::task::{Arg, Fence, TaskId};
use serde_json::{Value, json};

use super::bench::{Bench, script, script_with, settings, task};
use crate::support::docker::{containers_labelled, docker};
use crate::support::image::Image;

#[tokio::test]
async fn each_option_is_seen_from_inside() {
    let bench = Bench::new().await;
    let seen = [
        (json!({"environment": {"A": "1 2", "B": true}}), "echo $A:$B", "1 2:True"),
        (json!({"environment": ["A=x"]}), "echo $A", "x"),
        (json!({"working_dir": "/tmp"}), "pwd", "/tmp"),
        (json!({"user": "65534:1"}), "echo $(id -u):$(id -g)", "65534:1"),
        (json!({"hostname": "ship"}), "hostname", "ship"),
        (json!({"network": "none"}), "ls /sys/class/net | tr '\\n' ' '", "lo "),
        (json!({"network_mode": "none"}), "ls /sys/class/net | wc -l", "1"),
        (json!({"network_disabled": true}), "ls /sys/class/net | wc -l", "1"),
        (json!({"read_only": true}), "touch /x 2>/dev/null; echo $?", "1"),
        (
            json!({"ulimits": [{"Name": "nofile", "Soft": 100, "Hard": 200}]}),
            "echo $(ulimit -Sn) $(ulimit -Hn)",
            "100 200",
        ),
        (
            json!({"tmpfs": {"/scratch": "size=1m"}}),
            "df -k /scratch | tail -1 | awk '{print $1,$2}'",
            "tmpfs 1024",
        ),
        (json!({"shm_size": "1m"}), "df -k /dev/shm | tail -1 | awk '{print $2}'", "1024"),
        (
            json!({"mem_limit": "48m"}),
            "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max",
            "50331648",
        ),
        (json!({"extra_hosts": {"pier": "10.1.2.3"}}), "grep pier /etc/hosts | awk '{print $1}'", "10.1.2.3"),
        (json!({"dns": ["10.9.9.9"]}), "awk '/nameserver/ {print $2}' /etc/resolv.conf", "10.9.9.9"),
        (json!({"group_add": ["4242"]}), "id -G | tr ' ' '\\n' | grep -c 4242", "1"),
        (json!({"init": true}), "ps -o args | sed -n 2p | cut -c1-10", "/sbin/dock"),
        (json!({"domainname": "example.org"}), "cat /proc/sys/kernel/domainname", "example.org"),
        (
            json!({"sysctls": {"net.ipv4.ip_default_ttl": "42"}}),
            "cat /proc/sys/net/ipv4/ip_default_ttl",
            "42",
        ),
        (
            json!({"tty": true, "detach": true, "stdin_open": true, "remove": true, "auto_remove": true}),
            "test -t 1; echo $?",
            "1",
        ),
    ];
    for (options, text, expected) in seen {
        let told = bench.run(script_with(text, &options)).await;
        assert_eq!(told.stdout().trim_end_matches('\n'), expected, "{options}");
    }
}

/// Docker's own way to make it costs as much as the rest of a short container: the worker takes another.
#[tokio::test]
async fn a_container_without_network_knows_itself_and_nobody_else() {
    let bench = Bench::new().await;
    let alone = json!({"network_mode": "none", "user": "0:0"});
    let seen = [
        ("ls /sys/class/net", "lo"),
        ("ping -c 1 -W 5 localhost >/dev/null && echo heard", "heard"),
        // The engine would have copied the host's.
        ("wc -c </etc/resolv.conf", "0"),
        ("ip route | wc -l", "0"),
        ("ping -c 1 -W 1 10.0.0.1 2>&1 | grep -o 'unreachable'", "unreachable"),
        ("echo 127.0.0.2 pier >>/etc/hosts && ping -c 1 -W 5 pier >/dev/null && echo heard", "heard"),
        ("grep -c pier /etc/hosts || true", "0"),
    ];
    for (text, expected) in seen {
        let told = bench.run(script_with(text, &alone)).await;
        assert_eq!(told.stdout().trim_end_matches('\n'), expected, "{text}");
    }
    let told = bench
        .run(script_with(
            "stat -c '%a %u' /etc/hosts; id -u; cat /etc/hosts",
            &json!({"network_mode": "none", "user": "65534"}),
        ))
        .await;
    assert!(told.stdout().starts_with("644 0\n65534\n127.0.0.1\tlocalhost\n"), "{}", told.stdout());

    let namespace = bench.run(script_with("readlink /proc/self/ns/net", &alone)).await;
    let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert!(namespace.stdout().starts_with("net:[") && namespace.stdout().trim() != ours.to_str().unwrap());

    let named = json!({"network_mode": "none", "extra_hosts": {"pier": "127.0.0.3"}});
    let told = bench.run(script_with("grep pier /etc/hosts | cut -f 1", &named)).await;
    assert_eq!(told.stdout(), "127.0.0.3\n");
    let own = json!({"network_mode": "none", "tmpfs": {"/etc": ""}});
    assert_eq!(
        bench.run(script_with("ls /etc | grep -c hosts", &own)).await.stdout(),
        "1\n",
        "the engine's own"
    );
    bench.settled().await;
}

#[tokio::test]
async fn arguments_are_the_texts_that_python_makes_of_them() {
    let bench = Bench::new().await;
    let args = json!({"image": "busybox:latest", "pull": "never", "entrypoint": ["printf", "%s|"],
        "container_args": [true, null, 2.5, 3, "a b", ""]});
    assert_eq!(bench.run(args).await.stdout(), "True|None|2.5|3|a b||\n");
}

#[tokio::test]
async fn a_host_folder_is_mounted_as_asked() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("in"), "from the host").unwrap();
    let path = folder.path().to_str().unwrap();
    let bench = Bench::new().await;
    let mut args = script("cat /mnt/data/in; touch /mnt/data/out 2>/dev/null; echo :$?");
    args["volumes"] = json!({path: {"bind": "/mnt/data", "mode": "ro"}});
    assert_eq!(bench.run(args.clone()).await.stdout(), "from the host:1\n");
    args["volumes"] = json!([format!("{path}:/mnt/data:rw")]);
    assert_eq!(bench.run(args).await.stdout(), "from the host:0\n");
    assert!(folder.path().join("out").exists());
}

#[tokio::test]
async fn an_unknown_option_names_the_nearest_one() {
    let bench = Bench::new().await;
    let error = bench.run(script_with("true", &json!({"enviroment": {}}))).await.error().clone();
    assert_eq!((error.code.as_str(), error.class), ("bad_argument", ErrorClass::Permanent));
    assert!(error.message.contains("did you mean \"environment\""), "{error}");
}

#[tokio::test]
async fn the_workers_default_options_give_way_to_the_tasks_own() {
    let bench = Bench::with(|settings| {
        settings.default_options.insert("hostname".to_owned(), json!("default"));
        settings.default_options.insert("working_dir".to_owned(), json!("/tmp"));
    })
    .await;
    let told = bench.run(script_with("hostname; pwd", &json!({"hostname": "own"}))).await;
    assert_eq!(told.stdout(), "own\n/tmp\n");
}

#[tokio::test]
async fn policy_refuses_before_anything_is_pulled_and_tells_all() {
    let policy = serde_json::from_value(json!({"profile": "standard"})).unwrap();
    let bench = Bench::under(settings(), &policy).await;
    let mut args = script_with("true", &json!({"privileged": true, "pid_mode": "host"}));
    args["image"] = json!("127.0.0.1:1/nobody/listens:1");
    args["pull"] = json!("missing");
    args["volumes"] = json!({"/etc": {"bind": "/mnt/etc", "mode": "ro"}});
    let told = bench.run(args).await;
    let error = told.error();
    assert_eq!((error.code.as_str(), error.class), ("denied_by_policy", ErrorClass::Permanent));
    for word in ["privileged=true", "policy.namespaces.host", "policy.binds.denied"] {
        assert!(error.message.contains(word), "{error}");
    }
    assert!(!told.said(longshore::events::LogStream::Worker).contains("pulling"));
}

#[tokio::test]
async fn policy_bounds_what_a_task_leaves_open() {
    let policy =
        serde_json::from_value(json!({"profile": "strict", "images": {"allowed": ["busybox"]}})).unwrap();
    let bench = Bench::under(settings(), &policy).await;
    let told = bench.run(script("id -u; grep NoNewPrivs /proc/self/status | awk '{print $2}'; grep CapBnd /proc/self/status | awk '{print $2}'")).await;
    assert_eq!(told.stdout(), "65534\n1\n0000000000000000\n");
}

#[tokio::test]
async fn an_audited_task_runs_and_its_record_tells_what_would_be_refused() {
    let policy = serde_json::from_value(json!({"profile": "standard", "mode": "audit"})).unwrap();
    let bench = Bench::under(settings(), &policy).await;
    let told = bench.run(script_with("echo ran", &json!({"ipc_mode": "host"}))).await;
    assert_eq!(told.stdout(), "ran\n");
    assert!(
        told.details.warnings.iter().any(|warning| warning.contains("policy.namespaces.host")),
        "{:?}",
        told.details.warnings
    );
}

#[tokio::test]
async fn a_host_path_that_was_swapped_after_its_check_stops_the_container() {
    use longshore::handler::{Handler, Slot};
    let folder = tempfile::tempdir().unwrap();
    let (asked, secret) = (folder.path().join("asked"), folder.path().join("secret"));
    std::fs::create_dir(&asked).unwrap();
    std::fs::create_dir(&secret).unwrap();
    let bench = Bench::new().await;
    let mut args = script("sleep 30");
    args["volumes"] = json!({asked.to_str().unwrap(): {"bind": "/mnt/data", "mode": "ro"}});
    let attempt = bench.attempt(args);
    let staged = bench.handler.stage(attempt.attempt.clone()).await.unwrap();
    std::fs::remove_dir(&asked).unwrap();
    std::os::unix::fs::symlink(&secret, &asked).unwrap();
    let started = std::time::Instant::now();
    let told = attempt.told(staged.run(Slot::default()).await).await;
    assert_eq!((told.error().code.as_str(), told.error().class), ("mount_swapped", ErrorClass::Permanent));
    assert!(told.error().message.contains(asked.to_str().unwrap()), "{}", told.error());
    assert!(started.elapsed() < std::time::Duration::from_secs(5));
}

#[tokio::test]
async fn a_container_carries_the_marks_of_its_attempt_and_a_name_of_ours() {
    let bench = Bench::new().await;
    let mut args = script_with("echo done", &json!({"name": "relq.*", "labels": {"study": "a"}}));
    args["remove_container"] = json!(false);
    let attempt = bench.attempt(args);
    let (task, fence) = (attempt.attempt.task().id.clone(), attempt.attempt.fence());
    let told = attempt.run().await;
    assert_eq!(told.stdout(), "done\n");
    let container = told.details.container.clone().unwrap();
    let format = r#"{{.Name}} {{index .Config.Labels "longshore.task"}} {{index .Config.Labels "longshore.fence"}} {{index .Config.Labels "longshore.attempt"}} {{index .Config.Labels "longshore.worker"}} {{index .Config.Labels "longshore.name"}} {{index .Config.Labels "study"}}"#;
    let marks = docker(&["inspect", "--format", format, &container]).await;
    let name = longshore::docker::labels::name(&task, fence);
    assert_eq!(marks, format!("/{name} {task} {fence} 1 bench relq.* a"));
}

#[tokio::test]
async fn only_our_own_container_is_removed_whatever_others_are_called() {
    let bench = Bench::new().await;
    let instance = format!("longshore.instance={}", bench.instance);
    let run = uuid::Uuid::now_v7().simple().to_string();
    let names = [format!("relq{run}-other1"), format!("zz-relq{run}-other2")];
    let mut decoys = Vec::new();
    for name in &names {
        decoys.push(docker(&["create", "--name", name, "busybox:latest", "true"]).await);
    }
    let told = bench.run(script_with("exit 1", &json!({"name": format!("relq{run}")}))).await;
    assert_eq!(told.error().exit_code, Some(1));
    let reaper = bench.reaper();
    let own = docker(&[
        "create",
        "--label",
        &instance,
        "--label",
        "longshore.task=gone",
        "--label",
        "longshore.fence=1",
        "busybox:latest",
        "true",
    ])
    .await;
    let live = docker(&[
        "create",
        "--label",
        &instance,
        "--label",
        "longshore.task=live",
        "--label",
        "longshore.fence=2",
        "busybox:latest",
        "true",
    ])
    .await;
    let lives = || HashSet::from([(TaskId::new("live").unwrap(), Fence(2))]);
    bench.settled().await;
    assert_eq!(reaper.clear(&lives).await.unwrap(), [own]);
    assert_eq!(containers_labelled(&instance).await, [live]);
    for decoy in &decoys {
        docker(&["rm", decoy]).await;
    }
}

#[tokio::test]
async fn a_container_that_is_to_be_kept_is_kept_after_its_end_and_not_reaped() {
    let bench = Bench::new().await;
    let mut args = script("exit 4");
    args["remove_container"] = json!(false);
    let told = bench.run(args).await;
    let container = told.details.container.clone().unwrap();
    bench.settled().await;
    assert!(bench.reaper().clear(&HashSet::new).await.unwrap().is_empty());
    assert_eq!(docker(&["inspect", "--format", "{{.State.ExitCode}}", &container]).await, "4");
}

#[tokio::test]
async fn an_image_made_for_gpus_runs_where_there_are_none_and_says_so() {
    let image = Image::from_busybox(&["LABEL com.nvidia.volumes.needed=nvidia_driver"]).await;
    let bench = Bench::new().await;
    let mut args = script("echo ran");
    args["image"] = json!(image.name());
    let told = bench.run(args).await;
    assert_eq!(told.stdout(), "ran\n");
    assert!(told.details.warnings[0].contains("made for GPUs"), "{:?}", told.details.warnings);
}

#[tokio::test]
async fn gpus_of_the_slot_are_asked_of_the_engine() {
    use longshore::handler::{Handler, Slot};
    let bench = Bench::new().await;
    let attempt = bench.attempt(script("true"));
    let staged = bench.handler.stage(attempt.attempt.clone()).await.unwrap();
    let slot = Slot { lane: 0, gpus: vec!["GPU-7".to_owned()] };
    let told = attempt.told(staged.run(slot).await).await;
    // There is none here: the engine says that it cannot give it, which shows that it was asked.
    let error = told.error();
    assert_eq!((error.code.as_str(), error.class), ("option_refused", ErrorClass::Permanent), "{error}");
    assert!(error.message.contains("gpu"), "{error}");
    assert_eq!(told.details.gpus, ["GPU-7"]);
}

#[test]
fn what_cannot_be_taken_is_refused_before_any_io() {
    use longshore::handler::Handler;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bench = runtime.block_on(Bench::with(|settings| "unix:///nowhere".clone_into(&mut settings.host)));
    let demand = |args: Value| bench.handler.demand(&task(args));
    assert_eq!(demand(json!({"image": "a/../b"})).unwrap_err().code, "image_name");
    assert_eq!(demand(json!({"image": 3})).unwrap_err().code, "bad_argument");
    let mut wanted = task(json!({"image": "busybox"}));
    wanted.resources.gpus = Some(2);
    wanted.args.insert("pull".to_owned(), Arg::from("never"));
    assert_eq!(bench.handler.demand(&wanted).unwrap().gpus, 2);
}

//! `docker-compose.yml`, the `Dockerfile` and the servers' settings beside them: what they name is there, and what they set
//! means something. `make compose` runs all of it for real.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Map, Value};

use crate::support::redis::Redis;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What the compose file means, its anchors and merges resolved, read by a parser of others.
fn compose() -> Value {
    let python = root().join("tests/.cache/girder/bin/python");
    let script = "import json, sys, yaml; print(json.dumps(yaml.safe_load(sys.stdin)))";
    let file = std::fs::File::open(root().join("docker-compose.yml")).unwrap();
    let output = Command::new(&python).args(["-c", script]).stdin(file).output();
    let output =
        output.unwrap_or_else(|error| panic!("{}: {error}; run scripts/test-servers", python.display()));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn services(compose: &Value) -> &Map<String, Value> {
    compose["services"].as_object().unwrap()
}

/// Those that run our image, with their names.
fn workers(compose: &Value) -> Vec<(&String, &Value)> {
    let ours = |service: &Value| service["image"].as_str().unwrap().starts_with("${WORKER_IMAGE");
    services(compose).iter().filter(|(_, service)| ours(service)).collect()
}

/// `${NAME:-default}` as compose replaces it where nobody sets NAME; the names are added to `seen`.
fn replaced(mut text: &str, seen: &mut BTreeSet<String>) -> String {
    let mut out = String::new();
    while let Some((before, rest)) = text.split_once("${") {
        let (variable, behind) = rest.split_once('}').expect("a variable ends");
        let (name, default) =
            variable.split_once(":-").unwrap_or_else(|| panic!("${{{variable}}} has no default"));
        seen.insert(name.to_owned());
        out.push_str(before);
        out.push_str(default);
        text = behind;
    }
    out + text
}

#[test]
fn every_setting_of_a_worker_is_one_and_its_brokers_are_of_a_known_kind() {
    let compose = compose();
    let workers = workers(&compose);
    assert!(workers.len() >= 4, "{workers:?}");
    for (name, worker) in workers {
        let state = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_longshore"));
        command.env_clear().env("LONGSHORE_CONFIG", "").env("LONGSHORE_STATE_DIR", state.path());
        for (variable, value) in worker["environment"].as_object().unwrap() {
            command.env(variable, replaced(value.as_str().unwrap(), &mut BTreeSet::new()));
        }
        let output =
            command.args(["config", "show", "--output", "json"]).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
        for broker in shown["settings"]["brokers"].as_array().unwrap() {
            let broker = broker.as_str().unwrap();
            let (scheme, host) = broker.split_once("://").unwrap();
            let known = longshore::broker::ADAPTERS.iter().any(|adapter| adapter.schemes.contains(&scheme));
            assert!(known, "{name}: no adapter is for {broker}");
            let host = host.rsplit('@').next().unwrap().split(':').next().unwrap();
            assert!(services(&compose).contains_key(host), "{name}: no service is called {host}");
            assert!(
                worker["depends_on"].as_object().unwrap().contains_key(host),
                "{name} does not wait for {host}"
            );
        }
        assert_eq!(
            shown["settings"]["work_dir"], "/tmp/longshore",
            "{name}: TMPDIR is where tasks are prepared"
        );
    }
}

#[test]
fn every_variable_of_the_compose_file_has_a_default_and_is_told_in_its_head() {
    let file = text("docker-compose.yml");
    let mut used = BTreeSet::new();
    for line in file.lines().filter(|line| !line.trim_start().starts_with('#')) {
        replaced(line, &mut used);
    }
    let head = file.lines().take_while(|line| line.starts_with('#') || line.is_empty());
    let told: BTreeSet<String> = head
        .filter_map(|line| line.strip_prefix("#   ")?.split_whitespace().next().map(str::to_owned))
        .filter(|word| word.contains('_') && word.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        .collect();
    assert_eq!(used, told);
}

#[test]
fn every_service_is_healthy_by_a_check_and_what_it_mounts_is_there() {
    let compose = compose();
    for (name, service) in services(&compose) {
        assert!(service["healthcheck"]["test"].is_array(), "{name} has no health check");
        for volume in service["volumes"].as_array().unwrap() {
            let volume = replaced(volume.as_str().unwrap(), &mut BTreeSet::new());
            let (source, inside) = volume.split_once(':').unwrap();
            if let Some(file) = source.strip_prefix("./") {
                assert!(root().join(file).exists(), "{name} mounts {file}, which is not there");
            } else if source.starts_with('/') {
                assert_eq!(source, inside, "{name}: the engine and the worker must name it alike");
            } else {
                assert!(
                    compose["volumes"].as_object().unwrap().contains_key(source),
                    "{name}: no volume {source}"
                );
            }
        }
    }
    for (name, worker) in workers(&compose) {
        let test = worker["healthcheck"]["test"].as_array().unwrap();
        let test: Vec<&str> = test.iter().map(|word| word.as_str().unwrap()).collect();
        assert_eq!(test, ["CMD", "container-entrypoint", "doctor", "--quick"], "{name}");
    }
}

#[test]
fn the_image_is_made_of_what_is_there_and_of_images_that_can_be_replaced() {
    let file = text("Dockerfile");
    let arguments: BTreeSet<&str> =
        file.lines().filter_map(|line| line.strip_prefix("ARG ")?.split('=').next()).collect();
    let compose = compose();
    for (name, worker) in workers(&compose) {
        for argument in worker["build"]["args"].as_object().unwrap().keys() {
            assert!(
                arguments.contains(argument.as_str()),
                "{name} sets {argument}, which the Dockerfile does not know"
            );
        }
    }
    for line in file.lines().filter_map(|line| line.strip_prefix("FROM ")) {
        assert!(line.starts_with("${"), "{line}: not every registry is in everybody's reach");
    }
    for line in
        file.lines().filter_map(|line| line.strip_prefix("COPY ")).filter(|line| !line.starts_with("--from"))
    {
        let source = line.split(' ').next().unwrap();
        assert!(root().join(source).exists(), "the Dockerfile copies {source}, which is not there");
    }
    let entrypoint = root().join("config/container-entrypoint");
    assert!(Command::new("sh").arg("-n").arg(&entrypoint).status().unwrap().success());
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(entrypoint).unwrap().permissions());
    assert_eq!(mode & 0o111, 0o111, "it can be run");
}

#[test]
fn the_entrypoint_goes_on_as_it_is_where_it_is_not_root() {
    let folder = tempfile::tempdir().unwrap();
    let stand_in = folder.path().join("longshore");
    std::fs::write(&stand_in, "#!/bin/sh\necho \"longshore $*\"\n").unwrap();
    assert!(Command::new("chmod").arg("755").arg(&stand_in).arg(folder.path()).status().unwrap().success());
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap());
    let run = |uid: &str| {
        let mut command = Command::new("sh");
        command.arg(root().join("config/container-entrypoint")).args(["worker", "-c", "2"]);
        command.env("PATH", &path).env("WORKER_UID", uid);
        command
            .env("LONGSHORE_STATE_DIR", folder.path().join("state"))
            .env("TMPDIR", folder.path().join("work"));
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    // As root, it would become that user; as root that is to stay root, or as anybody else, it changes nothing.
    assert_eq!(run("0"), "longshore worker -c 2\n");
    assert!(!folder.path().join("state").exists());
}

#[test]
fn nats_takes_its_settings_and_jetstream_is_bounded_and_on_disk() {
    let output =
        Command::new("nats-server").args(["-t", "-c"]).arg(root().join("config/nats.conf")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let file = text("config/nats.conf");
    for setting in ["store_dir", "max_file_store", "max_memory_store", "max_payload"] {
        assert!(file.lines().any(|line| line.trim_start().starts_with(setting)), "{setting}");
    }
}

#[tokio::test]
async fn redis_takes_its_settings_and_neither_evicts_nor_forgets() {
    // The test's own port, folder and address come behind those of the file, and outweigh them.
    let file = text("config/redis.conf");
    let settings: Vec<String> = file
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
        .filter(|line| !["port", "bind", "dir"].contains(&line.split(' ').next().unwrap()))
        .flat_map(|line| {
            let (name, value) = line.split_once(' ').unwrap();
            [format!("--{name}"), value.trim_matches('"').to_owned()]
        })
        .collect();
    assert!(settings.len() >= 10, "{settings:?}");
    let redis = Redis::with(|_| settings).await;
    let mut operator = redis.connection().await;
    for (name, value) in
        [("maxmemory-policy", "noeviction"), ("appendonly", "yes"), ("appendfsync", "everysec")]
    {
        let found: Vec<String> =
            redis::cmd("CONFIG").arg("GET").arg(name).query_async(&mut operator).await.unwrap();
        assert_eq!(found[1], value, "{name}");
    }
    // What workers are warned of at their start is not the case here.
    let longshore =
        crate::support::longshore::Longshore::with_settings(&format!("brokers = [\"{}\"]\n", redis.url()));
    let worker = longshore.worker(&[]).await;
    assert!(!worker.log().contains("WARN"), "{}", worker.log());
}

#[test]
fn rabbitmqs_settings_are_names_and_values() {
    let file = text("config/rabbitmq.conf");
    let settings: Vec<(&str, &str)> = file
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
        .map(|line| line.split_once(" = ").unwrap_or_else(|| panic!("{line}: is no setting")))
        .collect();
    let of = |name: &str| settings.iter().find(|(found, _)| *found == name).map(|(_, value)| *value);
    let compose = text("docker-compose.yml");
    let (user, password) = (of("default_user").unwrap(), of("default_pass").unwrap());
    assert!(
        compose.contains(&format!("amqp://{user}:{password}@rabbitmq:")),
        "workers log in as the file says"
    );
}

#[test]
fn the_unit_tells_systemd_when_it_is_ready_and_waits_until_what_runs_has_ended() {
    let unit = text("config/longshore.service");
    for line in ["Type=notify", "KillMode=mixed", "TimeoutStopSec=11min"] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
    // The engine mounts what is prepared for containers: a private /tmp would hide it.
    assert!(!unit.lines().any(|line| line.starts_with("PrivateTmp=")));
}

use super::super::types::Retention;
use super::*;
use crate::retry::RetryPolicy;
use crate::units::{Size, Span};

fn sources(environment: &[(&str, &str)]) -> Sources {
    let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Sources { file: FileChoice::None, environment, flags: Vec::new() }
}

#[test]
fn in_a_celery_workers_place_its_variables_queue_and_records_are_taken_over() {
    let environment = [("LONGSHORE_STATE_DIR", "/state"), ("GIRDER_WORKER_BROKER", "amqp://u:p@host//")];
    let settings = load(&sources(&environment)).unwrap().settings;
    assert_eq!(settings.brokers[0].expose(), "amqp://u:p@host//");
    assert_eq!(settings.worker.queues, ["celery"]);
    assert_eq!(settings.store.expose(), "sqlite:///state/longshore.db", "RabbitMQ keeps no records");
    let backed = [environment[0], environment[1], ("CELERY_RESULT_BACKEND", "redis://host/0")];
    let settings = load(&sources(&backed)).unwrap().settings;
    assert_eq!(settings.celery.result_backend.expose(), "redis://host/0");
    assert_eq!(settings.store.expose(), "redis://host/0", "workers that share results share records");
    let own = [environment[0], environment[1], ("LONGSHORE_BROKERS", "redis://own/0")];
    assert_eq!(load(&sources(&own)).unwrap().settings.brokers[0].expose(), "redis://own/0");
}

#[test]
fn in_the_place_of_a_celery_worker_on_redis_its_queues_are_meant() {
    for name in ["GIRDER_WORKER_BROKER", "CELERY_BROKER_URL"] {
        let environment = [(name, "redis://:x@host:6380/1"), ("CELERY_RESULT_BACKEND", "redis://other/0")];
        let settings = load(&sources(&environment)).unwrap().settings;
        assert_eq!(settings.brokers[0].expose(), "celery+redis://:x@host:6380/1");
        assert_eq!(settings.worker.queues, ["celery"]);
        assert_eq!(settings.store.expose(), "redis://:x@host:6380/1");
        assert_eq!(settings.celery.result_backend.expose(), "redis://other/0");
    }
    let own = [("CELERY_BROKER_URL", "redis://h"), ("LONGSHORE_BROKERS", "redis://own/0")];
    assert_eq!(load(&sources(&own)).unwrap().settings.brokers[0].expose(), "redis://own/0");
}

#[test]
fn the_queue_that_girder_itself_reads_is_refused_where_celery_is_spoken() {
    for broker in ["amqp://host//", "redis://host/0"] {
        let environment = [("CELERY_BROKER_URL", broker), ("LONGSHORE_WORKER__QUEUES", "local")];
        let refused = load(&sources(&environment)).unwrap_err().to_string();
        assert!(refused.contains("local") && refused.contains("Girder itself"), "{refused}");
    }
}

fn with_file(text: &str) -> (tempfile::TempDir, Sources) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("longshore.toml");
    std::fs::write(&path, text).unwrap();
    (folder, Sources { file: FileChoice::Named(path), ..sources(&[]) })
}

fn told(folder: &tempfile::TempDir, error: &ConfigError) -> String {
    error.to_string().replace(folder.path().to_str().unwrap(), "")
}

#[test]
fn the_template_alone_is_whole_and_says_what_the_code_says() {
    let loaded = load(&sources(&[("HOME", "/home/x")])).unwrap();
    let settings = loaded.settings;
    assert_eq!(settings.retry, RetryPolicy::default());
    let limits = crate::task::Limits::default();
    assert_eq!(settings.message.max_bytes, Size(limits.max_bytes as u64));
    assert_eq!(
        (settings.message.max_depth, settings.message.max_nodes),
        (limits.max_depth, limits.max_nodes)
    );
    assert_eq!(settings.work_dir, settings.state_dir.join("work"));
    assert_eq!(settings.store, settings.brokers[0]);
    assert!(settings.worker.concurrency >= 1 && settings.worker.staging_ahead >= 2);
    let week = Span::seconds(7 * 86_400);
    assert_eq!(
        settings.retention,
        Retention { succeeded: week, failed: Span::seconds(30 * 86_400), bytes: Size(1 << 30) }
    );
}

#[test]
fn every_key_of_the_template_has_a_comment_above_it() {
    let mut before = "";
    for line in TEMPLATE.lines() {
        if line.contains(" = ") && !line.starts_with('#') {
            assert!(before.starts_with('#'), "no comment above {line:?}");
        }
        before = line;
    }
}

#[test]
fn flags_outweigh_variables_and_these_the_file_and_this_the_defaults() {
    let (_folder, mut sources) =
        with_file("work_dir = \"/file\"\n[worker]\nconcurrency = 2\nname = \"file\"\nlease = \"30s\"\n");
    sources.environment = vec![
        ("TMPDIR".to_owned(), "/tmp/shared".to_owned()),
        ("LONGSHORE_WORKER__CONCURRENCY".to_owned(), "3".to_owned()),
        ("LONGSHORE_WORKER__NAME".to_owned(), "42".to_owned()),
    ];
    sources.flags = vec![Flag { flag: "--concurrency", key: "worker.concurrency", value: Value::from(4) }];
    let loaded = load(&sources).unwrap();
    assert_eq!(loaded.settings.worker.concurrency, 4);
    assert_eq!(loaded.settings.worker.name, "42");
    assert_eq!(loaded.settings.worker.lease, Span::seconds(30));
    assert_eq!(loaded.settings.work_dir, PathBuf::from("/file"));
    let origin = |key: &str| loaded.effective().into_iter().find(|e| e.key == key).unwrap().origin;
    assert_eq!(origin("worker.concurrency"), "--concurrency");
    assert_eq!(origin("worker.name"), "LONGSHORE_WORKER__NAME");
    assert!(origin("worker.lease").ends_with("/longshore.toml"));
    assert_eq!(origin("worker.queues"), "default");
}

#[test]
fn tmpdir_is_where_work_is_done_unless_something_of_ours_says_otherwise() {
    let loaded = load(&sources(&[("TMPDIR", "/scratch"), ("HOME", "/h")])).unwrap();
    assert_eq!(loaded.settings.work_dir, PathBuf::from("/scratch"));
    let loaded = load(&sources(&[("TMPDIR", "/scratch"), ("LONGSHORE_WORK_DIR", "/mine")])).unwrap();
    assert_eq!(loaded.settings.work_dir, PathBuf::from("/mine"));
}

#[test]
fn lists_and_tables_are_read_from_variables() {
    let loaded = load(&sources(&[
        ("LONGSHORE_BROKERS", "sqlite:/a.db, nats://u:secret@host:4222"),
        ("LONGSHORE_WORKER__QUEUES", "[\"a\", \"b\"]"),
        ("LONGSHORE_RESOURCES__CUSTOM", "{licence = 2}"),
        ("LONGSHORE_RESOURCES__CUSTOM__SCANNER", "1"),
        ("LONGSHORE_RESOURCES__MEMORY", "4g"),
        ("LONGSHORE_RULES", "[{image = \"*/gpu*\", gpus = 1}]"),
        ("HOME", "/h"),
    ]))
    .unwrap();
    let settings = loaded.settings;
    assert_eq!(settings.brokers[1].expose(), "nats://u:secret@host:4222");
    assert!(!format!("{:?}", settings.brokers).contains("secret"));
    assert_eq!(settings.worker.queues, ["a", "b"]);
    assert_eq!(settings.resources.custom.get("licence"), Some(&2));
    assert_eq!(settings.resources.custom.get("scanner"), Some(&1));
    assert_eq!(settings.resources.memory, Size(4 << 30));
    assert!(settings.rules[0].image.matches("lab/gpu-train:1"));
    assert!(!settings.rules[0].image.matches("busybox"));
}

#[test]
fn everything_wrong_in_a_file_is_told_at_once_with_its_line() {
    let (folder, sources) = with_file(
        "stat_dir = \"/x\"\n\n[worker]\nconcurency = 4\nlease = \"soon\"\npoison_limit = -1\n\
         disk_high_water = \"most\"\nqueues = \"one\"\n[log]\nlevel = \"loud\"\n[[rules]]\nimage = \"a\"\n\
         [[rules]]\nimag = \"b\"\n[wroker]\nx = 1\n[resources]\ncustom = { licence = \"two\" }\n",
    );
    insta::assert_snapshot!(told(&folder, &load(&sources).unwrap_err()));
}

#[test]
fn broken_toml_and_a_missing_file_are_told_with_their_place() {
    let (folder, sources) = with_file("state_dir = \"/x\"\n[worker\n");
    insta::assert_snapshot!(told(&folder, &load(&sources).unwrap_err()));
    let missing = Sources { file: FileChoice::Named("/nowhere/a.toml".into()), ..self::sources(&[]) };
    let error = load(&missing).unwrap_err().to_string();
    assert!(error.starts_with("/nowhere/a.toml: cannot be read:"), "{error}");
}

#[test]
fn wrong_variables_are_told_by_name_with_the_nearest_one() {
    let error = load(&sources(&[
        ("LONGSHORE_WORKER__CONCURENCY", "2"),
        ("LONGSHORE_WORKER_LEASE", "2s"),
        ("LONGSHORE_ZZZ", "2"),
        ("LONGSHORE_WORKER__CONCURRENCY", "many"),
        ("LONGSHORE_CONFIG", "/ignored/here"),
        ("LONGSHORE_EVENTS__AGE", "-3"),
        ("LONGSHORE_RESOURCES__CUSTOM", "2"),
        ("HOME", "/h"),
    ]))
    .unwrap_err();
    insta::assert_snapshot!(error.to_string());
}

#[test]
fn values_that_no_worker_could_work_with_are_told_with_their_place() {
    let (folder, mut sources) = with_file("[worker]\nlease = \"0s\"\npoison_limit = 0\nqueues = []\n");
    sources.environment = vec![("LONGSHORE_WORKER__DISK_HIGH_WATER".to_owned(), "80".to_owned())];
    sources.flags = vec![Flag { flag: "--flag", key: "retry.max_attempts", value: Value::from(0) }];
    insta::assert_snapshot!(told(&folder, &load(&sources).unwrap_err()));
}

#[test]
fn the_engine_named_by_the_environment_outweighs_the_file_and_ours_outweighs_it() {
    let (_folder, mut sources) = with_file("[docker]\nhost = \"unix:///file.sock\"\n");
    assert_eq!(load(&sources).unwrap().settings.docker.host, "unix:///file.sock");
    let set = |sources: &mut Sources, name: &str, text: &str| {
        sources.environment.push((name.to_owned(), text.to_owned()));
    };
    set(&mut sources, "DOCKER_HOST", "unix:///their.sock");
    set(&mut sources, "DOCKER_CLIENT_TIMEOUT", "7");
    set(&mut sources, "GIRDER_WORKER_DOCKER_RUN_OPTIONS", "{\"network\": \"girder\", \"mem_limit\": 7}");
    let docker = load(&sources).unwrap().settings.docker;
    assert_eq!((docker.host.as_str(), docker.client_timeout), ("unix:///their.sock", Span::seconds(7)));
    assert_eq!(docker.default_options["network"], "girder");
    assert_eq!(docker.default_options["mem_limit"], 7);
    set(&mut sources, "LONGSHORE_DOCKER__HOST", "unix:///ours.sock");
    assert_eq!(load(&sources).unwrap().settings.docker.host, "unix:///ours.sock");
    set(&mut sources, "LONGSHORE_POLICY__PRIVILEGED", "true");
    assert_eq!(load(&sources).unwrap().settings.policy.privileged, Some(true));
    set(&mut sources, "LONGSHORE_POLICY__PRIVILEGD", "true");
    let told = load(&sources).unwrap_err().to_string();
    assert!(told.contains("LONGSHORE_POLICY__PRIVILEGD") && told.contains("privileged"), "{told}");
}

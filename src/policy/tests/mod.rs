mod denials;
mod fields;
mod law;
mod paths;
mod sections;

use bollard::models::{ContainerCreateBody, HostConfig};
use serde_json::{Value, json};

use super::*;

/// A request that owns its parts, harmless until a test changes it.
pub(super) struct Asked {
    task: TaskId,
    queue: QueueName,
    image: String,
    pull: Pull,
    body: ContainerCreateBody,
    made: Vec<PathBuf>,
    written: Vec<PathBuf>,
    worker_network: Option<String>,
    streams: Vec<String>,
    girder: Option<String>,
    insecure_girder: bool,
    gpus: u32,
    timeout: Option<Span>,
}

impl Default for Asked {
    fn default() -> Self {
        Self {
            task: TaskId::new("t1").unwrap(),
            queue: QueueName::default(),
            image: "busybox:latest".to_owned(),
            pull: Pull::Missing,
            body: ContainerCreateBody {
                host_config: Some(HostConfig::default()),
                ..ContainerCreateBody::default()
            },
            made: Vec::new(),
            written: Vec::new(),
            worker_network: None,
            streams: Vec::new(),
            girder: None,
            insecure_girder: false,
            gpus: 0,
            timeout: None,
        }
    }
}

impl Asked {
    fn host(&mut self) -> &mut HostConfig {
        self.body.host_config.get_or_insert_default()
    }

    fn request(&self) -> FinalRequest<'_> {
        FinalRequest {
            task: &self.task,
            queue: &self.queue,
            image: &self.image,
            pull: self.pull,
            body: &self.body,
            made: &self.made,
            written: &self.written,
            worker_network: self.worker_network.as_deref(),
            streams: &self.streams,
            girder: self.girder.as_deref(),
            insecure_girder: self.insecure_girder,
            gpus: self.gpus,
            timeout: self.timeout,
        }
    }
}

pub(super) fn policy(settings: Value) -> Policy {
    let settings: PolicySettings = serde_json::from_value(settings).unwrap();
    let surroundings = Surroundings {
        machine: Machine { cpus: Some(8.0), memory: Some(Size(16 << 30)) },
        files: HostFiles::Here,
        protected: vec!["/var/lib/longshore".into(), "/srv/docker.sock".into()],
        settings_file: "/etc/longshore.toml".into(),
    };
    Policy::new(&settings, surroundings).unwrap()
}

/// All denials of a request to which the policy was applied first, one per line.
pub(super) fn denials(settings: Value, ask: impl FnOnce(&mut Asked)) -> String {
    let policy = policy(settings);
    let mut asked = Asked::default();
    ask(&mut asked);
    policy.apply(&asked.queue, &mut asked.body);
    match policy.judge(&asked.request()).into_result() {
        Ok(_) => String::new(),
        Err(refusal) => refusal.to_string(),
    }
}

#[test]
fn a_harmless_request_is_granted_by_every_profile() {
    for profile in ["standard", "strict", "open"] {
        let images = json!({ "allowed": ["busybox"] });
        assert_eq!(denials(json!({ "profile": profile, "images": images }), |_| {}), "", "{profile}");
    }
}

#[test]
fn all_violations_are_told_together() {
    let all = denials(json!({}), |asked| {
        asked.host().privileged = Some(true);
        asked.host().network_mode = Some("host".to_owned());
        asked.host().binds = Some(vec!["/etc:/mnt:ro".to_owned()]);
    });
    insta::assert_snapshot!(all);
}

#[test]
fn an_audit_lets_a_task_run_as_it_asked_and_tells_what_it_would_refuse() {
    let policy =
        policy(json!({ "profile": "strict", "mode": "audit", "images": { "allowed": ["busybox"] } }));
    let mut asked = Asked::default();
    asked.host().privileged = Some(true);
    let before = asked.body.clone();
    policy.apply(&asked.queue, &mut asked.body);
    assert_eq!(asked.body, before);
    assert_eq!(policy.timeout(&asked.queue, None), None);
    let granted = policy.judge(&asked.request()).into_result().unwrap();
    let settings: Vec<&str> = granted.audited.iter().map(|denied| denied.setting.as_str()).collect();
    assert_eq!(settings, ["policy.privileged"]);
}

#[test]
fn strict_rules_give_every_container_their_bounds() {
    let policy = policy(json!({ "profile": "strict" }));
    let mut asked = Asked::default();
    policy.apply(&asked.queue, &mut asked.body);
    insta::assert_json_snapshot!(serde_json::to_value(&asked.body).unwrap(), @r#"
    {
      "User": "65534:65534",
      "HostConfig": {
        "Memory": 4294967296,
        "MemorySwap": 4294967296,
        "NanoCpus": 2000000000,
        "PidsLimit": 256,
        "CapDrop": [
          "ALL"
        ],
        "SecurityOpt": [
          "no-new-privileges:true"
        ]
      }
    }
    "#);
    assert_eq!(policy.timeout(&asked.queue, None), Some(Span::seconds(86_400)));
    assert_eq!(policy.timeout(&asked.queue, Some(Span::seconds(5))), Some(Span::seconds(5)));
}

#[test]
fn standard_rules_bound_processes_only_and_what_is_asked_for_stays() {
    let policy = policy(json!({}));
    let mut asked = Asked::default();
    policy.apply(&asked.queue, &mut asked.body);
    let expected = json!({ "HostConfig": { "PidsLimit": 4096 } });
    assert_eq!(serde_json::to_value(&asked.body).unwrap(), expected);
    let mut asked = Asked::default();
    asked.host().pids_limit = Some(-1);
    asked.host().memory = Some(1 << 30);
    let before = asked.body.clone();
    policy.apply(&asked.queue, &mut asked.body);
    assert_eq!(asked.body, before);
}

#[test]
fn a_period_is_bounded_by_a_quota_because_the_engine_takes_no_nano_cpus_beside_it() {
    let policy = policy(json!({ "cpus_max": 1.5 }));
    let mut asked = Asked::default();
    asked.host().cpu_period = Some(50_000);
    policy.apply(&asked.queue, &mut asked.body);
    assert_eq!((asked.host().cpu_quota, asked.host().nano_cpus), (Some(75_000), None));
}

#[test]
fn the_open_profile_and_an_audit_are_said_loudly() {
    assert!(policy(json!({})).warnings().is_empty());
    let warnings = policy(json!({ "mode": "audit", "queue": { "lab": { "profile": "open" } } })).warnings();
    insta::assert_snapshot!(warnings.join("\n"));
}

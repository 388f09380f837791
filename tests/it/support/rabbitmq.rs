//! A real RabbitMQ node, shared by all tests of a run, with a virtual host for each.
//!
//! # Decisions
//! - A node takes seven seconds to start, so the first test that asks starts it and the others find it by a file in the
//!   run's folder, under a lock. It ends with the runner's process (`rabbitmq-node`), since no single test owns it.
//! - Virtual hosts are made sixteen at a time: it is the command's start that costs, not the host.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::net::TcpStream;

use super::poll::eventually;
use super::process::free_port;

const READY_WITHIN: Duration = Duration::from_secs(60);
const BATCH: u32 = 16;

/// A virtual host of the shared node that no other test uses.
pub(crate) struct RabbitMq {
    address: String,
    vhost: String,
}

impl RabbitMq {
    /// A new, empty virtual host.
    pub(crate) async fn vhost() -> RabbitMq {
        let run = run_folder();
        std::fs::create_dir_all(&run).expect("a temporary folder can be made");
        let lock = File::create(run.join("rabbitmq.lock")).expect("the run's folder can be written");
        lock.lock().expect("a file can be locked");
        let folder = run.join("rabbitmq");
        let mut node = match Node::read(&folder) {
            Some(node) => node,
            None => Node::start(&folder).await,
        };
        if node.taken == node.made {
            node.make_vhosts(&folder);
        }
        node.taken += 1;
        node.write(&folder);
        RabbitMq { address: format!("127.0.0.1:{}", node.port), vhost: format!("test{}", node.taken) }
    }

    /// Where to connect: `amqp://guest:guest@127.0.0.1:PORT/VHOST`.
    pub(crate) fn url(&self) -> String {
        format!("amqp://guest:guest@{}/{}", self.address, self.vhost)
    }

    /// The node's host and port.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The virtual host's name.
    pub(crate) fn name(&self) -> &str {
        &self.vhost
    }
}

/// What the tests of a run tell each other about the node.
struct Node {
    port: u16,
    epmd_port: u16,
    made: u32,
    taken: u32,
}

impl Node {
    fn read(folder: &Path) -> Option<Node> {
        let text = std::fs::read_to_string(folder.join("node")).ok()?;
        let mut words = text.split_whitespace();
        let node = Node {
            port: words.next()?.parse().ok()?,
            epmd_port: words.next()?.parse().ok()?,
            made: words.next()?.parse().ok()?,
            taken: words.next()?.parse().ok()?,
        };
        Some(node)
    }

    fn write(&self, folder: &Path) {
        let text = format!("{} {} {} {}", self.port, self.epmd_port, self.made, self.taken);
        std::fs::write(folder.join("node"), text).expect("the node's folder can be written");
    }

    async fn start(folder: &Path) -> Node {
        std::fs::create_dir_all(folder).expect("the node's folder can be made");
        let (port, dist_port, epmd_port) = (free_port(), free_port(), free_port());
        let log = folder.join("node.log");
        let output = File::create(&log).expect("the node's log can be made");
        // A session of its own: the runner ends the process group of a test that is over.
        let mut node = Command::new("setsid")
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/rabbitmq-node"))
            .arg(folder)
            .args([port, dist_port, epmd_port].map(|port| port.to_string()))
            .arg(runner().to_string())
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a file can be shared"))
            .stderr(output)
            .spawn()
            .expect("setsid can be started");
        eventually(READY_WITHIN, &format!("RabbitMQ accepts on port {port}"), async || {
            let accepted = TcpStream::connect(("127.0.0.1", port)).await.is_ok();
            let ended = node.try_wait().expect("a child can be asked for its state");
            assert!(ended.is_none(), "RabbitMQ ended; run scripts/test-servers, or see {}", log.display());
            accepted.then_some(())
        })
        .await;
        Node { port, epmd_port, made: 0, taken: 0 }
    }

    fn make_vhosts(&mut self, folder: &Path) {
        let all = self.made + BATCH;
        let erlang = format!(
            r#"[begin V = iolist_to_binary(["test", integer_to_list(I)]), ok = rabbit_vhost:add(V, <<"tests">>),
               ok = rabbit_auth_backend_internal:set_permissions(
                   <<"guest">>, V, <<".*">>, <<".*">>, <<".*">>, <<"tests">>) end || I <- lists:seq({}, {all})]."#,
            self.made + 1
        );
        let output = Command::new("/usr/lib/rabbitmq/bin/rabbitmqctl")
            .args(["--node", "longshore@localhost", "eval", &erlang])
            .env("HOME", folder)
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .stdin(Stdio::null())
            .output()
            .expect("rabbitmqctl can be started; run scripts/test-servers");
        assert!(output.status.success(), "rabbitmqctl: {}", String::from_utf8_lossy(&output.stderr));
        self.made = all;
    }
}

/// One folder for all processes of a test run.
fn run_folder() -> PathBuf {
    let run = std::env::var("NEXTEST_RUN_ID").unwrap_or_else(|_| std::process::id().to_string());
    std::env::temp_dir().join(format!("longshore-tests-{run}"))
}

/// The process whose end is the end of the test run: nextest starts each test itself, `cargo test` runs all in one.
fn runner() -> nix::unistd::Pid {
    if std::env::var_os("NEXTEST_RUN_ID").is_some() { nix::unistd::getppid() } else { nix::unistd::getpid() }
}

//! A real RabbitMQ node, shared by all tests of a run, with a virtual host for each.

use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::process::free_port;
use super::shared::Shared;

const READY_WITHIN: Duration = Duration::from_secs(60);
/// It is the command's start that costs, not the host: so many are made at a time.
const BATCH: u32 = 16;

/// A virtual host of the shared node that no other test uses.
pub(crate) struct RabbitMq {
    address: String,
    vhost: String,
}

impl RabbitMq {
    /// A new, empty virtual host.
    pub(crate) async fn vhost() -> RabbitMq {
        let shared = Shared::claim("rabbitmq");
        let mut node = match shared.noted() {
            Some(node) => node,
            None => Node::start(&shared).await,
        };
        node.take_vhost(&shared)
    }

    /// Where to connect: `amqp://guest:guest@127.0.0.1:PORT/VHOST`.
    pub(crate) fn url(&self) -> String {
        format!("amqp://guest:guest@{}/{}", self.address, self.vhost)
    }

    /// Cuts every connection to the virtual host, as a network or an operator does.
    pub(crate) fn disconnect(&self) {
        let shared = Shared::claim("rabbitmq");
        let node: Node = shared.noted().expect("invariant: a virtual host is of a started node");
        let erlang = format!(
            r#"[rabbit_networking:close_connection(P, "cut") || P <- rabbit_networking:connections(),
               rabbit_reader:info(P, [vhost]) =:= [{{vhost, <<"{}">>}}]]."#,
            self.vhost
        );
        node.evaluate(&shared, &erlang);
    }

    /// Lets the node tell of each message that is published on the virtual host, on `amq.rabbitmq.trace`.
    pub(crate) fn trace(&self) {
        let shared = Shared::claim("rabbitmq");
        let node: Node = shared.noted().expect("invariant: a virtual host is of a started node");
        node.evaluate(&shared, &format!(r#"rabbit_trace:start(<<"{}">>)."#, self.vhost));
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

/// A node that no other test uses while this lives, and that can be stopped in the middle.
pub(crate) struct LoneRabbitMq {
    vhost: RabbitMq,
    node: Node,
    shared: Shared,
    hurt: Hurt,
}

/// What was done to a node, which the next test must not find.
enum Hurt {
    Not,
    Frozen(Pid),
    Alarmed,
}

/// RabbitMQ's own bound on its memory, as a share of the machine's.
const WATERMARK: &str = "0.4";

impl LoneRabbitMq {
    /// A new, empty virtual host of it.
    pub(crate) async fn start() -> LoneRabbitMq {
        let shared = Shared::claim("rabbitmq-alone");
        let mut node = match shared.noted() {
            Some(node) => node,
            None => Node::start(&shared).await,
        };
        let vhost = node.take_vhost(&shared);
        LoneRabbitMq { vhost, node, shared, hurt: Hurt::Not }
    }

    /// Where to connect.
    pub(crate) fn url(&self) -> String {
        self.vhost.url()
    }

    /// Stops it with every connection, and starts it with what it had on disk.
    pub(crate) async fn restart(&self) {
        for what in ["stop_app", "start_app"] {
            self.steer(&[what]).await;
        }
    }

    /// Stops its process in the middle of whatever it does.
    pub(crate) async fn freeze(&mut self) {
        let told = self.steer(&["eval", "os:getpid()."]).await;
        let pid = told.trim().trim_matches('"').parse().expect("a process id");
        let pid = Pid::from_raw(pid);
        kill(pid, Signal::SIGSTOP).expect("the node can be signalled");
        self.hurt = Hurt::Frozen(pid);
    }

    /// Lets it go on.
    pub(crate) fn thaw(&mut self) {
        if let Hurt::Frozen(pid) = std::mem::replace(&mut self.hurt, Hurt::Not) {
            kill(pid, Signal::SIGCONT).expect("the node can be signalled");
        }
    }

    /// Has it block whoever publishes, as it does when its memory is full.
    pub(crate) async fn raise_alarm(&mut self) {
        self.hurt = Hurt::Alarmed;
        self.steer(&["set_vm_memory_high_watermark", "0"]).await;
    }

    /// Lets it take messages again.
    pub(crate) async fn clear_alarm(&mut self) {
        self.steer(&["set_vm_memory_high_watermark", WATERMARK]).await;
        self.hurt = Hurt::Not;
    }

    async fn steer(&self, arguments: &[&str]) -> String {
        let mut command = self.node.control(&self.shared);
        command.args(arguments);
        let done = tokio::process::Command::from(command).output();
        let output = tokio::time::timeout(READY_WITHIN, done).await.expect("the node answers").unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for LoneRabbitMq {
    fn drop(&mut self) {
        match self.hurt {
            Hurt::Not => {}
            Hurt::Frozen(_) => self.thaw(),
            Hurt::Alarmed => {
                let mut command = self.node.control(&self.shared);
                let _ = command.args(["set_vm_memory_high_watermark", WATERMARK]).output();
            }
        }
    }
}

/// What the tests of a run tell each other about the node.
#[derive(Deserialize, Serialize)]
struct Node {
    port: u16,
    epmd_port: u16,
    made: u32,
    taken: u32,
}

impl Node {
    async fn start(shared: &Shared) -> Node {
        let (port, dist_port, epmd_port) = (free_port(), free_port(), free_port());
        shared.start("it/support/rabbitmq-node", &[port, dist_port, epmd_port], READY_WITHIN).await;
        Node { port, epmd_port, made: 0, taken: 0 }
    }

    fn take_vhost(&mut self, shared: &Shared) -> RabbitMq {
        if self.taken == self.made {
            self.make_vhosts(shared);
        }
        self.taken += 1;
        shared.note(self);
        RabbitMq { address: format!("127.0.0.1:{}", self.port), vhost: format!("test{}", self.taken) }
    }

    /// The command that steers it.
    fn control(&self, shared: &Shared) -> Command {
        let mut command = Command::new("/usr/lib/rabbitmq/bin/rabbitmqctl");
        command.args(["--node", "longshore@localhost"]);
        command.env("HOME", shared.folder()).env("ERL_EPMD_PORT", self.epmd_port.to_string());
        command.stdin(Stdio::null());
        command
    }

    fn make_vhosts(&mut self, shared: &Shared) {
        let all = self.made + BATCH;
        let erlang = format!(
            r#"[begin V = iolist_to_binary(["test", integer_to_list(I)]), ok = rabbit_vhost:add(V, <<"tests">>),
               ok = rabbit_auth_backend_internal:set_permissions(
                   <<"guest">>, V, <<".*">>, <<".*">>, <<".*">>, <<"tests">>) end || I <- lists:seq({}, {all})]."#,
            self.made + 1
        );
        self.evaluate(shared, &erlang);
        self.made = all;
    }

    /// Lets the node evaluate an expression.
    fn evaluate(&self, shared: &Shared, erlang: &str) {
        let output = self
            .control(shared)
            .args(["eval", erlang])
            .output()
            .expect("rabbitmqctl can be started; run scripts/test-servers");
        assert!(output.status.success(), "rabbitmqctl: {}", String::from_utf8_lossy(&output.stderr));
    }
}

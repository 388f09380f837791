//! A real RabbitMQ node, shared by all tests of a run, with a virtual host for each.

use std::process::{Command, Stdio};
use std::time::Duration;

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
        if node.taken == node.made {
            node.make_vhosts(&shared);
        }
        node.taken += 1;
        shared.note(&node);
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

    fn make_vhosts(&mut self, shared: &Shared) {
        let all = self.made + BATCH;
        let erlang = format!(
            r#"[begin V = iolist_to_binary(["test", integer_to_list(I)]), ok = rabbit_vhost:add(V, <<"tests">>),
               ok = rabbit_auth_backend_internal:set_permissions(
                   <<"guest">>, V, <<".*">>, <<".*">>, <<".*">>, <<"tests">>) end || I <- lists:seq({}, {all})]."#,
            self.made + 1
        );
        let output = Command::new("/usr/lib/rabbitmq/bin/rabbitmqctl")
            .args(["--node", "longshore@localhost", "eval", &erlang])
            .env("HOME", shared.folder())
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .stdin(Stdio::null())
            .output()
            .expect("rabbitmqctl can be started; run scripts/test-servers");
        assert!(output.status.success(), "rabbitmqctl: {}", String::from_utf8_lossy(&output.stderr));
        self.made = all;
    }
}

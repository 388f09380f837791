//! Three real NATS servers that keep each stream three times.

use std::process::Command;

use tempfile::TempDir;

use super::nats::Nats;
use super::poll::eventually;
use super::process::{Server, free_port};

const NODES: usize = 3;
const READY_WITHIN: std::time::Duration = std::time::Duration::from_secs(60);

/// A running cluster with storage of its own; dropping it ends it.
pub(crate) struct NatsCluster {
    nodes: Vec<(Server, u16)>,
    /// Who is hurt next.
    turn: usize,
    _folder: TempDir,
}

impl NatsCluster {
    /// Starts one on free ports of 127.0.0.1, and waits until it takes streams.
    pub(crate) async fn start() -> NatsCluster {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let ports: Vec<(u16, u16)> = (0..NODES).map(|_| (free_port(), free_port())).collect();
        let routes = ports.iter().map(|(_, route)| format!("nats://127.0.0.1:{route}"));
        let routes = routes.collect::<Vec<_>>().join(",");
        let mut starting = Vec::new();
        for (number, (port, route)) in ports.iter().enumerate() {
            let own = folder.path().join(number.to_string());
            std::fs::create_dir(&own).expect("the folder can be written");
            let mut command = Command::new("nats-server");
            command.args(["--jetstream", "--addr", "127.0.0.1", "--port", &port.to_string()]);
            command.args(["--server_name", &format!("node{number}"), "--store_dir"]).arg(&own);
            command.args(["--cluster_name", "quay", "--cluster", &format!("nats://127.0.0.1:{route}")]);
            command.args(["--routes", &routes]);
            starting.push((command, own, *port));
        }
        let mut nodes = Vec::new();
        for (command, own, port) in &starting {
            nodes.push((Server::start("nats-server", command, own, *port).await, *port));
        }
        let cluster = NatsCluster { nodes, turn: 0, _folder: folder };
        cluster.ready().await;
        cluster
    }

    /// Where it listens: all of its servers in one address.
    pub(crate) fn url(&self) -> String {
        let hosts: Vec<String> = self.nodes.iter().map(|(_, port)| format!("127.0.0.1:{port}")).collect();
        format!("nats://{}?replicas=3", hosts.join(","))
    }

    /// Kills the next of its servers, as a crash would.
    pub(crate) fn kill_one(&mut self) {
        self.turn = (self.turn + 1) % NODES;
        self.nodes[self.turn].0.kill();
    }

    /// Starts the one again that was killed, with what it had on disk.
    pub(crate) async fn start_it_again(&mut self) {
        self.nodes[self.turn].0.start_again().await;
        self.ready().await;
    }

    /// Until it has elected who decides, and all three are there.
    async fn ready(&self) {
        let address = format!("127.0.0.1:{}", self.nodes[self.turn].1);
        eventually(READY_WITHIN, "the cluster takes streams", async || {
            Nats::takes_streams(&address, NODES).await.then_some(())
        })
        .await;
    }
}

//! A real NATS server with JetStream, one per test.

use std::process::Command;

use tempfile::TempDir;

use super::process::{Server, free_port};

/// A running server with storage of its own; dropping it ends it.
pub(crate) struct Nats {
    port: u16,
    server: Server,
    _folder: TempDir,
}

impl Nats {
    /// Starts one on a free port of 127.0.0.1.
    pub(crate) async fn start() -> Nats {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let port = free_port();
        let mut command = Command::new("nats-server");
        command.args(["--addr", "127.0.0.1", "--jetstream", "--port", &port.to_string(), "--store_dir"]);
        command.arg(folder.path());
        let server = Server::start("nats-server", &command, folder.path(), port).await;
        Nats { port, server, _folder: folder }
    }

    /// Where it listens: `nats://127.0.0.1:PORT`.
    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address())
    }

    /// The same as host and port.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The process, to be killed, frozen and started again.
    pub(crate) fn server(&mut self) -> &mut Server {
        &mut self.server
    }
}

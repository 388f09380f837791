//! A real Redis server that writes every command to disk, one per test.

use std::process::Command;

use tempfile::TempDir;

use super::process::{Server, free_port};

/// A running server with storage of its own; dropping it ends it.
pub(crate) struct Redis {
    port: u16,
    server: Server,
    _folder: TempDir,
}

impl Redis {
    /// Starts one on a free port of 127.0.0.1.
    pub(crate) async fn start() -> Redis {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let port = free_port();
        let mut command = Command::new("redis-server");
        command.args([
            "--bind",
            "127.0.0.1",
            "--port",
            &port.to_string(),
            "--save",
            "",
            "--appendonly",
            "yes",
        ]);
        command.args(["--appendfsync", "always", "--dir"]).arg(folder.path());
        let server = Server::start("redis-server", &command, folder.path(), port).await;
        Redis { port, server, _folder: folder }
    }

    /// Where it listens: `redis://127.0.0.1:PORT`.
    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address())
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

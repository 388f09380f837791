//! A real Redis server that writes every command to disk, one per test.

use std::process::Command;

use tempfile::TempDir;

use super::process::{Server, free_port};

/// A running server with storage of its own; dropping it ends it.
pub(crate) struct Redis {
    port: u16,
    server: Server,
    folder: TempDir,
}

impl Redis {
    /// Starts one on a free port of 127.0.0.1.
    pub(crate) async fn start() -> Redis {
        Redis::with(|_| Vec::new()).await
    }

    /// The same with more arguments, which may name files in its folder.
    pub(crate) async fn with(more: impl FnOnce(&std::path::Path) -> Vec<String>) -> Redis {
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
        command.args(more(folder.path()));
        let server = Server::start("redis-server", &command, folder.path(), port).await;
        Redis { port, server, folder }
    }

    /// Where it listens: `redis://127.0.0.1:PORT`.
    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    /// The same as host and port.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where its storage is.
    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// A plain connection of a producer or operator.
    pub(crate) async fn connection(&self) -> redis::aio::MultiplexedConnection {
        let client = redis::Client::open(self.url()).expect("invariant: a valid address");
        client.get_multiplexed_async_connection().await.expect("the server accepts")
    }

    /// The process, to be killed, frozen and started again.
    pub(crate) fn server(&mut self) -> &mut Server {
        &mut self.server
    }
}

//! A real NATS server with JetStream, one per test.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use tempfile::TempDir;

use super::process::{Server, free_port};

/// A running server with storage of its own; dropping it ends it.
pub(crate) struct Nats {
    port: u16,
    server: Server,
    /// Fetches of the clients that tests of every broker open here.
    pub(crate) looks: Arc<AtomicU64>,
    folder: TempDir,
}

impl Nats {
    /// Starts one on a free port of 127.0.0.1.
    pub(crate) async fn start() -> Nats {
        Nats::with(|_| String::new()).await
    }

    /// The same with more settings, in the server's own words, which may name files in its folder.
    pub(crate) async fn with(settings: impl FnOnce(&Path) -> String) -> Nats {
        Nats::begin(settings, &["--jetstream"]).await
    }

    /// One that carries messages and keeps none.
    pub(crate) async fn without_jetstream() -> Nats {
        Nats::begin(|_| String::new(), &[]).await
    }

    async fn begin(settings: impl FnOnce(&Path) -> String, arguments: &[&str]) -> Nats {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let port = free_port();
        let file = folder.path().join("nats.conf");
        std::fs::write(&file, settings(folder.path())).expect("the folder can be written");
        let mut command = Command::new("nats-server");
        command.args(arguments).args(["--addr", "127.0.0.1", "--port", &port.to_string(), "--store_dir"]);
        command.arg(folder.path()).arg("--config").arg(file);
        let server = Server::start("nats-server", &command, folder.path(), port).await;
        Nats { port, server, looks: Arc::default(), folder }
    }

    /// A plain connection of a producer or operator.
    pub(crate) async fn connection(&self) -> async_nats::Client {
        async_nats::connect(self.url()).await.expect("the server accepts")
    }

    /// Whether a stream with so many replicas can be made at `address`.
    pub(crate) async fn takes_streams(address: &str, replicas: usize) -> bool {
        let Ok(client) = async_nats::connect(address).await else { return false };
        let context = async_nats::jetstream::new(client);
        let config = async_nats::jetstream::stream::Config {
            name: "trial".to_owned(),
            num_replicas: replicas,
            ..Default::default()
        };
        context.create_stream(config).await.is_ok() && context.delete_stream("trial").await.is_ok()
    }

    /// Where its storage is.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
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

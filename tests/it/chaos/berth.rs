//! The brokers that the storms break on: how each is started, and how it is hurt.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::jetstream::{self, stream, stream::DiscardPolicy};
use futures_util::StreamExt;
use rusqlite::Connection;
use tempfile::TempDir;

use super::scale::Scale;
use crate::support::nats::Nats;
use crate::support::nats_cluster::NatsCluster;
use crate::support::process::Server;
use crate::support::rabbitmq::{LoneRabbitMq, RabbitMq};
use crate::support::redis::Redis;

/// A broker of one storm's own.
pub(super) trait Berth: Sized {
    /// For the table.
    const NAME: &'static str;
    /// How long it may take to notice that a client stands still, beyond any lease.
    const NOTICES: Duration = Duration::ZERO;
    async fn start() -> Self;
    /// Where workers find it.
    fn url(&self) -> String;
    /// Where they keep records, if not there.
    fn store(&self) -> Option<String> {
        None
    }
    /// Whether a client that stands still holds up all others, as one does that was stopped with the lock of a file.
    fn is_held_up(&self) -> bool {
        false
    }
}

/// One that can be reached through a proxy.
pub(super) trait Reached: Berth {
    /// Host and port.
    fn address(&self) -> String;
    /// Where workers find it behind another host and port.
    fn url_at(&self, address: &str) -> String;
}

/// One with a server that can be killed and started again.
pub(super) trait Served: Berth {
    fn server(&mut self) -> &mut Server;
}

/// One that can crash and come back.
pub(super) trait Restarts: Berth {
    async fn restart(&mut self);
}

/// One that can stand still.
pub(super) trait Freezes: Berth {
    async fn freeze(&mut self);
    async fn thaw(&mut self);
}

/// One that can refuse to take anything more.
pub(super) trait Refuses: Berth {
    async fn refuse(&mut self);
    async fn accept(&mut self);
}

impl<T: Served> Restarts for T {
    async fn restart(&mut self) {
        self.server().kill();
        self.server().start_again().await;
    }
}

impl<T: Served> Freezes for T {
    async fn freeze(&mut self) {
        self.server().freeze().await;
    }
    async fn thaw(&mut self) {
        self.server().thaw();
    }
}

/// A file; what stands still is its lock, held by another process's like.
pub(super) struct Sqlite {
    folder: TempDir,
    holds: Option<Connection>,
}

impl Sqlite {
    fn file(&self) -> PathBuf {
        self.folder.path().join("longshore.db")
    }
}

/// Takes the lock of a database for writing; it is free again when the connection is dropped.
fn locked(file: &Path, within: Duration) -> rusqlite::Result<Connection> {
    let connection = Connection::open(file)?;
    connection.busy_timeout(within)?;
    connection.execute_batch("BEGIN IMMEDIATE")?;
    Ok(connection)
}

/// Whether somebody keeps the lock of a database.
fn is_locked(file: &Path) -> bool {
    locked(file, Duration::from_secs(1)).is_err()
}

impl Berth for Sqlite {
    const NAME: &'static str = "sqlite";
    async fn start() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), holds: None }
    }
    fn url(&self) -> String {
        format!("sqlite://{}", self.file().display())
    }
    fn is_held_up(&self) -> bool {
        is_locked(&self.file())
    }
}

impl Freezes for Sqlite {
    async fn freeze(&mut self) {
        self.holds = Some(locked(&self.file(), Duration::from_secs(20)).unwrap());
    }
    async fn thaw(&mut self) {
        self.holds.take().unwrap().execute_batch("ROLLBACK").unwrap();
    }
}

/// The same on a disk of its own that can be filled.
pub(super) struct SqliteOnSmallDisk {
    folder: TempDir,
}

/// Room for a storm, quickly filled.
const DISK: &str = "size=64m";

impl SqliteOnSmallDisk {
    fn filler(&self) -> PathBuf {
        self.folder.path().join("filler")
    }
}

impl Berth for SqliteOnSmallDisk {
    const NAME: &'static str = "sqlite";
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = std::process::Command::new("mount");
        let mounted = mount.args(["-t", "tmpfs", "-o", DISK, "tmpfs"]).arg(folder.path()).output().unwrap();
        let said = String::from_utf8_lossy(&mounted.stderr);
        assert!(mounted.status.success(), "a small disk is mounted, which only root may do: {said}");
        Self { folder }
    }
    fn url(&self) -> String {
        format!("sqlite://{}", self.folder.path().join("longshore.db").display())
    }
}

impl Refuses for SqliteOnSmallDisk {
    async fn refuse(&mut self) {
        use std::io::Write;
        let mut filler = std::fs::File::create(self.filler()).unwrap();
        for size in [1 << 20, 1 << 12] {
            while filler.write_all(&vec![0; size]).is_ok() {}
        }
    }
    async fn accept(&mut self) {
        std::fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SqliteOnSmallDisk {
    fn drop(&mut self) {
        // Lazily: clients of this very process still have it open.
        let _ = std::process::Command::new("umount").arg("--lazy").arg(self.folder.path()).status();
    }
}

impl Berth for Redis {
    const NAME: &'static str = "redis";
    async fn start() -> Self {
        Self::start().await
    }
    fn url(&self) -> String {
        self.url()
    }
}

impl Served for Redis {
    fn server(&mut self) -> &mut Server {
        self.server()
    }
}

impl Reached for Redis {
    fn address(&self) -> String {
        self.address()
    }
    fn url_at(&self, address: &str) -> String {
        format!("redis://{address}")
    }
}

impl Berth for Nats {
    const NAME: &'static str = "nats";
    async fn start() -> Self {
        Self::start().await
    }
    fn url(&self) -> String {
        self.url()
    }
}

impl Served for Nats {
    fn server(&mut self) -> &mut Server {
        self.server()
    }
}

impl Reached for Nats {
    fn address(&self) -> String {
        self.address()
    }
    fn url_at(&self, address: &str) -> String {
        format!("nats://{address}")
    }
}

impl Refuses for Redis {
    async fn refuse(&mut self) {
        self.set("maxmemory", "1").await;
    }
    async fn accept(&mut self) {
        self.set("maxmemory", "0").await;
    }
}

impl Redis {
    async fn set(&self, name: &str, value: &str) {
        let mut operator = self.connection().await;
        let _: () =
            redis::cmd("CONFIG").arg("SET").arg(name).arg(value).query_async(&mut operator).await.unwrap();
    }
}

/// As a full disk does: no stream takes anything more. None is bounded below what it holds, or it would drop that; the stream
/// of work, which still shrinks, refuses by size.
impl Refuses for Nats {
    async fn refuse(&mut self) {
        self.bound(|config, bytes| {
            config.discard = DiscardPolicy::New;
            if config.name.ends_with("_work") {
                config.max_message_size = 1;
            } else {
                config.max_bytes = i64::try_from(bytes.max(1)).unwrap();
            }
        })
        .await;
    }
    async fn accept(&mut self) {
        self.bound(|config, _| {
            let is_events = ["_status", "_chatter"].iter().any(|end| config.name.ends_with(end));
            config.discard = if is_events { DiscardPolicy::Old } else { DiscardPolicy::New };
            (config.max_bytes, config.max_message_size) = (-1, -1);
        })
        .await;
    }
}

impl Nats {
    async fn bound(&self, change: impl Fn(&mut stream::Config, u64)) {
        let context = jetstream::new(self.connection().await);
        let mut streams = context.streams();
        while let Some(info) = streams.next().await {
            let stream::Info { mut config, state, .. } = info.unwrap();
            change(&mut config, state.bytes);
            context.update_stream(&config).await.unwrap();
        }
    }
}

impl Berth for NatsCluster {
    const NAME: &'static str = "nats x 3";
    async fn start() -> Self {
        Self::start().await
    }
    fn url(&self) -> String {
        self.url()
    }
}

/// One of its servers crashes, and comes back after a while in which the others go on.
impl Restarts for NatsCluster {
    async fn restart(&mut self) {
        self.kill_one();
        tokio::time::sleep(Scale::read().outage).await;
        self.start_it_again().await;
    }
}

/// A RabbitMQ node of its own.
pub(super) struct AmqpAlone {
    node: LoneRabbitMq,
    records: TempDir,
}

impl Berth for AmqpAlone {
    const NAME: &'static str = "amqp";
    async fn start() -> Self {
        Self { node: LoneRabbitMq::start().await, records: tempfile::tempdir().unwrap() }
    }
    fn url(&self) -> String {
        format!("{}?max_priority=9", self.node.url())
    }
    fn store(&self) -> Option<String> {
        Some(format!("sqlite://{}", self.records.path().join("records.db").display()))
    }
}

impl Restarts for AmqpAlone {
    async fn restart(&mut self) {
        self.node.restart().await;
    }
}

impl Freezes for AmqpAlone {
    async fn freeze(&mut self) {
        self.node.freeze().await;
    }
    async fn thaw(&mut self) {
        self.node.thaw();
    }
}

/// By its memory alarm, which blocks every connection that publishes.
impl Refuses for AmqpAlone {
    async fn refuse(&mut self) {
        self.node.raise_alarm().await;
    }
    async fn accept(&mut self) {
        self.node.clear_alarm().await;
    }
}

impl Reached for Amqp {
    fn address(&self) -> String {
        self.rabbit.address().to_owned()
    }
    fn url_at(&self, address: &str) -> String {
        self.url().replacen(self.rabbit.address(), address, 1)
    }
}

/// A virtual host of a RabbitMQ node that other tests share; records are kept in a file.
pub(super) struct Amqp {
    rabbit: RabbitMq,
    records: TempDir,
}

impl Berth for Amqp {
    const NAME: &'static str = "amqp";
    // Two of RabbitMQ's heartbeats: until custody a delivery is held by its connection.
    const NOTICES: Duration = Duration::from_secs(120);
    async fn start() -> Self {
        Self { rabbit: RabbitMq::vhost().await, records: tempfile::tempdir().unwrap() }
    }
    fn url(&self) -> String {
        // Custody at once: a killed worker's message must come back by it, too.
        format!("{}?max_priority=9&handoff_after=500ms", self.rabbit.url())
    }
    fn is_held_up(&self) -> bool {
        is_locked(&self.records.path().join("records.db"))
    }
    fn store(&self) -> Option<String> {
        Some(format!("sqlite://{}", self.records.path().join("records.db").display()))
    }
}

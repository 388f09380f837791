//! How fast bytes pass between host and container, beside what a person's own `cat` on the same FIFO gives. A child
//! process stands for the container: a bind mount of a FIFO adds nothing to it.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore::handler::Attempt;
use longshore::pipeline::conduit::{Conduit, FifoSink, HostStreams, Origin, Prepared, Surroundings};
use longshore::pipeline::fifo::Fifo;
use longshore::pipeline::{Pipeline, Request, Settings};
use longshore::task::{ArgMap, Task};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::support::Outcome;
use crate::support::peer::Peer;
use crate::support::report::{Answer, Figure, Row};

/// Bytes of one measurement.
const BYTES: usize = 512 << 20;
/// A hundred times what was seen of it.
const OF_PYTHON: f64 = 100.0;
/// What reads in place of the container, and writes.
const READER: &str = "dd of=/dev/null bs=1M 2>/dev/null < ";
const WRITER: &str = "dd bs=1M 2>/dev/null > ";
/// Of the Python worker's measurements, which take seconds for what takes ours a hundredth: to a container, from one to
/// its standard output, from one to HTTP.
const PEER: [(&str, u32); 3] = [("in", 32 << 20), ("out", 8 << 20), ("http", 32 << 20)];
/// By hand, ours and the Python worker see the same server.
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// Asks.
pub(crate) async fn ask(peer: &Peer, rounds: u32) -> Outcome<Answer> {
    let mut answer = Answer::begin("streams", "512 MiB between host and container (MB/s)");
    let place = Place::new()?;
    let mut figures: [(Vec<f64>, Vec<f64>); 3] = Default::default();
    let mut python: [Vec<f64>; 3] = Default::default();
    for _ in 0..rounds {
        figures[0].0.push(place.to_container().await?);
        figures[0].1.push(place.to_container_by_hand().await?);
        figures[1].0.push(place.out_of_container().await?);
        figures[1].1.push(place.out_of_container_by_hand().await?);
        figures[2].0.push(place.to_http().await?);
        figures[2].1.push(place.to_http_by_hand().await?);
        for (figures, (way, bytes)) in python.iter_mut().zip(PEER) {
            let url = if way == "in" { girder().await? } else { server().await? };
            figures.extend(peer.streams(way, bytes, &url).await?);
        }
    }
    let cases = [
        ("host to container; limit: cat file > fifo", 2.0),
        ("container to host; limit: cat fifo", 2.0),
        ("container to HTTP; limit: cat fifo | curl -T -", 0.8),
    ];
    for (((case, bar), (ours, by_hand)), python) in cases.into_iter().zip(figures).zip(python) {
        let row = Row::new(case, Figure::of(&ours)).limit(Figure::of(&by_hand));
        answer.add(row.python(Figure::if_any(&python)).at_least_of_limit(bar).at_least_of_python(OF_PYTHON));
    }
    Ok(answer.end())
}

/// A folder with a file to send and FIFOs made by hand.
struct Place {
    folder: TempDir,
    file: PathBuf,
}

impl Place {
    fn new() -> Outcome<Self> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("file");
        let mut made = File::create(&file)?;
        let piece: Vec<u8> = (0_u8..251).cycle().take(1 << 20).collect();
        for _ in 0..BYTES >> 20 {
            made.write_all(&piece)?;
        }
        Ok(Self { folder, file })
    }

    fn fifo(&self, name: &str) -> Outcome<Fifo> {
        let folder = Arc::new(File::open(self.folder.path())?);
        // A FIFO of an earlier round.
        let _ = std::fs::remove_file(self.folder.path().join(name));
        Ok(Fifo::make(&folder, self.folder.path(), name)?)
    }

    async fn to_container(&self) -> Outcome<f64> {
        let fifo = self.fifo("in")?;
        let attempt = Attempt::detached(Task::new("bench", ArgMap::new()));
        let (failures, mut failed) = mpsc::unbounded_channel();
        let gone = CancellationToken::new();
        let around = Surroundings { gone: gone.clone(), failures, report: attempt.report().clone() };
        let sink = Box::new(FifoSink::new(fifo.clone(), Duration::from_millis(200)));
        let prepared =
            Prepared { name: "bench".to_owned(), origin: Origin::File(File::open(&self.file)?), sink };
        let conduit = Conduit::open(prepared, around, &mut Vec::new())?;
        let begun = Instant::now();
        let carrying = tokio::spawn(conduit.run());
        ended(sh(READER, fifo.path())?).await?;
        let speed = speed(begun);
        gone.cancel();
        carrying.await?;
        whole(&attempt)?;
        failed.try_recv().map_or(Ok(speed), |error| Err(error.into()))
    }

    async fn to_container_by_hand(&self) -> Outcome<f64> {
        let fifo = self.plain("in-by-hand")?;
        let begun = Instant::now();
        let reader = sh(READER, &fifo)?;
        let cat = sh(&format!("cat {} > ", self.file.display()), &fifo)?;
        ended(cat).await?;
        ended(reader).await?;
        Ok(speed(begun))
    }

    async fn out_of_container(&self) -> Outcome<f64> {
        self.carried(json!({"$": "HostStdOut"})).await
    }

    async fn out_of_container_by_hand(&self) -> Outcome<f64> {
        let fifo = self.plain("out-by-hand")?;
        let begun = Instant::now();
        let writer = self.writer(&fifo)?;
        ended(sh("cat > /dev/null < ", &fifo)?).await?;
        ended(writer).await?;
        Ok(speed(begun))
    }

    async fn to_http(&self) -> Outcome<f64> {
        let url = server().await?;
        self.carried(json!({"$": "ChunkedTransferEncodingStream", "url": url})).await
    }

    async fn to_http_by_hand(&self) -> Outcome<f64> {
        let (url, fifo) = (server().await?, self.plain("http-by-hand")?);
        let begun = Instant::now();
        let writer = self.writer(&fifo)?;
        let curl = format!("| curl -sS -f -X POST -H Expect: -H 'Transfer-Encoding: chunked' -T - {url}");
        let script = format!("cat {} {curl}", fifo.display());
        ended(Command::new("sh").args(["-c", &script]).kill_on_drop(true).spawn()?).await?;
        ended(writer).await?;
        Ok(speed(begun))
    }

    /// What the container writes to an output pipe, carried to `output`.
    async fn carried(&self, output: serde_json::Value) -> Outcome<f64> {
        let connect =
            json!({"$": "Connect", "input": {"$": "NamedOutputPipe", "name": "out"}, "output": output});
        let request =
            Request { stream_connectors: vec![serde_json::from_value(connect)?], ..Request::default() };
        let mut settings = Settings::new(self.folder.path().join("work"));
        settings.host = HostStreams::to(Box::new(io::sink()), Box::new(io::sink()));
        let attempt = Attempt::detached(Task::new("bench", ArgMap::new()));
        let (mut pipeline, plan) = Pipeline::stage(request, &attempt, &settings).await?;
        pipeline.open()?;
        let fifo =
            plan.mounts.iter().find(|mount| mount.target.ends_with("/out")).ok_or("no pipe was made")?;
        let begun = Instant::now();
        ended(self.writer(&fifo.source)?).await?;
        pipeline.container_ended().await?;
        let speed = speed(begun);
        whole(&attempt)?;
        Ok(speed)
    }

    fn writer(&self, fifo: &Path) -> Outcome<Child> {
        sh(&format!("exec < {}; {WRITER}", self.file.display()), fifo)
    }

    /// A FIFO of the kernel's own size, as `mkfifo` gives it.
    fn plain(&self, name: &str) -> Outcome<PathBuf> {
        let path = self.folder.path().join(name);
        // One of an earlier round.
        let _ = std::fs::remove_file(&path);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR)?;
        Ok(path)
    }
}

fn sh(script: &str, fifo: &Path) -> Outcome<Child> {
    let script = format!("{script}{}", fifo.display());
    Ok(Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).kill_on_drop(true).spawn()?)
}

async fn ended(mut child: Child) -> Outcome<()> {
    let status = tokio::time::timeout(Duration::from_secs(120), child.wait()).await??;
    if status.success() { Ok(()) } else { Err(format!("a child ended with {status}").into()) }
}

fn speed(begun: Instant) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "the number is exact")]
    let megabytes = BYTES as f64 / 1e6;
    megabytes / begun.elapsed().as_secs_f64()
}

/// A figure counts only when every byte arrived.
fn whole(attempt: &Attempt) -> Outcome<()> {
    let bytes: Vec<u64> = attempt.report().snapshot().1.streams.iter().map(|told| told.bytes).collect();
    if bytes == [BYTES as u64] { Ok(()) } else { Err(format!("{bytes:?} bytes arrived of {BYTES}").into()) }
}

/// A server that takes POSTs and keeps nothing of them; returns its URL.
async fn server() -> Outcome<String> {
    served(|mut socket| async move {
        let mut buffer = vec![0; 1 << 20];
        let mut end = Vec::new();
        loop {
            let n = socket.read(&mut buffer).await?;
            end.extend_from_slice(&buffer[n.saturating_sub(5)..n]);
            end.drain(..end.len().saturating_sub(5));
            if n == 0 || end == b"0\r\n\r\n" {
                return socket.write_all(ANSWER).await;
            }
        }
    })
    .await
}

/// A server with the one way of a Girder that a download needs, to which a file's id is its size; returns its API's URL.
async fn girder() -> Outcome<String> {
    let url = served(|mut socket| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head);
        let size = head.split('/').skip_while(|part| *part != "file").nth(1);
        let mut left: usize = size.and_then(|size| size.parse().ok()).unwrap_or_default();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {left}\r\nconnection: close\r\n\r\n");
        socket.write_all(answer.as_bytes()).await?;
        let piece = vec![0; 1 << 20];
        while left > 0 {
            let n = left.min(piece.len());
            socket.write_all(&piece[..n]).await?;
            left -= n;
        }
        Ok(())
    })
    .await?;
    Ok(format!("{url}api/v1"))
}

/// Serves each connection with `serve` until the bench ends; returns the URL.
async fn served<F: Future<Output = io::Result<()>> + Send>(
    serve: impl Fn(TcpStream) -> F + Send + Sync + 'static,
) -> Outcome<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            if let Err(error) = serve(socket).await {
                eprintln!("bench: a stream's server: {error}");
            }
        }
    });
    Ok(url)
}

//! How fast files come from a Girder, beside `curl` by hand: from a plain server that costs next to nothing, so that ours
//! is the limit, and from the real Girder of the tests, which is the limit itself.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use longshore::girder::{Settings as Client, Site};
use longshore::handler::Attempt;
use longshore::pipeline::{Pipeline, Request, Settings};
use longshore::task::{Arg, ArgMap, Task};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use crate::progress;
use crate::support::Outcome;
use crate::support::process::{Leashed, resident};
use crate::support::report::{Answer, Figure, Row};

/// Bytes of one file.
const BYTES: usize = 300 << 20;
/// Bytes of each of the files that come together.
const PART: usize = 32 << 20;
/// How many those are.
const PARTS: usize = 8;
/// Bytes of the stream under which memory is watched.
const LONG: usize = 2 << 30;
/// What a stream may cost at most.
const MEMORY_KIB: f64 = 65_536.0;
const READER: &str = "dd of=/dev/null bs=1M 2>/dev/null < ";
const READY_WITHIN: Duration = Duration::from_secs(300);

/// Asks.
pub(crate) async fn ask(rounds: u32) -> Outcome<Answer> {
    let mut answer = Answer::begin("girder", "300 MiB from a Girder (MB/s); limit: curl by hand");
    let plain = Source::plain().await?;
    plain.ask(rounds, ("plain server", 1.0), &mut answer).await?;
    let mut peaks = Vec::new();
    for _ in 0..rounds {
        peaks.push(plain.peak_of_a_long_stream().await?);
    }
    answer.add(Row::new("2 GiB stream: memory on top (KiB)", Figure::of(&peaks)).below(MEMORY_KIB));
    match Source::girder().await {
        Ok(girder) => {
            girder.ask(rounds, ("Girder", 0.95), &mut answer).await?;
            let mut jobs = Vec::new();
            for _ in 0..rounds {
                jobs.push(girder.posted("worker/job?title=bench", 0).await?);
            }
            progress::ask(&girder.api_url, &jobs, &mut answer).await?;
        }
        Err(reason) => eprintln!("bench: no figures of a real Girder: {reason}"),
    }
    Ok(answer.end())
}

/// A server with files.
struct Source {
    api_url: String,
    token: String,
    whole: String,
    parts: Vec<String>,
    folder: TempDir,
    _server: Option<Leashed>,
}

impl Source {
    /// Sends files as a plain server does; a file's id is its size and a letter.
    async fn plain() -> Outcome<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let api_url = format!("http://{}/api/v1", listener.local_addr()?);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                // A client that leaves is told to whoever waits for its end.
                tokio::spawn(async move { drop(serve(socket).await) });
            }
        });
        let parts = (0..PARTS).map(|n| format!("{PART}x{n}")).collect();
        let folder = tempfile::tempdir()?;
        Ok(Self { api_url, token: "t".to_owned(), whole: format!("{BYTES}x"), parts, folder, _server: None })
    }

    /// The real Girder of the tests, with files uploaded to it.
    async fn girder() -> Outcome<Self> {
        let folder = tempfile::tempdir()?;
        let peer = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peer/girder/start");
        let (port, redis) = (free_port().await?, free_port().await?);
        let mut command = std::process::Command::new(peer);
        command.arg(folder.path()).args([port.to_string(), redis.to_string()]);
        let mut server = Leashed::start(&command, &folder.path().join("log"))?;
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            if server.has_ended()? || begun.elapsed() > READY_WITHIN {
                return Err("the Girder of the tests did not start".into());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let written: Value = serde_json::from_slice(&std::fs::read(folder.path().join("girder.json"))?)?;
        let text = |field: &str| written[field].as_str().unwrap_or_default().to_owned();
        let mut source = Self {
            api_url: format!("http://127.0.0.1:{port}/api/v1"),
            token: text("token"),
            whole: String::new(),
            parts: Vec::new(),
            folder,
            _server: Some(server),
        };
        let made =
            source.posted(&format!("folder?parentType=user&parentId={}&name=bench", text("user")), 0).await?;
        let parent = made["_id"].as_str().unwrap_or_default().to_owned();
        for (n, size) in [BYTES].into_iter().chain([PART; PARTS]).enumerate() {
            let path = format!("file?parentType=folder&parentId={parent}&name=f{n}&size={size}");
            let file = source.posted(&path, size).await?;
            let id = file["_id"].as_str().ok_or("Girder took no file")?.to_owned();
            if n == 0 { source.whole = id } else { source.parts.push(id) }
        }
        Ok(source)
    }

    /// Posts so many bytes of zero.
    async fn posted(&self, path: &str, size: usize) -> Outcome<Value> {
        let script = format!(
            "head -c {size} /dev/zero | curl -sSf -X POST -H 'Girder-Token: {}' -H 'Content-Type: application/octet-stream' \
             -H Expect: --data-binary @- '{}/{path}'",
            self.token, self.api_url
        );
        let output = Command::new("sh").args(["-c", &script]).kill_on_drop(true).output().await?;
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    async fn ask(&self, rounds: u32, (name, bar): (&str, f64), answer: &mut Answer) -> Outcome<()> {
        let mut stream: [Vec<f64>; 2] = Default::default();
        let (mut volume, mut together) = (stream.clone(), stream.clone());
        for _ in 0..rounds {
            stream[0].push(self.streamed(&self.whole, BYTES).await?);
            stream[1].push(self.streamed_by_hand().await?);
            volume[0].push(self.fetched(std::slice::from_ref(&self.whole), 1, BYTES).await?);
            volume[1].push(self.fetched_by_hand().await?);
            together[0].push(self.fetched(&self.parts, PARTS, PART * PARTS).await?);
            together[1].push(self.fetched(&self.parts, 1, PART * PARTS).await?);
        }
        for (case, bar, [ours, limit]) in [
            ("into a pipe; limit: curl > fifo", bar, stream),
            ("to a volume; limit: curl -o, then sha512sum", 0.95, volume),
            ("8 at once; limit: 8 in a row", 0.95, together),
        ] {
            let row = Row::new(format!("{name}: {case}"), Figure::of(&ours));
            answer.add(row.limit(Figure::of(&limit)).at_least_of_limit(bar));
        }
        Ok(())
    }

    /// A file into a container's pipe, which a child reads in its place.
    async fn streamed(&self, id: &str, bytes: usize) -> Outcome<f64> {
        let connect = json!({"$": "Connect", "output": {"$": "NamedInputPipe", "name": "in"},
            "input": {"$": "GirderFileIdToStream", "file_id": id, "girder": self.access()}});
        let request =
            Request { stream_connectors: vec![serde_json::from_value(connect)?], ..Request::default() };
        let attempt = Attempt::detached(Task::new("bench", ArgMap::new()));
        let settings = Settings::new(self.folder.path().join("work"));
        let begun = Instant::now();
        let (mut pipeline, plan) = Pipeline::stage(request, &attempt, &settings).await?;
        pipeline.open()?;
        let fifo =
            plan.mounts.iter().find(|mount| mount.target.ends_with("/in")).ok_or("no pipe was made")?;
        sh(&format!("{READER}{}", fifo.source.display())).await?;
        let speed = speed(begun, bytes);
        pipeline.container_ended().await?;
        arrived(&attempt, bytes)?;
        Ok(speed)
    }

    async fn streamed_by_hand(&self) -> Outcome<f64> {
        let fifo = self.folder.path().join("fifo");
        // One of an earlier round.
        let _ = std::fs::remove_file(&fifo);
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR)?;
        let begun = Instant::now();
        let reader = format!("{READER}{0} & {1} > {0}; wait", fifo.display(), self.curl());
        sh(&reader).await?;
        Ok(speed(begun, BYTES))
    }

    /// Files to a volume, so many at once.
    async fn fetched(&self, ids: &[String], parallel: usize, bytes: usize) -> Outcome<f64> {
        let args = ids.iter().map(|id| {
            Arg::from_value(
                json!({"$": "GirderFileIdToVolume", "file_id": id, "girder": self.access()}),
                "bench",
            )
        });
        let request = Request { container_args: args.collect::<Result<_, _>>()?, ..Request::default() };
        let attempt = Attempt::detached(Task::new("bench", ArgMap::new()));
        let mut settings = Settings::new(self.folder.path().join("work"));
        settings.girder = Arc::new(Site::plain(Client { parallel_downloads: parallel, ..Client::default() }));
        let begun = Instant::now();
        let (pipeline, _) = Pipeline::stage(request, &attempt, &settings).await?;
        let speed = speed(begun, bytes);
        drop(pipeline);
        arrived(&attempt, bytes)?;
        Ok(speed)
    }

    async fn fetched_by_hand(&self) -> Outcome<f64> {
        let file: PathBuf = self.folder.path().join("by-hand");
        let begun = Instant::now();
        sh(&format!("{} -o {1} && sha512sum {1} > /dev/null", self.curl(), file.display())).await?;
        Ok(speed(begun, BYTES))
    }

    /// By how much this process grows while a long stream passes through it, in KiB.
    async fn peak_of_a_long_stream(&self) -> Outcome<f64> {
        let me = std::process::id();
        let before = resident(me)?;
        let id = format!("{LONG}x");
        let stream = self.streamed(&id, LONG);
        tokio::pin!(stream);
        let mut peak = before;
        loop {
            tokio::select! {
                streamed = &mut stream => {
                    streamed?;
                    return Ok(peak - before);
                }
                () = tokio::time::sleep(Duration::from_millis(20)) => peak = peak.max(resident(me)?),
            }
        }
    }

    fn access(&self) -> Value {
        json!({"api_url": self.api_url, "token": self.token})
    }

    fn curl(&self) -> String {
        format!("curl -sSf -H 'Girder-Token: {}' {}/file/{}/download", self.token, self.api_url, self.whole)
    }
}

/// Answers for documents and contents of files whose ids are their sizes.
async fn serve(socket: TcpStream) -> Outcome<()> {
    let mut socket = BufReader::new(socket);
    let piece = vec![0; 1 << 20];
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if socket.read_line(&mut head).await? == 0 {
                return Ok(());
            }
        }
        let path = head.split(' ').nth(1).unwrap_or_default();
        let id = path.split('/').nth(4).unwrap_or_default();
        let size: usize = id.split('x').next().unwrap_or_default().parse()?;
        let document = json!({"_id": id, "name": id, "size": size, "created": "-"}).to_string();
        let is_content = path.ends_with("/download");
        let length = if is_content { size } else { document.len() };
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        socket.get_mut().write_all(answer.as_bytes()).await?;
        if !is_content {
            socket.get_mut().write_all(document.as_bytes()).await?;
            continue;
        }
        let mut left = size;
        while left > 0 {
            let n = left.min(piece.len());
            socket.get_mut().write_all(&piece[..n]).await?;
            left -= n;
        }
    }
}

async fn free_port() -> Outcome<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port())
}

async fn sh(script: &str) -> Outcome<()> {
    let mut child =
        Command::new("sh").args(["-c", script]).stdin(Stdio::null()).kill_on_drop(true).spawn()?;
    let status = tokio::time::timeout(Duration::from_secs(300), child.wait()).await??;
    if status.success() { Ok(()) } else { Err(format!("{script}: {status}").into()) }
}

fn speed(begun: Instant, bytes: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "the number is exact")]
    let megabytes = bytes as f64 / 1e6;
    megabytes / begun.elapsed().as_secs_f64()
}

/// A figure counts only when every byte arrived.
fn arrived(attempt: &Attempt, wanted: usize) -> Outcome<()> {
    let bytes: u64 = attempt.report().snapshot().1.streams.iter().map(|told| told.bytes).sum();
    if bytes == wanted as u64 { Ok(()) } else { Err(format!("{bytes} bytes arrived of {wanted}").into()) }
}

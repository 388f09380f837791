//! What an engine sends of a container's output, from the socket to the task's log, through the client that a worker
//! uses. Whole frames, however the socket cuts them, are told as the lines that are in them; rubbish ends the stream and
//! harms nobody.

#![no_main]

use std::cell::OnceCell;
use std::sync::Arc;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use longshore::docker::attach::Outlet;
use longshore::docker::engine::Containers;
use longshore::docker::{Address, DockerApi};
use longshore::events::Bus;
use longshore::events::reporter::{LogLimits, Reporter};
use longshore::pipeline::StandardStreams;
use longshore::task::{ArgMap, Fence, Task};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

const LINE_MAX: usize = 1 << 20;
const VERSION: &str = r#"{"ApiVersion":"1.41","MinAPIVersion":"1.12","Version":"20.10.24"}"#;
const UPGRADED: &[u8] = b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.raw-stream\r\n\
    Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n";

/// An engine that serves one attachment at a time, and the worker's client of it.
struct Rig {
    runtime: Runtime,
    listener: UnixListener,
    api: DockerApi,
    task: Arc<Task>,
}

impl Rig {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("longshore-frames-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = runtime.block_on(async { UnixListener::bind(&path).unwrap() });
        let api = DockerApi::new(Address::Unix(path), Duration::from_secs(60));
        let task = Arc::new(Task::new("docker_run", ArgMap::new()));
        Self { runtime, listener, api, task }
    }

    /// What the log holds once the engine has sent `pieces` as a container's output.
    fn told(&self, pieces: &[Vec<u8>]) -> String {
        self.runtime.block_on(async {
            let client = async {
                let limits = LogLimits { log_max: u64::MAX, log_tail: usize::MAX };
                let report = Reporter::new(self.task.clone(), Fence(1), Bus::silent(), limits);
                let output = self.api.attach("c").await.expect("the engine upgrades every connection");
                let mut outlet = Outlet::new(report.clone(), LINE_MAX, StandardStreams::default());
                // Rubbish may end the stream with an error, which says what it is.
                let _ = outlet.drain(output, &CancellationToken::new()).await;
                outlet.finish();
                report.snapshot().1.log_tail
            };
            tokio::join!(client, self.serve(pieces)).0
        })
    }

    /// Answers requests until one is an attachment, and sends that one `pieces`.
    async fn serve(&self, pieces: &[Vec<u8>]) {
        loop {
            let (mut socket, _) = self.listener.accept().await.unwrap();
            if head(&mut socket).await.contains("/attach") {
                socket.write_all(UPGRADED).await.unwrap();
                for piece in pieces {
                    // The client may have given up on rubbish.
                    if socket.write_all(piece).await.is_err() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                return;
            }
            let length = VERSION.len();
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{VERSION}"
            );
            socket.write_all(answer.as_bytes()).await.unwrap();
        }
    }
}

async fn head(socket: &mut UnixStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// What `frames` must be told as: the lines of each stream in the order of their ends, then what has none.
fn expected(frames: &[(u8, &[u8])]) -> String {
    let mut told = String::new();
    let mut open: [Vec<u8>; 2] = Default::default();
    let mut tell = |line: &mut Vec<u8>| {
        told.push_str(&String::from_utf8_lossy(line));
        told.push('\n');
        line.clear();
    };
    for (stream, payload) in frames {
        let line = &mut open[usize::from(*stream == 2)];
        for byte in *payload {
            if *byte == b'\n' { tell(line) } else { line.push(*byte) }
        }
    }
    for line in &mut open {
        if !line.is_empty() {
            tell(line);
        }
    }
    told
}

/// Cuts `data` into frames: a byte for the stream and the high bits of the length, one for its low bits, the payload.
fn frames(mut data: &[u8]) -> Vec<(u8, &[u8])> {
    let mut frames = Vec::new();
    while let [kind, low, rest @ ..] = data {
        let length = (usize::from(kind >> 4) << 8 | usize::from(*low)).min(rest.len());
        let (payload, next) = rest.split_at(length);
        frames.push((kind % 3, payload));
        data = next;
    }
    frames
}

thread_local!(static RIG: OnceCell<Rig> = const { OnceCell::new() });

fuzz_target!(|data: &[u8]| {
    let [mode, cut, data @ ..] = data else { return };
    let cut = usize::from(*cut) + 1;
    let told = |bytes: &[u8]| {
        let pieces: Vec<Vec<u8>> = bytes.chunks(cut).map(<[u8]>::to_vec).collect();
        RIG.with(|rig| rig.get_or_init(Rig::new).told(&pieces))
    };
    if mode % 4 == 0 {
        told(data);
        return;
    }
    let frames = frames(data);
    let mut bytes = Vec::new();
    for (stream, payload) in &frames {
        bytes.extend_from_slice(&[*stream, 0, 0, 0]);
        bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(payload);
    }
    assert_eq!(told(&bytes), expected(&frames));
});

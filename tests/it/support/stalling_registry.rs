//! A registry that starts to answer and then stalls: what a pull meets on a bad network.
//!
//! It speaks as much of the distribution API as a pull of one image needs: the manifest and the configuration come
//! whole, the only layer is announced in full and its bytes come as [`Stall`] says.

use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

const LAYER_BYTES: usize = 2 << 20;
const SENT_BYTES: usize = 1 << 18;
const STALLED_WITHIN: Duration = Duration::from_secs(20);
const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Where the answer stops.
#[derive(Clone, Copy)]
pub(crate) enum Stall {
    /// The manifest is asked for and never comes.
    Manifest,
    /// A first eighth of the layer comes, then nothing.
    Layer,
    /// The layer comes a byte at a time, ten a second.
    Drip,
}

/// A running one; dropping it closes every connection.
pub(crate) struct StallingRegistry {
    address: String,
    server: JoinHandle<()>,
    stalled: watch::Receiver<bool>,
}

impl StallingRegistry {
    /// Listens on a free port of 127.0.0.1.
    pub(crate) async fn start(stall: Stall) -> StallingRegistry {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port can be bound");
        let address = listener.local_addr().expect("a bound socket has an address").to_string();
        let (tell, stalled) = watch::channel(false);
        let server = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let tell = tell.clone();
                // A client that leaves in the middle is what this registry is for.
                connections.spawn(async move { drop(converse(stream, stall, &tell).await) });
            }
        });
        StallingRegistry { address, server, stalled }
    }

    /// Waits until a client has got all that it will get (a drip's client: its first byte).
    pub(crate) async fn stalled(&mut self) {
        let reached = tokio::time::timeout(STALLED_WITHIN, self.stalled.wait_for(|stalled| *stalled)).await;
        reached
            .expect("a client comes as far as the stall")
            .expect("invariant: the server outlives its guard");
    }

    /// The reference to pull; any name will do.
    pub(crate) fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }
}

impl Drop for StallingRegistry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn converse(stream: TcpStream, stall: Stall, tell: &watch::Sender<bool>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some((method, path)) = read_request(&mut stream).await? {
        let body_wanted = method != "HEAD";
        if path == "/v2/" {
            answer(&mut stream, "application/json", b"{}", body_wanted).await?;
        } else if path.contains("/manifests/") {
            if matches!(stall, Stall::Manifest) {
                tell.send_replace(true);
                std::future::pending::<()>().await;
            }
            answer(&mut stream, MANIFEST, manifest().as_bytes(), body_wanted).await?;
        } else if path.ends_with(&digest(&configuration())) {
            answer(&mut stream, "application/octet-stream", &configuration(), body_wanted).await?;
        } else {
            stalled_layer(&mut stream, stall, tell).await?;
        }
    }
    Ok(())
}

async fn read_request(stream: &mut BufReader<TcpStream>) -> std::io::Result<Option<(String, String)>> {
    let mut first = String::new();
    if stream.read_line(&mut first).await? == 0 {
        return Ok(None);
    }
    let mut header = String::new();
    while stream.read_line(&mut header).await? > 2 {
        header.clear();
    }
    let mut words = first.split_whitespace().map(str::to_owned);
    Ok(words.next().zip(words.next()))
}

async fn answer(
    stream: &mut BufReader<TcpStream>,
    kind: &str,
    body: &[u8],
    body_wanted: bool,
) -> std::io::Result<()> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nDocker-Distribution-Api-Version: registry/2.0\r\nDocker-Content-Digest: {}\r\n\
         Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
        digest(body),
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    if body_wanted {
        stream.write_all(body).await?;
    }
    stream.flush().await
}

async fn stalled_layer(
    stream: &mut BufReader<TcpStream>,
    stall: Stall,
    tell: &watch::Sender<bool>,
) -> std::io::Result<()> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {LAYER_BYTES}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    if matches!(stall, Stall::Layer) {
        stream.write_all(&vec![0; SENT_BYTES]).await?;
        tell.send_replace(true);
        std::future::pending::<()>().await;
    }
    for _ in 0..LAYER_BYTES {
        stream.write_all(&[0]).await?;
        stream.flush().await?;
        tell.send_replace(true);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

fn configuration() -> Vec<u8> {
    let layer = digest(&vec![0; LAYER_BYTES]);
    format!(r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{layer}"]}}}}"#)
        .into_bytes()
}

fn manifest() -> String {
    let configuration = configuration();
    format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}",
            "config":{{"mediaType":"application/vnd.docker.container.image.v1+json","size":{},"digest":"{}"}},
            "layers":[{{"mediaType":"application/vnd.docker.image.rootfs.diff.tar.gzip","size":{LAYER_BYTES},"digest":"{}"}}]}}"#,
        configuration.len(),
        digest(&configuration),
        digest(&vec![0; LAYER_BYTES]),
    )
}

fn digest(content: &[u8]) -> String {
    let sum = Sha256::digest(content);
    sum.iter().fold(String::from("sha256:"), |text, byte| text + &format!("{byte:02x}"))
}

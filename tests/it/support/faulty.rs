//! A scripted HTTP server that fails as it is told to: what a bad network, a bad proxy or a hostile Girder does.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

/// One request, as it came.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// Without the query.
    pub(crate) path: String,
    pub(crate) query: String,
    /// By lower-case name.
    pub(crate) headers: BTreeMap<String, String>,
    /// How many requests with this method and path came before.
    pub(crate) earlier: usize,
    /// Only while it is answered; of a long one no more than [`KEPT`].
    pub(crate) body: Vec<u8>,
    /// How long the body is.
    pub(crate) length: u64,
}

/// Bytes of a body that are kept.
const KEPT: u64 = 1 << 20;

impl Asked {
    /// A parameter of the query; none that is needed here is escaped.
    pub(crate) fn param(&self, name: &str) -> Option<&str> {
        self.query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }
    /// The byte from which on the file is wanted.
    pub(crate) fn from(&self) -> Option<usize> {
        self.headers.get("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// What is answered.
pub(crate) enum Reply {
    /// This, whole.
    Whole(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// A body of so many bytes is announced, these come, and the connection is closed.
    Cut(usize, Vec<u8>),
    /// A body of so many bytes is announced, these come, and then nothing.
    Stall(usize, Vec<u8>),
    /// The body comes a byte at a time.
    Drip(Vec<u8>, Duration),
    /// The body comes after a while.
    Late(Vec<u8>, Duration),
}

impl Reply {
    pub(crate) fn json(value: &Value) -> Reply {
        Reply::Whole(200, vec![("Content-Type", "application/json".to_owned())], value.to_string().into())
    }
    pub(crate) fn bytes(body: &[u8]) -> Reply {
        Reply::Whole(200, Vec::new(), body.to_vec())
    }
    pub(crate) fn error(status: u16, message: &str) -> Reply {
        let body = serde_json::json!({"message": message, "type": "rest"}).to_string();
        Reply::Whole(status, Vec::new(), body.into())
    }
    pub(crate) fn redirect(to: &str) -> Reply {
        Reply::Whole(303, vec![("Location", to.to_owned())], Vec::new())
    }
    /// What `asked` wants of `body`, as a server does that knows ranges.
    pub(crate) fn part(body: &[u8], asked: &Asked) -> Reply {
        match asked.from() {
            None => Reply::bytes(body),
            Some(from) => {
                let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
                Reply::Whole(206, vec![("Content-Range", range)], body[from..].to_vec())
            }
        }
    }
}

type Script = dyn Fn(&Asked) -> Reply + Send + Sync;

/// A running one; dropping it closes every connection.
pub(crate) struct Faulty {
    address: String,
    server: JoinHandle<()>,
    told: Arc<Told>,
}

#[derive(Default)]
struct Told {
    asked: Mutex<Vec<Asked>>,
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Faulty {
    /// Listens on a free port of 127.0.0.1 and answers as `script` says.
    pub(crate) async fn start(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Faulty {
        Faulty::at("127.0.0.1:0", script).await
    }

    /// The same at this address.
    pub(crate) async fn at(
        address: &str,
        script: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> Faulty {
        let listener = TcpListener::bind(address).await.expect("a port can be bound");
        let address = listener.local_addr().expect("a bound socket has an address").to_string();
        let told = Arc::new(Told::default());
        let (script, kept): (Arc<Script>, _) = (Arc::new(script), told.clone());
        let server = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (script, told) = (script.clone(), kept.clone());
                // A client that leaves in the middle is no fault of this server.
                connections.spawn(async move { drop(converse(stream, &*script, &told).await) });
            }
        });
        Faulty { address, server, told }
    }

    /// `http://127.0.0.1:PORT`
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Everything that was asked so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.told.asked.lock().expect("no panic in the server").clone()
    }

    /// How often a path was asked for.
    pub(crate) fn count(&self, path: &str) -> usize {
        self.asked().iter().filter(|asked| asked.path == path).count()
    }

    /// The most requests that were answered at once.
    pub(crate) fn at_once(&self) -> usize {
        self.told.most.load(Ordering::SeqCst)
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn converse(stream: TcpStream, script: &Script, told: &Told) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(asked) = read_request(&mut stream, told).await? {
        let now = told.now.fetch_add(1, Ordering::SeqCst) + 1;
        told.most.fetch_max(now, Ordering::SeqCst);
        let answered = answer(stream.get_mut(), script(&asked)).await;
        told.now.fetch_sub(1, Ordering::SeqCst);
        if !answered? {
            return Ok(());
        }
    }
    Ok(())
}

async fn read_request(stream: &mut BufReader<TcpStream>, told: &Told) -> std::io::Result<Option<Asked>> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.trim().to_owned()),
            None => break,
        };
    }
    let length: u64 = headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = Vec::new();
    (&mut *stream).take(length.min(KEPT)).read_to_end(&mut body).await?;
    let rest = length - body.len() as u64;
    if tokio::io::copy(&mut (&mut *stream).take(rest), &mut tokio::io::sink()).await? < rest {
        return Ok(None);
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let (path, query) = (path.to_owned(), query.to_owned());
    let mut all = told.asked.lock().expect("no panic in the server");
    let earlier = all.iter().filter(|asked| asked.path == path && asked.method == method).count();
    let asked = Asked { method, path, query, headers, earlier, body: Vec::new(), length };
    all.push(asked.clone());
    Ok(Some(Asked { body, ..asked }))
}

/// Whether the connection goes on.
async fn answer(stream: &mut TcpStream, reply: Reply) -> std::io::Result<bool> {
    let head = |status: u16, headers: &[(&str, String)], length: usize| {
        let mut head = format!("HTTP/1.1 {status} Said\r\nContent-Length: {length}\r\n");
        for (name, value) in headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        head + "\r\n"
    };
    match reply {
        Reply::Whole(status, headers, body) => {
            stream.write_all(head(status, &headers, body.len()).as_bytes()).await?;
            stream.write_all(&body).await?;
            Ok(true)
        }
        Reply::Cut(length, body) => {
            stream.write_all(head(200, &[], length).as_bytes()).await?;
            stream.write_all(&body).await?;
            stream.flush().await?;
            Ok(false)
        }
        Reply::Stall(length, body) => {
            stream.write_all(head(200, &[], length).as_bytes()).await?;
            stream.write_all(&body).await?;
            // Until the client leaves.
            let _ = stream.read(&mut [0; 1]).await;
            Ok(false)
        }
        Reply::Drip(body, every) => {
            stream.write_all(head(200, &[], body.len()).as_bytes()).await?;
            for byte in body {
                stream.write_all(&[byte]).await?;
                sleep(every).await;
            }
            Ok(true)
        }
        Reply::Late(body, after) => {
            sleep(after).await;
            stream.write_all(head(200, &[], body.len()).as_bytes()).await?;
            stream.write_all(&body).await?;
            Ok(true)
        }
    }
}

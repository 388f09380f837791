//! A tap on the line between a worker and RabbitMQ: it passes everything on, and keeps what passed while it is open.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// AMQP 0-9-1 §4.2.7: type 8, channel 0, no payload, the frame's end.
const HEARTBEAT: [u8; 8] = [8, 0, 0, 0, 0, 0, 0, 0xCE];

/// Dropping it closes the line.
pub(super) struct Tap {
    address: String,
    kept: Arc<Mutex<Option<Kept>>>,
    serving: AbortHandle,
}

/// What passed, to the server and from it.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub(super) sent: Vec<u8>,
    pub(super) received: Vec<u8>,
}

impl Tap {
    /// On the way to `server`, a host and a port.
    pub(super) async fn before(server: &str) -> Tap {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let kept = Arc::new(Mutex::new(None));
        let (server, keep) = (server.to_owned(), kept.clone());
        let serving = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&server).await.unwrap();
                let ((client_out, client_in), (server_out, server_in)) =
                    (client.into_split(), server.into_split());
                tokio::spawn(pass(client_out, server_in, keep.clone(), |kept| &mut kept.sent));
                tokio::spawn(pass(server_out, client_in, keep.clone(), |kept| &mut kept.received));
            }
        });
        Tap { address, kept, serving: serving.abort_handle() }
    }

    /// Where it listens: host and port.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// From now on what passes is kept.
    pub(super) fn open(&self) {
        *self.kept.lock().unwrap() = Some(Kept::default());
    }

    /// What passed since.
    pub(super) fn close(&self) -> Kept {
        self.kept.lock().unwrap().take().unwrap()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Kept {
    /// Whether nothing but heartbeats passed.
    pub(super) fn is_quiet(&self) -> bool {
        [&self.sent, &self.received]
            .iter()
            .all(|bytes| bytes.chunks(HEARTBEAT.len()).all(|frame| frame == HEARTBEAT))
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    kept: Arc<Mutex<Option<Kept>>>,
    direction: fn(&mut Kept) -> &mut Vec<u8>,
) {
    let mut buffer = vec![0; 64 << 10];
    // A side that closes, however it does, ends the other.
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if let Some(kept) = &mut *kept.lock().unwrap() {
            direction(kept).extend_from_slice(&buffer[..n]);
        }
        if to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}

//! A TCP proxy before a server: a network that a test cuts in both directions or in one.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// What passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passage {
    /// Everything.
    Open,
    /// Connections are closed, new ones too.
    Closed,
    /// Connections stand and nothing arrives, as behind a cable that is out; what was sent arrives when it is open again.
    Held,
    /// What clients send vanishes; what the server sends arrives.
    DeafServer,
    /// What the server sends vanishes; what clients send arrives.
    DeafClients,
}

/// A running one; dropping it closes every connection.
pub(crate) struct Proxy {
    address: String,
    passage: Arc<watch::Sender<Passage>>,
    server: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 before `target`, a host and port.
    pub(crate) async fn before(target: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port can be bound");
        let address = listener.local_addr().expect("a bound socket has an address").to_string();
        let passage = Arc::new(watch::Sender::new(Passage::Open));
        let (kept, target) = (passage.clone(), target.to_owned());
        let server = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (passage, target) = (kept.subscribe(), target.clone());
                connections.spawn(async move {
                    if *passage.borrow() != Passage::Closed
                        && let Ok(server) = TcpStream::connect(target).await
                    {
                        carry(client, server, passage).await;
                    }
                });
            }
        });
        Proxy { address, passage, server }
    }

    /// Its own host and port.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// From now on only this passes. Connections that lost something are closed when everything passes again.
    pub(crate) fn let_pass(&self, passage: Passage) {
        self.passage.send_replace(passage);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Until either side ends, or the connection is cut.
async fn carry(client: TcpStream, server: TcpStream, passage: watch::Receiver<Passage>) {
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::select! {
        () = pump(from_client, to_server, (passage.clone(), Passage::DeafServer)) => {}
        () = pump(from_server, to_client, (passage, Passage::DeafClients)) => {}
    }
}

/// One direction, of which nothing arrives while `deaf` is in force.
async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    (mut passage, deaf): (watch::Receiver<Passage>, Passage),
) {
    let mut buffer = vec![0; 64 * 1024];
    let mut lost = false;
    loop {
        let now = *passage.borrow_and_update();
        if now == Passage::Closed || lost && now == Passage::Open {
            return;
        }
        let read = tokio::select! {
            read = from.read(&mut buffer), if now != Passage::Held => read,
            changed = passage.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        let Ok(count @ 1..) = read else { return };
        if *passage.borrow() == deaf {
            lost = true;
        } else if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

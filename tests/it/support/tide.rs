//! A way to a server that comes and goes: while it is low, every connection breaks.

use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// A port of this host behind which another one lies; dropping it closes every connection.
pub(crate) struct Tide {
    port: u16,
    is_high: Arc<watch::Sender<bool>>,
    carrier: JoinHandle<()>,
}

impl Tide {
    /// Carries bytes to `upstream`, such as `127.0.0.1:8080`, from now on.
    pub(crate) async fn before(upstream: &str) -> Tide {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port can be bound");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let (is_high, upstream) = (Arc::new(watch::Sender::new(true)), upstream.to_owned());
        let level = is_high.clone();
        let carrier = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                let (upstream, mut level) = (upstream.clone(), level.subscribe());
                connections.spawn(async move {
                    let carried = async {
                        let mut far = TcpStream::connect(upstream).await?;
                        tokio::io::copy_bidirectional(&mut near, &mut far).await
                    };
                    tokio::select! {
                        _ = carried => {}
                        _ = level.wait_for(|is_high| !is_high) => {}
                    }
                });
            }
        });
        Tide { port, is_high, carrier }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// From now on every connection breaks.
    pub(crate) fn ebb(&self) {
        self.is_high.send_replace(false);
    }

    /// From now on none does.
    pub(crate) fn flood(&self) {
        self.is_high.send_replace(true);
    }
}

impl Drop for Tide {
    fn drop(&mut self) {
        self.carrier.abort();
    }
}

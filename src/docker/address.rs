//! Where the engine listens: read from the settings, or found among the usual sockets.

use std::fmt;
use std::path::{Path, PathBuf};

use super::engine::EngineError;

/// The address of a container engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// The first of the usual sockets that exists when it is needed.
    Found(Vec<PathBuf>),
    /// A Unix socket.
    Unix(PathBuf),
    /// `host:port`, without TLS.
    Tcp(String),
}

impl Address {
    /// Reads `host` as `DOCKER_HOST` is written; empty means to look for the local Docker, then Podman.
    pub fn read(host: &str) -> Result<Self, EngineError> {
        let refuse =
            |reason: &str| Err(EngineError::Address { address: host.to_owned(), reason: reason.to_owned() });
        let Some((scheme, rest)) = host.split_once("://") else {
            return match host {
                "" => {
                    let runtime_folder = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
                    Ok(Self::Found(usual_sockets(runtime_folder.as_deref())))
                }
                path if path.starts_with('/') => Ok(Self::Unix(path.into())),
                _ => refuse("write unix:///path/of/the/socket or tcp://host:port"),
            };
        };
        match scheme {
            "unix" if rest.starts_with('/') => Ok(Self::Unix(rest.into())),
            "unix" => refuse("the path of a socket is absolute, write unix:///path/of/the/socket"),
            "tcp" | "http" => {
                let rest = rest.trim_end_matches('/');
                let sound = rest.rsplit_once(':').is_some_and(|(host, port)| {
                    !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok()
                });
                if sound { Ok(Self::Tcp(rest.to_owned())) } else { refuse("write tcp://host:port") }
            }
            "https" | "ssh" | "npipe" | "fd" => refuse(
                "longshore speaks to unix:// and tcp:// without TLS; forward the engine's socket to a local one",
            ),
            _ => refuse("write unix:///path/of/the/socket or tcp://host:port"),
        }
    }

    /// The socket or `host:port` to connect to now.
    pub(super) fn target(&self) -> Target {
        match self {
            Self::Unix(path) => Target::Unix(path.clone()),
            Self::Tcp(address) => Target::Tcp(address.clone()),
            Self::Found(sockets) => {
                let first = sockets.iter().find(|path| path.exists()).or_else(|| sockets.first());
                Target::Unix(first.cloned().unwrap_or_else(|| PathBuf::from("/var/run/docker.sock")))
            }
        }
    }
}

/// Where to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    Unix(PathBuf),
    Tcp(String),
}

impl Target {
    /// Whether somebody accepts a connection there.
    pub(super) async fn listens(&self) -> bool {
        match self {
            Self::Unix(path) => tokio::net::UnixStream::connect(path).await.is_ok(),
            Self::Tcp(address) => tokio::net::TcpStream::connect(address).await.is_ok(),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

fn usual_sockets(runtime_folder: Option<&Path>) -> Vec<PathBuf> {
    let own = |name: &str| runtime_folder.map(|folder| folder.join(name));
    [
        Some(PathBuf::from("/var/run/docker.sock")),
        own("docker.sock"),
        own("podman/podman.sock"),
        Some(PathBuf::from("/run/podman/podman.sock")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_socket_or_a_plain_host_and_port() {
        let read = |host| Address::read(host).map(|address| address.target().to_string());
        assert_eq!(read("unix:///run/x.sock").unwrap(), "unix:///run/x.sock");
        assert_eq!(read("/run/x.sock").unwrap(), "unix:///run/x.sock");
        assert_eq!(read("tcp://10.0.0.1:2375").unwrap(), "tcp://10.0.0.1:2375");
        assert_eq!(read("http://[::1]:2375/").unwrap(), "tcp://[::1]:2375");
        for wrong in ["tcp://host", "unix://x.sock", "docker.sock", "ssh://me@host", "tcp://h:1/path"] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.contains(wrong) && error.contains("is no address"), "{error}");
        }
    }

    #[test]
    fn without_an_address_the_first_socket_that_exists_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let sockets = usual_sockets(Some(folder.path()));
        assert_eq!(sockets[0], Path::new("/var/run/docker.sock"));
        let podman = folder.path().join("podman/podman.sock");
        assert_eq!(Address::Found(sockets[1..].to_vec()).target(), Target::Unix(sockets[1].clone()));
        std::fs::create_dir(podman.parent().unwrap()).unwrap();
        std::fs::write(&podman, "").unwrap();
        assert_eq!(Address::Found(sockets[1..].to_vec()).target(), Target::Unix(podman));
    }
}

//! Reads an address such as `rediss://user:password@host:6379/2?prefix=lab&ca=/etc/ssl/lab.pem`.

use std::time::Duration;

use redis::{Client, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, TlsCertificates};

use super::LinkError;

/// Where a server is, and what is said of the keys there.
#[derive(Clone)]
pub struct Place {
    /// The address without secrets.
    pub name: String,
    /// What every key begins with.
    pub prefix: String,
    /// How long a dedup id is remembered, when the address says so.
    pub dedup: Option<Duration>,
    info: ConnectionInfo,
    certificates: Option<Certificates>,
}

/// Files in PEM that TLS wants beyond what the system has.
#[derive(Clone, Default)]
struct Certificates {
    authority: Option<Vec<u8>>,
    client: Option<(Vec<u8>, Vec<u8>)>,
}

/// What every key begins with unless the address says otherwise.
const PREFIX: &str = "longshore";

impl Place {
    /// Reads `address`; files that it names are read now. `name` is the address without secrets.
    pub fn parse(address: &str, name: &str) -> Result<Self, LinkError> {
        let wrong = |what: String| LinkError::Address(format!("the address {name} {what}"));
        let (base, query) = address.split_once('?').unwrap_or((address, ""));
        if address.contains('#') {
            return Err(wrong("must not have a part behind #: certificates are always checked".to_owned()));
        }
        let mut options = Options::default();
        let mut rest = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if !options.set(key, &decoded(value)).map_err(&wrong)? {
                rest.push(pair);
            }
        }
        let base = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
        let info = base.as_str().into_connection_info().map_err(|error| {
            // What the library says may repeat the password.
            let kind = error.category();
            wrong(format!(
                "cannot be read ({kind}): write redis://user:password@host:6379/0, rediss:// for TLS, or redis+unix:///path/to/socket"
            ))
        })?;
        let tls = matches!(info.addr(), redis::ConnectionAddr::TcpTls { .. });
        let certificates = options.certificates().map_err(&wrong)?;
        if certificates.is_some() && !tls {
            return Err(wrong("names certificates, which only rediss:// uses".to_owned()));
        }
        let redis = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let info = info.clone().set_redis_settings(redis);
        let prefix = options.prefix.unwrap_or_else(|| PREFIX.to_owned());
        let name = if prefix == PREFIX { name.to_owned() } else { format!("{name}?prefix={prefix}") };
        Ok(Self { name, prefix, dedup: options.dedup, info, certificates })
    }

    /// The number of its database.
    pub fn database(&self) -> i64 {
        self.info.redis_settings().db()
    }

    /// A client, which opens connections.
    pub(super) fn client(&self) -> Result<Client, LinkError> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let opened = match self.certificates.clone() {
            None => Client::open(self.info.clone()),
            Some(Certificates { authority, client }) => {
                let client_tls = client
                    .map(|(client_cert, client_key)| redis::ClientTlsConfig { client_cert, client_key });
                Client::build_with_tls(
                    self.info.clone(),
                    TlsCertificates { client_tls, root_cert: authority },
                )
            }
        };
        opened.map_err(|error| LinkError::Address(format!("the address {}: {error}", self.name)))
    }

    /// A connection that does nothing but listen.
    pub async fn listener(&self) -> Result<redis::aio::PubSub, LinkError> {
        Ok(self.client()?.get_async_pubsub().await?)
    }
}

/// The options that are ours; the client library reads the others.
#[derive(Default)]
struct Options {
    prefix: Option<String>,
    dedup: Option<Duration>,
    ca: Option<String>,
    cert: Option<String>,
    key: Option<String>,
}

impl Options {
    /// Whether `key` is one of ours.
    fn set(&mut self, key: &str, value: &str) -> Result<bool, String> {
        match key {
            "prefix" => {
                if value.is_empty() || value.contains(['{', '}']) || value.chars().any(char::is_whitespace) {
                    return Err(format!("has the prefix {value:?}: it must be a word without braces"));
                }
                self.prefix = Some(value.to_owned());
            }
            "dedup" => {
                let span: crate::units::Span =
                    value.parse().map_err(|error| format!("has the dedup window {value:?}: {error}"))?;
                if span.get() < Duration::from_secs(1) {
                    return Err(format!("has the dedup window {value:?}: it must be at least 1s"));
                }
                self.dedup = Some(span.get());
            }
            // The second names are those of Celery's addresses.
            "ca" | "ssl_ca_certs" => self.ca = Some(value.to_owned()),
            "cert" | "ssl_certfile" => self.cert = Some(value.to_owned()),
            "key" | "ssl_keyfile" => self.key = Some(value.to_owned()),
            "ssl_cert_reqs" if ["required", "CERT_REQUIRED"].contains(&value) => {}
            "ssl_cert_reqs" => {
                return Err(format!(
                    "has ssl_cert_reqs={value}: certificates are always checked; write ssl_cert_reqs=required, and name an authority of your own by ca=/path.pem"
                ));
            }
            // Of unix sockets, and read by the library.
            "db" | "user" | "pass" => return Ok(false),
            other => {
                return Err(format!(
                    "has the unknown option {other:?}; known are prefix, dedup, ca, cert and key, and for unix sockets db, user and pass"
                ));
            }
        }
        Ok(true)
    }

    fn certificates(&self) -> Result<Option<Certificates>, String> {
        let read = |path: &String| {
            std::fs::read(path)
                .map_err(|error| format!("names the file {path}, which cannot be read: {error}"))
        };
        let authority = self.ca.as_ref().map(read).transpose()?;
        let client = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
            (None, None) => None,
            _ => return Err("names one of cert and key: a client certificate needs both".to_owned()),
        };
        Ok((authority.is_some() || client.is_some()).then_some(Certificates { authority, client }))
    }
}

/// Percent signs of a query resolved; what is no such sign stays as it is.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let hex = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
        if let (b'%', Some(byte)) = (first, tail.get(..2).and_then(hex)) {
            bytes.push(byte);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(address: &str) -> String {
        Place::parse(address, "redis://h").map(|place| place.name).unwrap_err().to_string()
    }

    #[test]
    fn an_address_may_name_a_prefix_and_a_window() {
        let place = Place::parse("redis://u:secret@h:1/2?prefix=lab%2D1&dedup=2h", "redis://h:1/2").unwrap();
        assert_eq!((place.prefix.as_str(), place.dedup), ("lab-1", Some(Duration::from_secs(7_200))));
        assert_eq!(place.name, "redis://h:1/2?prefix=lab-1");
        assert_eq!(place.info.redis_settings().db(), 2);
        assert_eq!(place.info.redis_settings().password(), Some("secret"));
        assert!(!format!("{place:?}").contains("secret"));
    }

    #[test]
    fn unix_sockets_take_their_password_from_the_query() {
        let place =
            Place::parse("redis+unix:///run/r.sock?pass=x&prefix=a", "redis+unix:///run/r.sock").unwrap();
        assert_eq!(place.info.redis_settings().password(), Some("x"));
        assert_eq!(*place.info.addr(), redis::ConnectionAddr::Unix("/run/r.sock".into()));
    }

    #[test]
    fn celerys_words_for_certificates_are_read() {
        for wanted in ["required", "CERT_REQUIRED"] {
            Place::parse(&format!("rediss://h/0?ssl_cert_reqs={wanted}"), "rediss://h").unwrap();
        }
        let error = refused("rediss://h?ssl_cert_reqs=none");
        assert!(error.contains("always checked") && error.contains("ca="), "{error}");
        assert!(refused("rediss://h?ssl_ca_certs=/no/such/file").contains("/no/such/file"));
    }

    #[test]
    fn a_wrong_address_is_told_with_its_remedy_and_without_its_password() {
        let errors = [
            refused("redis://u:secret@h?prefix=a{b"),
            refused("redis://u:secret@h?dedup=0s"),
            refused("redis://u:secret@h?colour=red"),
            refused("redis://u:secret@h?ca=/etc/hosts"),
            refused("rediss://u:secret@h?cert=/etc/hosts"),
            refused("rediss://u:secret@h?ca=/no/such/file"),
            refused("rediss://u:secret@h#insecure"),
            refused("redis://u:secret@h:port"),
        ];
        assert!(!errors.join("").contains("secret"), "{errors:#?}");
        insta::assert_snapshot!(errors.join("\n"));
    }
}

//! Reads an address such as `nats://user:password@a:4222,b:4222?prefix=lab&replicas=3&creds=/etc/longshore/worker.creds`.
//!
//! The client library reads one server at a time and no options; this reads the rest, and NATS contexts (the files of the
//! `nats` command, `nats context add`).

use std::path::PathBuf;
use std::time::Duration;

use async_nats::{ConnectError, ConnectErrorKind, ConnectOptions, ServerAddr};
use serde::Deserialize;

use super::LinkError;

/// What the names of streams, buckets and subjects begin with unless the address says otherwise.
const PREFIX: &str = "longshore";

/// Where a server is, how to get in, and what is said of the streams there.
#[derive(Clone)]
pub struct Place {
    /// The address without secrets.
    pub name: String,
    /// What the names of streams, buckets and subjects begin with.
    pub prefix: String,
    /// How long a dedup id is remembered, when the address says so.
    pub dedup: Option<Duration>,
    /// Copies of each stream.
    pub replicas: u64,
    /// Where streams are kept.
    pub storage: Storage,
    /// Whether streams are made and repaired; otherwise they must be there.
    pub manage: bool,
    servers: Vec<ServerAddr>,
    access: Access,
    api: String,
    inbox_prefix: Option<String>,
}

/// Where a stream is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Storage {
    /// On disk.
    #[default]
    File,
    /// In memory: gone with the server.
    Memory,
}

impl Storage {
    /// As JetStream writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Memory => "memory",
        }
    }
}

/// What opens the door. Files are read when a connection is made, so that changed ones count.
#[derive(Clone, Default)]
struct Access {
    user: Option<(String, String)>,
    token: Option<String>,
    credentials: Option<PathBuf>,
    seed: Option<PathBuf>,
    authority: Option<PathBuf>,
    client: Option<(PathBuf, PathBuf)>,
    tls: bool,
}

/// A NATS context, as the `nats` command writes it. What is not known here is of no interest here.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Context {
    url: String,
    token: String,
    user: String,
    password: String,
    creds: String,
    nkey: String,
    cert: String,
    key: String,
    ca: String,
    jetstream_domain: String,
    jetstream_api_prefix: String,
    inbox_prefix: String,
}

/// What may stand behind the question mark.
#[derive(Default)]
struct Options {
    prefix: Option<String>,
    dedup: Option<Duration>,
    replicas: Option<u64>,
    storage: Storage,
    unmanaged: bool,
    domain: Option<String>,
    api_prefix: Option<String>,
    inbox_prefix: Option<String>,
    access: Access,
    certificate: (Option<PathBuf>, Option<PathBuf>),
    context: Option<String>,
}

impl Place {
    /// Reads `address`; `name` is the address without secrets.
    pub fn parse(address: &str, name: &str) -> Result<Self, LinkError> {
        let wrong = |what: String| LinkError::Address(format!("the address {name} {what}"));
        let (base, query) = address.split_once('?').unwrap_or((address, ""));
        let mut options = Options::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            options.set(key, &decoded(value)).map_err(&wrong)?;
        }
        let (scheme, rest) = base.split_once("://").unwrap_or(("nats", base));
        let (user_info, mut hosts) = match rest.rsplit_once('@') {
            Some((user_info, hosts)) => (Some(user_info), hosts.to_owned()),
            None => (None, rest.to_owned()),
        };
        if let Some(context) = options.context.clone() {
            let read = Context::read(&context).map_err(&wrong)?;
            if hosts.is_empty() {
                hosts = read.hosts();
            }
            options.adopt(read);
        }
        if let Some(user_info) = user_info {
            match user_info.split_once(':') {
                Some((user, password)) => options.access.user = Some((decoded(user), decoded(password))),
                // As NATS has it: a name without a password is a token.
                None => options.access.token = Some(decoded(user_info)),
            }
        }
        options.access.tls |= scheme == "tls";
        options.access.client = match options.certificate.clone() {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err(wrong("names one of cert and key: a client certificate needs both".to_owned())),
        };
        let scheme = if options.access.tls { "tls" } else { "nats" };
        let servers = hosts.split(',').map(|host| format!("{scheme}://{}", host.trim()).parse());
        let servers: Result<Vec<ServerAddr>, _> = servers.collect();
        let servers = servers.map_err(|_| {
            wrong("cannot be read: write nats://host:4222, several hosts with commas between them".to_owned())
        })?;
        let api = match (&options.api_prefix, &options.domain) {
            (Some(_), Some(_)) => {
                return Err(wrong("names both api_prefix and domain: a domain is an API prefix".to_owned()));
            }
            (Some(prefix), None) => prefix.clone(),
            (None, Some(domain)) => format!("$JS.{domain}.API"),
            (None, None) => "$JS.API".to_owned(),
        };
        let prefix = options.prefix.unwrap_or_else(|| PREFIX.to_owned());
        let name = if prefix == PREFIX { name.to_owned() } else { format!("{name}?prefix={prefix}") };
        Ok(Self {
            name,
            prefix,
            dedup: options.dedup,
            replicas: options.replicas.unwrap_or(1),
            storage: options.storage,
            manage: !options.unmanaged,
            servers,
            access: options.access,
            api,
            inbox_prefix: options.inbox_prefix,
        })
    }

    /// What requests to JetStream begin with.
    pub fn api(&self) -> &str {
        &self.api
    }

    /// What inboxes begin with.
    pub fn inbox_prefix(&self) -> &str {
        self.inbox_prefix.as_deref().unwrap_or("_INBOX")
    }

    pub(super) fn servers(&self) -> Vec<ServerAddr> {
        self.servers.clone()
    }

    pub(super) async fn connect_options(&self) -> Result<ConnectOptions, LinkError> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let unread = |what: &str, path: &std::path::Path, error: std::io::Error| {
            let path = path.display();
            LinkError::Address(format!("the address {} names the {what} {path}: {error}", self.name))
        };
        let access = &self.access;
        let mut options = ConnectOptions::new();
        if let Some((user, password)) = &access.user {
            options = options.user_and_password(user.clone(), password.clone());
        }
        if let Some(token) = &access.token {
            options = options.token(token.clone());
        }
        if let Some(path) = &access.credentials {
            let read = options.credentials_file(path).await;
            options = read.map_err(|error| unread("credentials file", path, error))?;
        }
        if let Some(path) = &access.seed {
            let seed = tokio::fs::read_to_string(path).await;
            let seed = seed.map_err(|error| unread("nkey file", path, error))?;
            options = options.nkey(seed.trim().to_owned());
        }
        if let Some(path) = &access.authority {
            options = options.add_root_certificates(path.clone());
        }
        if let Some((certificate, key)) = &access.client {
            options = options.add_client_certificate(certificate.clone(), key.clone());
        }
        if access.tls || access.authority.is_some() || access.client.is_some() {
            options = options.require_tls(true);
        }
        if let Some(prefix) = &self.inbox_prefix {
            options = options.custom_inbox_prefix(prefix);
        }
        Ok(options)
    }
}

impl Options {
    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let word = |what: &str| {
            let ok = !value.is_empty() && !value.contains(|c: char| c.is_whitespace() || "*>".contains(c));
            if ok {
                Ok(value.to_owned())
            } else {
                Err(format!("has the {what} {value:?}: it must be a word"))
            }
        };
        let path = || Some(PathBuf::from(value));
        match key {
            "prefix" => {
                let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
                if value.is_empty() || !value.chars().all(plain) {
                    return Err(format!(
                        "has the prefix {value:?}: it must be letters, digits, - and _, as it becomes part of streams' names"
                    ));
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
            "replicas" => {
                let replicas = value.parse().ok().filter(|replicas| (1..=5).contains(replicas));
                self.replicas = Some(replicas.ok_or_else(|| {
                    format!("has {value:?} replicas: it must be a number from 1 to 5, best an odd one")
                })?);
            }
            "storage" => {
                self.storage = match value {
                    "file" => Storage::File,
                    "memory" => Storage::Memory,
                    _ => return Err(format!("has the storage {value:?}: it is file or memory")),
                }
            }
            "manage" => {
                self.unmanaged = match value {
                    "yes" | "true" => false,
                    "no" | "false" => true,
                    _ => return Err(format!("says manage={value}: it is yes or no")),
                }
            }
            "domain" => self.domain = Some(word("JetStream domain")?),
            "api_prefix" => self.api_prefix = Some(word("API prefix")?),
            "inbox_prefix" => self.inbox_prefix = Some(word("inbox prefix")?),
            "token" => self.access.token = Some(value.to_owned()),
            "creds" => self.access.credentials = path(),
            "nkey" => self.access.seed = path(),
            "ca" => self.access.authority = path(),
            "cert" => self.certificate.0 = path(),
            "key" => self.certificate.1 = path(),
            "context" => self.context = Some(word("context")?),
            other => {
                return Err(format!(
                    "has the unknown option {other:?}; known are prefix, dedup, replicas, storage, manage, domain, api_prefix, inbox_prefix, token, creds, nkey, ca, cert, key and context"
                ));
            }
        }
        Ok(())
    }

    /// Takes from a context what the address does not say itself.
    fn adopt(&mut self, context: Context) {
        fn fill<T>(slot: &mut Option<T>, text: String, of: impl FnOnce(String) -> T) {
            if slot.is_none() && !text.is_empty() {
                *slot = Some(of(text));
            }
        }
        self.access.tls |= context.url.starts_with("tls://");
        if !context.user.is_empty() {
            self.access.user.get_or_insert((context.user, context.password));
        }
        fill(&mut self.access.token, context.token, |token| token);
        fill(&mut self.access.credentials, context.creds, |file| expanded(&file));
        fill(&mut self.access.seed, context.nkey, |file| expanded(&file));
        fill(&mut self.access.authority, context.ca, |file| expanded(&file));
        fill(&mut self.certificate.0, context.cert, |file| expanded(&file));
        fill(&mut self.certificate.1, context.key, |file| expanded(&file));
        fill(&mut self.inbox_prefix, context.inbox_prefix, |prefix| prefix);
        if self.domain.is_none() && self.api_prefix.is_none() {
            fill(&mut self.domain, context.jetstream_domain, |domain| domain);
            if self.domain.is_none() {
                fill(&mut self.api_prefix, context.jetstream_api_prefix, |prefix| prefix);
            }
        }
    }
}

impl Context {
    fn read(name: &str) -> Result<Self, String> {
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
        let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).or_else(home);
        let folder = config.unwrap_or_default().join("nats/context");
        let path = folder.join(format!("{name}.json"));
        if name.contains(['/', '\\']) {
            return Err(format!("names the context {name:?}: it must be a name, not a path"));
        }
        let text = std::fs::read(&path).map_err(|error| {
            format!("names the context {name}, but {} cannot be read: {error}", path.display())
        })?;
        // What the parser says may repeat what stands there.
        serde_json::from_slice(&text)
            .map_err(|_| format!("names the context {name}, but {} is no NATS context", path.display()))
    }

    fn hosts(&self) -> String {
        let urls = self.url.split(',').map(|url| {
            let bare = url.trim().split_once("://").map_or(url.trim(), |(_, rest)| rest);
            bare.rsplit_once('@').map_or(bare, |(_, host)| host)
        });
        urls.collect::<Vec<_>>().join(",")
    }
}

/// What became of a first connection. What the library says repeats neither user nor password.
pub(super) fn refused_connection(error: &ConnectError) -> LinkError {
    let text = error.to_string();
    match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            LinkError::Refused(format!(
                "{text}: name a user that may (nats://user:password@host, ?creds=FILE, ?nkey=FILE, ?token=…)"
            ))
        }
        ConnectErrorKind::Tls => {
            LinkError::Refused(format!("{text}: is the certificate's authority known here (?ca=FILE)?"))
        }
        ConnectErrorKind::ServerParse => LinkError::Address(text),
        _ => LinkError::Unavailable(text),
    }
}

/// Contexts may say `~/…`.
fn expanded(file: &str) -> PathBuf {
    match (file.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => PathBuf::from(file),
    }
}

/// Percent signs resolved; what is no such sign stays as it is.
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
        Place::parse(address, "nats://h").map(|place| place.name).unwrap_err().to_string()
    }

    #[test]
    fn an_address_says_where_how_and_what() {
        let address =
            "nats://u:s%40cret@a:1,b?prefix=lab&dedup=2h&replicas=3&storage=memory&domain=edge&manage=no";
        let place = Place::parse(address, "nats://a:1,b").unwrap();
        assert_eq!(place.name, "nats://a:1,b?prefix=lab");
        assert_eq!((place.prefix.as_str(), place.dedup), ("lab", Some(Duration::from_secs(7_200))));
        assert_eq!((place.replicas, place.storage, place.manage), (3, Storage::Memory, false));
        assert_eq!(place.api(), "$JS.edge.API");
        let hosts: Vec<_> =
            place.servers().iter().map(|server| (server.host().to_owned(), server.port())).collect();
        assert_eq!(hosts, [("a".to_owned(), 1), ("b".to_owned(), 4222)]);
        assert_eq!(place.access.user, Some(("u".to_owned(), "s@cret".to_owned())));
        assert!(!format!("{place:?}").contains("cret"));
    }

    #[test]
    fn a_name_without_a_password_is_a_token() {
        let place = Place::parse("tls://t0ken@h", "tls://h").unwrap();
        assert_eq!(place.access.token.as_deref(), Some("t0ken"));
        assert!(place.access.tls);
    }

    #[test]
    fn a_wrong_address_is_told_with_its_remedy_and_without_its_password() {
        let errors = [
            refused("nats://u:secret@h?prefix=a.b"),
            refused("nats://u:secret@h?dedup=0s"),
            refused("nats://u:secret@h?colour=red"),
            refused("nats://u:secret@h?replicas=0"),
            refused("nats://u:secret@h?storage=tape"),
            refused("nats://u:secret@h?manage=perhaps"),
            refused("nats://u:secret@h?cert=/etc/hosts"),
            refused("nats://u:secret@h?domain=a&api_prefix=b"),
            refused("nats://u:secret@h?context=../x"),
            refused("nats://u:secret@h:port"),
        ];
        assert!(!errors.join("").contains("secret"), "{errors:#?}");
        insta::assert_snapshot!(errors.join("\n"));
    }
}

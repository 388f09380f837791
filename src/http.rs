//! The one HTTP client of the worker: TLS by rustls with ring, no redirects followed, no address reached that policy
//! forbids. Called by `pipeline` and `girder`; knows none of the rooms.
//!
//! # Decisions
//! - Names are resolved here and each address is judged just before it is used, so that a name that resolves to
//!   something else the second time gains nothing.
//! - Redirects are never followed by the client: whoever sent a token decides what may cross to another origin.

use std::error::Error as StdError;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::error::TaskError;

/// Decides what may be reached.
pub trait Judge: Send + Sync {
    /// Whether this host and port may be reached at all; the error is what the task fails with.
    fn host(&self, url: &Url) -> Result<(), TaskError>;
    /// Whether this address of `host` may be reached.
    fn address(&self, host: &str, address: IpAddr) -> Result<(), TaskError>;
    /// Judges with one such key decide alike, so that requests of their tasks may share connections.
    fn alike(&self) -> Option<String> {
        None
    }
}

/// Forbids nothing.
#[derive(Clone, Copy, Debug)]
pub struct Anything;

impl Judge for Anything {
    fn host(&self, _url: &Url) -> Result<(), TaskError> {
        Ok(())
    }
    fn address(&self, _host: &str, _address: IpAddr) -> Result<(), TaskError> {
        Ok(())
    }
    fn alike(&self) -> Option<String> {
        Some(String::new())
    }
}

/// How the other side proves who it is, and whether a proxy stands between.
#[derive(Clone, Debug, Default)]
pub struct Transport {
    /// Trusted beside the system's own roots, which `SSL_CERT_FILE` replaces.
    pub roots: Vec<reqwest::Certificate>,
    /// Whether its certificate is checked.
    pub verify: Verify,
    /// Who stands between.
    pub proxies: Proxies,
}

/// Whether the certificate of the other side is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Verify {
    /// It is.
    #[default]
    Strictly,
    /// It is not: anybody on the way can read along.
    Never,
}

/// Whether requests go through proxies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Proxies {
    /// They do not.
    #[default]
    None,
    /// As `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` say. The proxies' own names are not judged, since the
    /// administrator chose them; where a proxy resolves a name, only the name can be judged.
    Environment,
}

impl Proxies {
    /// The names of the hosts that are proxies.
    fn hosts(&self) -> Vec<String> {
        match self {
            Self::None => Vec::new(),
            Self::Environment => ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"]
                .iter()
                .flat_map(|name| [(*name).to_owned(), name.to_ascii_lowercase()])
                .filter_map(|name| std::env::var(name).ok())
                .filter_map(|text| {
                    let text = if text.contains("://") { text } else { format!("http://{text}") };
                    Url::parse(&text).ok()?.host_str().map(str::to_owned)
                })
                .collect(),
        }
    }
}

/// How long one request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// To resolve the name and connect.
    pub connect: Duration,
    /// While the other side neither takes nor sends anything although it is its turn.
    pub idle: Duration,
    /// Altogether, when bounded.
    pub total: Option<Duration>,
}

impl Default for Timeouts {
    /// 10 s to connect, 60 s idle, any time altogether.
    fn default() -> Self {
        Self { connect: Duration::from_secs(10), idle: Duration::from_secs(60), total: None }
    }
}

/// Whether `url` may be asked, as far as can be told before its name is resolved.
pub fn judge_url(url: &Url, judge: &dyn Judge) -> Result<(), TaskError> {
    judge.host(url)?;
    let host = url.host_str().unwrap_or_default();
    match host.trim_start_matches('[').trim_end_matches(']').parse() {
        // An address in the URL is never resolved.
        Ok(address) => judge.address(host, address),
        Err(_) => Ok(()),
    }
}

/// A client for URLs of the scheme of `url`; [`judge_url`] has to be asked before each request.
pub fn build(
    url: &Url,
    judge: &Arc<dyn Judge>,
    timeouts: &Timeouts,
    transport: &Transport,
) -> Result<reqwest::Client, TaskError> {
    // Fails when one is installed already, which is what is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let resolver = JudgedResolver { judge: judge.clone(), proxies: transport.proxies.hosts() };
    let mut builder = reqwest::Client::builder()
        .connect_timeout(timeouts.connect)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .http1_only()
        .user_agent(concat!("longshore/", env!("CARGO_PKG_VERSION")))
        .dns_resolver(Arc::new(resolver));
    if transport.proxies == Proxies::None {
        builder = builder.no_proxy();
    }
    builder = match (url.scheme(), transport.verify) {
        ("https", Verify::Strictly) => builder.tls_certs_merge(transport.roots.iter().cloned()),
        ("https", Verify::Never) => builder.tls_danger_accept_invalid_certs(true),
        // A host without root certificates can still speak plain HTTP.
        _ => builder.tls_certs_only([]),
    };
    builder.build().map_err(|error| {
        TaskError::retryable(
            "http_client",
            format!("cannot prepare TLS: {}; are root certificates installed on the worker?", chain(&error)),
        )
    })
}

/// A URL as it may be shown: without user, password, query and fragment.
pub fn without_secrets(url: &str) -> String {
    let Ok(mut url) = Url::parse(url) else { return "a malformed URL".to_owned() };
    // These fail only for URLs that cannot have a user at all.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

/// An error of the client as one sentence, without the URL, which may hold a token; a denial as itself.
pub fn explain(error: reqwest::Error, code: &str, what: &str) -> TaskError {
    let error = error.without_url();
    match denial(&error) {
        Some(denied) => denied.error.clone(),
        None => TaskError::retryable(code, format!("{what}: {}", chain(&error))),
    }
}

/// What an error of the client says, without the URL, which may hold a token.
pub fn reason(error: reqwest::Error) -> String {
    chain(&error.without_url())
}

/// An address that a judge refused while its name was resolved.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{error}")]
pub struct Denial {
    /// The name.
    pub host: String,
    /// The address.
    pub address: IpAddr,
    /// What the judge of the connection said; another one that judges alike may name its own task instead.
    pub error: TaskError,
}

/// The denial that is behind an error of the client, if one is.
pub fn denial(error: &reqwest::Error) -> Option<&Denial> {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(known) = cause {
        if let Some(denied) = known.downcast_ref::<Denial>() {
            return Some(denied);
        }
        cause = known.source();
    }
    None
}

/// The innermost cause says most; what wraps it is kept when it says something else.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = inner.source();
    }
    text
}

/// Resolves by the system and judges every address but those of proxies.
struct JudgedResolver {
    judge: Arc<dyn Judge>,
    proxies: Vec<String>,
}

impl Resolve for JudgedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let judge = self.judge.clone();
        let host = name.as_str().to_owned();
        let is_proxy = self.proxies.contains(&host);
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            let mut allowed = Vec::with_capacity(found.len());
            let mut denied = None;
            for address in found {
                match judge.address(&host, address.ip()) {
                    _ if is_proxy => allowed.push(address),
                    Ok(()) => allowed.push(address),
                    Err(error) => denied = Some(Denial { host: host.clone(), address: address.ip(), error }),
                }
            }
            match denied {
                Some(error) if allowed.is_empty() => Err(error.into()),
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct NotLoopback;
    impl Judge for NotLoopback {
        fn host(&self, _url: &Url) -> Result<(), TaskError> {
            Ok(())
        }
        fn address(&self, host: &str, address: IpAddr) -> Result<(), TaskError> {
            if address.is_loopback() {
                return Err(TaskError::permanent("denied", format!("{host} is {address}")));
            }
            Ok(())
        }
    }

    fn client(url: &Url, judge: &Arc<dyn Judge>) -> Result<reqwest::Client, TaskError> {
        judge_url(url, judge.as_ref())?;
        build(url, judge, &Timeouts::default(), &Transport::default())
    }

    #[tokio::test]
    async fn an_address_is_judged_after_its_name_was_resolved() {
        let judge: Arc<dyn Judge> = Arc::new(NotLoopback);
        let url = Url::parse("http://localhost:9/").unwrap();
        let client = client(&url, &judge).unwrap();
        let error = client.get(url).send().await.unwrap_err();
        let error = explain(error, "http", "asking");
        assert_eq!(error.code, "denied", "{error}");
    }

    #[test]
    fn an_address_in_the_url_is_judged() {
        let judge: Arc<dyn Judge> = Arc::new(NotLoopback);
        for url in ["http://127.0.0.1/", "http://[::1]:80/", "http://2130706433/", "http://0x7f.1/"] {
            let url = Url::parse(url).unwrap();
            assert_eq!(client(&url, &judge).unwrap_err().code, "denied", "{url}");
        }
    }

    #[test]
    fn what_is_shown_of_a_url_holds_no_secret() {
        let shown = without_secrets("https://user:hunter2@example.org:8080/a/b?token=hunter2#hunter2");
        assert_eq!(shown, "https://example.org:8080/a/b");
    }
}

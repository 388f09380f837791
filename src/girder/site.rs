//! What all Girder clients of a worker share: settings, trusted roots, proxies and connections.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::{Certificate, Url};

use super::connection::same;
use super::settings::Tls;
use super::{Cache, Client, Connection, Settings};
use crate::error::TaskError;
use crate::http::{self, Judge, Proxies, Timeouts, Transport, Verify};
use crate::task::GirderContext;

/// Pools that are kept; a worker has a few queues and a few servers.
const POOLS: usize = 64;

/// What all Girder clients of a worker share.
pub struct Site {
    settings: Settings,
    roots: Vec<Certificate>,
    cache: Option<Cache>,
    pools: Mutex<HashMap<Key, reqwest::Client>>,
}

/// Requests that may share connections.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    judge: String,
    scheme: String,
    verify: Verify,
}

impl Site {
    /// Reads the certificates that the settings name.
    pub fn new(settings: Settings, tls: &Tls) -> Result<Self, TaskError> {
        let roots = if tls.ca_file.as_os_str().is_empty() { Vec::new() } else { certificates(&tls.ca_file)? };
        Ok(Self { roots, ..Self::plain(settings) })
    }

    /// A site that trusts whom the system trusts.
    pub fn plain(settings: Settings) -> Self {
        let cache = Cache::new(&settings.cache);
        Self { settings, roots: Vec::new(), cache, pools: Mutex::default() }
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whom to trust beside those whom the system trusts.
    pub fn roots(&self) -> &[Certificate] {
        &self.roots
    }

    /// The cache of fetched files; none when it is off.
    pub fn cache(&self) -> Option<&Cache> {
        self.cache.as_ref()
    }

    /// A client of `connection` whose every request `judge` allows or denies.
    pub fn client(
        self: &Arc<Self>,
        connection: &Connection,
        judge: &Arc<dyn Judge>,
    ) -> Result<Client, TaskError> {
        Client::new(self.clone(), connection, judge.clone())
    }

    /// `connection` as the settings have it: `girder.api_url` stands for the Girder of the task, whatever address the
    /// task has for it. One of another server is left as it is, since its token is not for ours.
    pub fn rewritten(&self, connection: Connection, context: Option<&GirderContext>) -> Connection {
        let is_own = context.is_none_or(|context| same(&context.api_url, &connection.api_url));
        if self.settings.api_url.is_empty() || !is_own {
            return connection;
        }
        Connection { api_url: self.settings.api_url.clone(), ..connection }
    }

    /// The base for calls about the task's job, and the job's URL below it. `girder.job_api_url`
    /// (`GIRDER_WORKER_API_URL`), else `girder.api_url`, takes the place of the task's base where the job's URL begins
    /// with it; any other URL is left as it is, as `girder_worker` does (`girder_worker.app`).
    pub fn job_address(&self, context: &GirderContext, job_url: &str) -> (String, String) {
        let set = [&self.settings.job_api_url, &self.settings.api_url];
        let Some(new) = set.into_iter().find(|url| !url.is_empty()) else {
            return (context.api_url.clone(), job_url.to_owned());
        };
        let (new, old) = (new.trim_end_matches('/'), context.api_url.trim_end_matches('/'));
        let url = match job_url.strip_prefix(old) {
            Some(rest) if !old.is_empty() && rest.starts_with('/') => format!("{new}{rest}"),
            _ => job_url.to_owned(),
        };
        (new.to_owned(), url)
    }

    /// The client for requests to URLs like `url`.
    pub(super) fn pool(
        &self,
        url: &Url,
        judge: &Arc<dyn Judge>,
        verify: Verify,
    ) -> Result<reqwest::Client, TaskError> {
        let timeouts = Timeouts {
            connect: self.settings.connect_timeout.get(),
            idle: self.settings.stall_timeout.get(),
            total: None,
        };
        let transport = Transport { roots: self.roots.clone(), verify, proxies: Proxies::Environment };
        let build = || http::build(url, judge, &timeouts, &transport);
        let Some(alike) = judge.alike() else { return build() };
        let key = Key { judge: alike, scheme: url.scheme().to_owned(), verify };
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = pools.get(&key) {
            return Ok(client.clone());
        }
        let client = build()?;
        if pools.len() >= POOLS {
            // Requests under way keep theirs.
            pools.clear();
        }
        pools.insert(key, client.clone());
        Ok(client)
    }
}

impl std::fmt::Debug for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Site").field("settings", &self.settings).finish_non_exhaustive()
    }
}

fn certificates(file: &Path) -> Result<Vec<Certificate>, TaskError> {
    let refused = |reason: String| {
        let text = format!("tls.ca_file {}: {reason}; name a file of PEM certificates", file.display());
        TaskError::permanent("bad_setting", text)
    };
    let pem = std::fs::read(file).map_err(|error| refused(error.to_string()))?;
    let found = Certificate::from_pem_bundle(&pem).map_err(|error| refused(http::reason(error)))?;
    if found.is_empty() { Err(refused("it holds no certificate".to_owned())) } else { Ok(found) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::units::Span;

    /// Settings for tests on the loopback: short waits, no cache.
    pub(crate) fn quick() -> Settings {
        Settings {
            connect_timeout: Span::seconds(5),
            stall_timeout: Span::seconds(5),
            retry_budget: Span::seconds(5),
            ..Settings::default()
        }
    }

    fn site(change: impl FnOnce(&mut Settings)) -> Site {
        let mut settings = quick();
        change(&mut settings);
        Site::new(settings, &Tls { ca_file: "".into() }).unwrap()
    }
    fn context() -> GirderContext {
        serde_json::from_value(serde_json::json!({"api_url": "http://a:1/api/v1"})).unwrap()
    }

    #[test]
    fn the_job_is_addressed_as_girder_worker_does() {
        let job = "http://a:1/api/v1/job/7";
        let plain = site(|_| ());
        assert_eq!(plain.job_address(&context(), job), ("http://a:1/api/v1".into(), job.into()));
        let moved = site(|settings| settings.job_api_url = "http://b/x/".into());
        assert_eq!(moved.job_address(&context(), job), ("http://b/x".into(), "http://b/x/job/7".into()));
        let other = "http://a:1/api/v12/job/7";
        assert_eq!(moved.job_address(&context(), other), ("http://b/x".into(), other.into()));
        let both = site(|settings| settings.api_url = "http://c".into());
        assert_eq!(both.job_address(&context(), job), ("http://c".into(), "http://c/job/7".into()));
    }

    #[test]
    fn transforms_are_moved_by_the_own_setting_only_and_never_another_server() {
        let of = |api_url: &str| Connection {
            api_url: api_url.into(),
            token: None,
            session: crate::girder::Session::default(),
        };
        let worker = site(|settings| settings.job_api_url = "http://b".into());
        assert_eq!(
            worker.rewritten(of("http://a:1/api/v1/"), Some(&context())).api_url,
            "http://a:1/api/v1/"
        );
        let own = site(|settings| settings.api_url = "http://c".into());
        assert_eq!(own.rewritten(of("http://a:1/api/v1/"), Some(&context())).api_url, "http://c");
        assert_eq!(own.rewritten(of("http://z/api/v1"), Some(&context())).api_url, "http://z/api/v1");
        assert_eq!(own.rewritten(of("http://z/api/v1"), None).api_url, "http://c");
    }

    #[test]
    fn a_ca_file_without_certificates_is_told_by_its_setting() {
        let empty = tempfile::NamedTempFile::new().unwrap();
        let error = Site::new(quick(), &Tls { ca_file: empty.path().to_owned() }).unwrap_err();
        assert!(error.message.contains("tls.ca_file") && error.message.contains("PEM"), "{error}");
    }
}

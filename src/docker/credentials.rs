//! Registry logins from Docker's `config.json`, plain or from credential helpers. Never printed, never kept.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD};
use bollard::auth::DockerCredentials;
use serde::Deserialize;
use tokio::io::AsyncWriteExt;

/// How long a credential helper may take.
const HELPER_TIME: Duration = Duration::from_secs(30);

/// Where logins are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Logins {
    file: PathBuf,
}

/// Why a login could not be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum LoginError {
    #[error("the registry logins in {} cannot be read: {reason}", file.display())]
    File { file: PathBuf, reason: String },
    #[error("the credential helper docker-credential-{helper} of {} failed for {registry}: {reason}", file.display())]
    Helper { helper: String, file: PathBuf, registry: String, reason: String },
}

#[derive(Default, Deserialize)]
struct Config {
    #[serde(default)]
    auths: HashMap<String, Login>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
    #[serde(default, rename = "credHelpers")]
    helpers: HashMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
struct Login {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: String,
}

impl Logins {
    /// Those of `config.json` in `folder`; empty is `~/.docker`.
    pub(super) fn new(folder: &Path) -> Self {
        let folder = if folder.as_os_str().is_empty() {
            std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default().join(".docker")
        } else {
            folder.to_owned()
        };
        Self { file: folder.join("config.json") }
    }

    /// What a person may do about a refused pull.
    pub(super) fn advice(&self) -> String {
        format!("log in with `docker login` so that {} has the registry", self.file.display())
    }

    /// The login for `registry`, read anew each time; none when there is none.
    pub(super) async fn of(&self, registry: &str) -> Result<Option<DockerCredentials>, LoginError> {
        let text = match tokio::fs::read(&self.file).await {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.unreadable(error.to_string())),
        };
        // Errors of the parser quote the text: only where it went wrong is told.
        let config: Config = serde_json::from_slice(&text).map_err(|error| {
            self.unreadable(format!("no valid JSON at line {}, column {}", error.line(), error.column()))
        })?;
        let names = names_of(registry);
        let helper = names.iter().find_map(|name| config.helpers.get(*name)).or(config.store.as_ref());
        if let Some(helper) = helper.filter(|helper| !helper.is_empty()) {
            // Logins are stored under the name with which people logged in.
            if let Some(found) = self.ask(helper, names[0]).await? {
                return Ok(Some(found));
            }
        }
        let entry = config.auths.iter().find(|(key, _)| names.contains(&host_of(key)));
        entry.map_or(Ok(None), |(_, login)| self.plain(login, names[0]))
    }

    fn plain(&self, login: &Login, server: &str) -> Result<Option<DockerCredentials>, LoginError> {
        let mut found = DockerCredentials {
            username: login.username.clone(),
            password: login.password.clone(),
            identitytoken: login.identitytoken.clone().filter(|token| !token.is_empty()),
            registrytoken: login.registrytoken.clone().filter(|token| !token.is_empty()),
            serveraddress: Some(server.to_owned()),
            ..DockerCredentials::default()
        };
        if let Some(auth) = login.auth.as_deref().filter(|auth| !auth.is_empty()) {
            let pair = decoded(auth)
                .ok_or_else(|| self.unreadable(format!("auth of {server} is no base64 of user:password")))?;
            (found.username, found.password) = (Some(pair.0), Some(pair.1));
        }
        let empty = found.username.as_deref().unwrap_or_default().is_empty()
            && found.identitytoken.is_none()
            && found.registrytoken.is_none();
        Ok((!empty).then_some(found))
    }

    async fn ask(&self, helper: &str, server: &str) -> Result<Option<DockerCredentials>, LoginError> {
        let failed = |reason: String| LoginError::Helper {
            helper: helper.to_owned(),
            file: self.file.clone(),
            registry: server.to_owned(),
            reason,
        };
        let output = tokio::time::timeout(HELPER_TIME, run_helper(helper, server))
            .await
            .map_err(|_| failed(format!("no answer within {HELPER_TIME:?}")))?
            .map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stdout);
            // The protocol has no code for it: helpers print this sentence.
            if said.contains("credentials not found") {
                return Ok(None);
            }
            return Err(failed(said.trim().chars().take(200).collect()));
        }
        let helped: Helped = serde_json::from_slice(&output.stdout)
            .map_err(|_| failed("its answer is no JSON object with Username and Secret".to_owned()))?;
        let mut found =
            DockerCredentials { serveraddress: Some(server.to_owned()), ..DockerCredentials::default() };
        if helped.username == "<token>" {
            found.identitytoken = Some(helped.secret);
        } else {
            (found.username, found.password) = (Some(helped.username), Some(helped.secret));
        }
        Ok(Some(found))
    }

    fn unreadable(&self, reason: String) -> LoginError {
        LoginError::File { file: self.file.clone(), reason }
    }
}

async fn run_helper(helper: &str, server: &str) -> std::io::Result<std::process::Output> {
    let mut child = tokio::process::Command::new(format!("docker-credential-{helper}"))
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(server.as_bytes()).await?;
    }
    child.wait_with_output().await
}

/// The names under which logins to a registry are kept, the one to ask helpers for first.
fn names_of(registry: &str) -> Vec<&str> {
    match registry {
        "docker.io" => {
            vec!["https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io"]
        }
        other => vec![other],
    }
}

/// `host[:port]` of a key of `auths`, which may be a URL.
fn host_of(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

fn decoded(auth: &str) -> Option<(String, String)> {
    let lenient = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
    );
    let bytes = STANDARD.decode(auth).or_else(|_| lenient.decode(auth)).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.trim_end_matches('\0').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn of(config: &str, registry: &str) -> Result<Option<DockerCredentials>, LoginError> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        Logins::new(folder.path()).of(registry).await
    }

    #[tokio::test]
    async fn a_plain_login_is_found_by_host_or_url() {
        for key in ["r.example:5000", "https://r.example:5000", "https://r.example:5000/v1/"] {
            let config = format!(r#"{{"auths": {{"{key}": {{"auth": "bWU6YTpi"}}}}}}"#);
            let found = of(&config, "r.example:5000").await.unwrap().unwrap();
            assert_eq!((found.username.as_deref(), found.password.as_deref()), (Some("me"), Some("a:b")));
            assert!(of(&config, "r.example").await.unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn the_default_registry_has_several_names() {
        let config = r#"{"auths": {"https://index.docker.io/v1/": {"identitytoken": "t"}}}"#;
        assert_eq!(of(config, "docker.io").await.unwrap().unwrap().identitytoken.as_deref(), Some("t"));
    }

    #[tokio::test]
    async fn an_unreadable_file_says_where_and_shows_nothing_of_it() {
        let error = of(r#"{"auths": {"r": {"auth": "c2VjcmV0"}, }"#, "r").await.unwrap_err().to_string();
        assert!(error.contains("config.json") && error.contains("line 1"), "{error}");
        assert!(!error.contains("c2VjcmV0"), "{error}");
        let error = of(r#"{"auths": {"r": {"auth": "!"}}}"#, "r").await.unwrap_err().to_string();
        assert!(error.contains("auth of r"), "{error}");
    }

    #[tokio::test]
    async fn no_file_is_no_login() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Logins::new(folder.path()).of("r").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_helper_that_is_not_there_is_named() {
        let error = of(r#"{"credHelpers": {"r": "longshore-nowhere"}}"#, "r").await.unwrap_err().to_string();
        assert!(error.contains("docker-credential-longshore-nowhere"), "{error}");
    }
}

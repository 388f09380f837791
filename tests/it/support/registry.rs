//! A real image registry on 127.0.0.1, where every engine allows plain HTTP, with or without a login.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::docker::{clean_up, docker, engine};
use super::process::{Server, free_port};

/// A registry with storage of its own. Dropping it ends it and removes what was pulled from it.
pub(crate) struct Registry {
    address: String,
    folder: TempDir,
    _server: Server,
}

impl Registry {
    /// One that anybody may use.
    pub(crate) async fn open() -> Registry {
        Registry::start(None).await
    }

    /// One that asks for this user and password.
    pub(crate) async fn with_login(user: &str, password: &str) -> Registry {
        Registry::start(Some((user, password))).await
    }

    /// The reference under which the engine finds a name of this registry, such as `127.0.0.1:20123/tool:1`.
    pub(crate) fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// A folder for `DOCKER_CONFIG` that holds the login, if there is one.
    pub(crate) fn docker_config(&self) -> &Path {
        self.folder.path()
    }

    /// Pushes a local image under `name`, leaves no local name of it, and returns its reference here.
    pub(crate) async fn push(&self, image: &str, name: &str) -> String {
        let reference = self.reference(name);
        docker(&["tag", image, &reference]).await;
        docker(&["--config", text(self.docker_config()), "push", "--quiet", &reference]).await;
        docker(&["rmi", &reference]).await;
        reference
    }

    async fn start(login: Option<(&str, &str)>) -> Registry {
        engine().await;
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let address = format!("127.0.0.1:{}", free_port());
        let server = serve(folder.path(), &address, login).await;
        let registry = Registry { address, folder, _server: server };
        if let Some((user, password)) = login {
            let config = text(registry.docker_config());
            docker(&[
                "--config",
                config,
                "login",
                "--username",
                user,
                "--password",
                password,
                &registry.address,
            ])
            .await;
        }
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let filter = format!("reference={}/*", self.address);
        let names = clean_up(&["images", "--filter", &filter, "--format", "{{.Repository}}:{{.Tag}}"]);
        for name in names.lines() {
            clean_up(&["rmi", "--force", name]);
        }
    }
}

async fn serve(folder: &Path, address: &str, login: Option<(&str, &str)>) -> Server {
    let port = address
        .rsplit(':')
        .next()
        .and_then(|port| port.parse().ok())
        .expect("invariant: an address has a port");
    let mut settings = format!(
        "version: 0.1\nlog: {{level: warn}}\nhttp: {{addr: '{address}'}}\nstorage: {{filesystem: {{rootdirectory: '{}'}}}}\n",
        text(&folder.join("storage"))
    );
    if let Some((user, password)) = login {
        let users = folder.join("users");
        // The registry knows bcrypt only.
        let made = Command::new("htpasswd").args(["-Bbc", text(&users), user, password]).output();
        let made = made.expect("htpasswd can be started; run scripts/test-servers");
        assert!(made.status.success(), "htpasswd: {}", String::from_utf8_lossy(&made.stderr));
        writeln!(settings, "auth: {{htpasswd: {{realm: tests, path: '{}'}}}}", text(&users))
            .expect("invariant: text can be written to");
    }
    let file = folder.join("registry.yml");
    std::fs::write(&file, settings).expect("the temporary folder can be written");
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(&file);
    Server::start("docker-registry", &command, folder, port).await
}

fn text(path: &Path) -> &str {
    path.to_str().expect("invariant: temporary folders have plain names")
}

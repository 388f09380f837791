//! How a server is reached, and what is said of one that may lose data.

use std::path::Path;
use std::process::Command;

use ::redis::AsyncCommands;
use longshore::broker::{BrokerError, BrokerUrl, Settlement};
use longshore::celery::Backend;
use longshore::task::celery::CeleryContext;

use super::opened;
use crate::contract::dock::{fetch_one, message, settle, submit};
use crate::support::longshore::Longshore;
use crate::support::poll::eventually;
use crate::support::process::free_port;
use crate::support::redis::Redis;

async fn works(redis: &Redis, address: &str) {
    let broker = opened(redis, address).await.unwrap();
    submit(&broker, vec![message("a")]).await;
    settle(fetch_one(&broker).await, Settlement::Ack).await;
}

async fn refused(redis: &Redis, address: &str) -> String {
    let error = opened(redis, address).await.unwrap_err();
    let text = error.to_string();
    assert!(!text.contains("secret") && !format!("{error:?}").contains("secret"), "{text}");
    text
}

fn strings(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|argument| (*argument).to_owned()).collect()
}

#[tokio::test]
async fn a_unix_socket_is_an_address() {
    let redis =
        Redis::with(|folder| strings(&["--unixsocket", &format!("{}/r.sock", folder.display())])).await;
    works(&redis, &format!("redis+unix://{}/r.sock", redis.folder().display())).await;
}

#[tokio::test]
async fn a_password_is_used_and_never_shown() {
    let redis = Redis::with(|_| strings(&["--requirepass", "secret"])).await;
    let address = redis.address();
    works(&redis, &format!("redis://:secret@{address}")).await;
    let error = refused(&redis, &format!("redis://:secret-not@{address}")).await;
    assert!(error.contains("password"), "{error}");
    let error = refused(&redis, &format!("redis://{address}")).await;
    assert!(error.contains("user and password"), "{error}");
}

/// An authority and a server certificate by it for 127.0.0.1.
fn certificates(folder: &Path) {
    let openssl = |arguments: &[&str]| {
        let made = Command::new("openssl").args(arguments).current_dir(folder).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    };
    std::fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    let new = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    openssl(
        &[&new[..], &["-x509", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test", "-days", "2"]]
            .concat(),
    );
    openssl(&[&new[..], &["-keyout", "key.pem", "-out", "request", "-subj", "/CN=redis"]].concat());
    openssl(&[
        "x509",
        "-req",
        "-in",
        "request",
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-out",
        "cert.pem",
        "-days",
        "2",
        "-extfile",
        "names",
    ]);
}

/// A server that also speaks TLS, on this port, with a certificate of an authority of its own.
async fn secure(port: &str) -> Redis {
    let port = port.to_owned();
    Redis::with(move |folder| {
        certificates(folder);
        let file = |name: &str| folder.join(name).display().to_string();
        let files = [
            ("--tls-cert-file", file("cert.pem")),
            ("--tls-key-file", file("key.pem")),
            ("--tls-ca-cert-file", file("ca.pem")),
        ];
        let files = files.into_iter().flat_map(|(option, file)| [option.to_owned(), file]);
        strings(&["--tls-port", &port, "--tls-auth-clients", "no"]).into_iter().chain(files).collect()
    })
    .await
}

#[tokio::test]
async fn tls_is_checked_against_the_authority_that_the_address_names() {
    let port = free_port().to_string();
    let redis = secure(&port).await;
    let authority = redis.folder().join("ca.pem");
    works(&redis, &format!("rediss://127.0.0.1:{port}?ca={}", authority.display())).await;
    let unknown = opened(&redis, &format!("rediss://127.0.0.1:{port}")).await;
    assert!(matches!(unknown, Err(BrokerError::Unavailable { .. } | BrokerError::Url(_))), "{unknown:?}");
}

#[tokio::test]
async fn celerys_results_and_queues_go_over_tls_as_celerys_own_options_say() {
    let port = free_port().to_string();
    let redis = secure(&port).await;
    let authority = redis.folder().join("ca.pem").display().to_string();
    let address = format!("rediss://127.0.0.1:{port}/0?ssl_cert_reqs=required&ssl_ca_certs={authority}");
    let backend = |address: &str| {
        let broker = BrokerUrl::parse("celery+redis://127.0.0.1:1").unwrap();
        let address = address.to_owned();
        async move { Backend::open(&address, &broker, std::time::Duration::from_secs(10)).await }
    };
    let opened = backend(&format!("{address}&socket_timeout=30")).await.unwrap().unwrap();
    let context = CeleryContext { id: "told".to_owned(), ..CeleryContext::default() };
    opened.deliver(&context, r#"{"status": "SUCCESS"}"#).await.unwrap();
    // What went well stays so.
    opened.deliver(&context, r#"{"status": "FAILURE"}"#).await.unwrap();
    let stored: String = redis.connection().await.get("celery-task-meta-told").await.unwrap();
    assert_eq!(stored, r#"{"status": "SUCCESS"}"#);
    works(&redis, &format!("celery+{address}")).await;
    for (wrong, told) in [
        (format!("rediss://127.0.0.1:{port}/0"), "cannot be used"),
        (address.replace("required", "none"), "always checked"),
        (format!("redis://127.0.0.1:{port}/0?ssl_ca_certs={authority}"), "only rediss"),
    ] {
        let error = backend(&wrong).await.unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
}

#[tokio::test]
async fn a_worker_warns_of_a_server_that_may_lose_tasks() {
    let unsafe_options = ["--appendonly", "no", "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"];
    let careless = Redis::with(|_| strings(&unsafe_options)).await;
    let longshore = Longshore::with_settings(&format!("brokers = [\"{}\"]\n", careless.url()));
    let worker = longshore.worker(&[]).await;
    eventually(std::time::Duration::from_secs(5), "it warns", async || {
        let log = worker.log();
        (log.contains("may evict waiting tasks") && log.contains("keeps nothing on disk")).then_some(())
    })
    .await;
    let careful = Redis::start().await;
    let longshore = Longshore::with_settings(&format!("brokers = [\"{}\"]\n", careful.url()));
    let worker = longshore.worker(&[]).await;
    assert!(!worker.log().contains("WARN"), "{}", worker.log());
}

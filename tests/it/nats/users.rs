//! Who may enter and what he may do: users, tokens, nkeys, TLS, contexts, and the permissions that longshore prints.

use std::time::Duration;

use longshore::broker::Settlement;

use super::opened;
use crate::contract::dock::{fetch_one, message, settle, submit};
use crate::support::authority::certificates;
use crate::support::longshore::Longshore;
use crate::support::nats::Nats;
use crate::support::poll::eventually;

async fn works(nats: &Nats, address: &str) {
    let broker = opened(nats, address).await.unwrap();
    submit(&broker, vec![message("a")]).await;
    settle(fetch_one(&broker).await, Settlement::Ack).await;
}

async fn refused(nats: &Nats, address: &str) -> String {
    let error = opened(nats, address).await.unwrap_err();
    let text = error.to_string();
    assert!(!text.contains("secret") && !format!("{error:?}").contains("secret"), "{text}");
    text
}

#[tokio::test]
async fn user_and_password_are_used_and_never_shown() {
    let nats = Nats::with(|_| "authorization: { user: dock, password: \"s@cret\" }\n".to_owned()).await;
    works(&nats, &format!("nats://dock:s%40cret@{}", nats.address())).await;
    let error = refused(&nats, &format!("nats://dock:secret-not@{}", nats.address())).await;
    assert!(error.contains("nats://user:password@host"), "{error}");
    refused(&nats, &nats.url()).await;
}

#[tokio::test]
async fn a_token_is_used_and_never_shown() {
    let nats = Nats::with(|_| "authorization: { token: \"secret1\" }\n".to_owned()).await;
    works(&nats, &format!("nats://secret1@{}", nats.address())).await;
    let other = Nats::with(|_| "authorization: { token: \"secret1\" }\n".to_owned()).await;
    works(&other, &format!("nats://{}?token=secret1", other.address())).await;
    refused(&nats, &format!("nats://secret2@{}", nats.address())).await;
}

/// The pair of NATS' own documentation.
const SEED: &str = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
const PUBLIC: &str = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";

#[tokio::test]
async fn an_nkey_is_read_from_its_file() {
    let nats = Nats::with(|folder| {
        std::fs::write(folder.join("seed"), format!("{SEED}\n")).unwrap();
        format!("authorization: {{ users: [ {{ nkey: {PUBLIC} }} ] }}\n")
    })
    .await;
    works(&nats, &format!("{}?nkey={}", nats.url(), nats.folder().join("seed").display())).await;
    let error = refused(&nats, &format!("{}?nkey=/no/such/file", nats.url())).await;
    assert!(error.contains("/no/such/file"), "{error}");
}

/// An operator's server: accounts and users are what JWTs say, which `operator/make` made.
#[tokio::test]
async fn a_credentials_file_names_and_proves_its_user() {
    let nats = Nats::with(|folder| {
        std::fs::write(folder.join("dock.creds"), include_str!("operator/dock.creds")).unwrap();
        include_str!("operator/server.conf").to_owned()
    })
    .await;
    let file = nats.folder().join("dock.creds");
    works(&nats, &format!("{}?creds={}", nats.url(), file.display())).await;
    refused(&nats, &nats.url()).await;
    let error = refused(&nats, &format!("{}?creds=/no/such/file", nats.url())).await;
    assert!(error.contains("/no/such/file"), "{error}");
    let secret = include_str!("operator/dock.creds").lines().find(|line| line.starts_with("SU")).unwrap();
    std::fs::write(&file, secret).unwrap();
    let error = refused(&nats, &format!("{}?creds={}", nats.url(), file.display())).await;
    assert!(error.contains("dock.creds") && !error.contains(secret), "{error}");
}

#[tokio::test]
async fn tls_is_checked_against_the_authority_that_the_address_names() {
    let nats = Nats::with(|folder| {
        certificates(folder);
        let file = |name: &str| folder.join(name).display().to_string();
        format!("tls: {{ cert_file: \"{}\", key_file: \"{}\" }}\n", file("cert.pem"), file("key.pem"))
    })
    .await;
    let authority = nats.folder().join("ca.pem");
    works(&nats, &format!("tls://{}?ca={}", nats.address(), authority.display())).await;
    assert!(opened(&nats, &format!("tls://{}", nats.address())).await.is_err(), "an unknown authority");
}

#[tokio::test]
async fn a_context_of_the_nats_command_names_server_and_user() {
    let nats = Nats::with(|_| "authorization: { user: dock, password: secret }\n".to_owned()).await;
    let longshore = Longshore::with_settings("brokers = [\"nats://?context=quay\"]\n");
    let contexts = longshore.folder().join("config/nats/context");
    std::fs::create_dir_all(&contexts).unwrap();
    let context =
        serde_json::json!({ "url": nats.url(), "user": "dock", "password": "secret", "description": "" });
    std::fs::write(contexts.join("quay.json"), context.to_string()).unwrap();
    let mut command = tokio::process::Command::from(longshore.command(&["queue", "list"]));
    let said = command.env("XDG_CONFIG_HOME", longshore.folder().join("config")).output().await.unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
}

#[tokio::test]
async fn the_permissions_that_are_printed_suffice_and_no_more_is_allowed() {
    let printed = async |role: &str| {
        let longshore = Longshore::with_settings("brokers = [\"nats://anywhere\"]\n");
        longshore.ok(&["broker", "permissions", "--role", role]).await
    };
    let mut users = vec!["{ user: admin, password: admin }".to_owned()];
    for role in ["producer", "worker", "viewer"] {
        users.push(format!("{{ user: {role}, password: {role}, {} }}", printed(role).await));
    }
    let settings = format!("authorization: {{ users: [ {} ] }}\n", users.join("\n"));
    let nats = Nats::with(|_| settings).await;
    let of = |user: &str| {
        let address = format!("nats://{user}:{user}@{}", nats.address());
        let manage = if user == "admin" { "" } else { "?manage=no" };
        Longshore::with_settings(&format!("brokers = [\"{address}{manage}\"]\n"))
    };
    let [admin, producer, worker, viewer] = ["admin", "producer", "worker", "viewer"].map(of);
    admin.ok(&["broker", "init", "--queue", "default"]).await;
    let canceled = producer.ping(&[]).await;
    producer.ok(&["task", "cancel", &canceled]).await;
    let running = worker.worker(&["--name", "quay"]).await;
    let done = producer.ping(&[]).await;
    viewer.ok(&["task", "wait", &done]).await;
    for task in [&done, &canceled] {
        eventually(Duration::from_secs(20), "its end is seen", async || {
            let said = viewer.run(&["task", "show", task, "--output", "json"]).await;
            (said.stdout.contains("\"succeeded\"") || said.stdout.contains("\"canceled\"")).then_some(())
        })
        .await;
    }
    let events = viewer.ok(&["events", "--task", &done]).await;
    assert!(events.contains("longshore.task.succeeded.v1"), "{events}");
    assert!(viewer.ok(&["worker", "list"]).await.contains("quay"));
    assert!(viewer.ok(&["queue", "list"]).await.contains("default"));
    viewer.ok(&["dead", "list"]).await;
    viewer.ok(&["task", "list"]).await;
    let log = running.log();
    assert!(!log.contains("ermission"), "the worker wanted more than is printed: {log}");
    // What a worker may suffices to move away, and what a producer may to move there.
    drop(running);
    let (later, now) = (["--not-before", "1h"], producer.ping(&[]).await);
    let later = producer.ping(&later).await;
    let sqlite = format!("sqlite://{}", worker.folder().join("elsewhere.db").display());
    let at = |user: &str| format!("nats://{user}:{user}@{}?manage=no", nats.address());
    let moved = worker.ok(&["queue", "move", &at("worker"), &sqlite, "--queue", "default"]).await;
    assert!(moved.starts_with("2 moved"), "{moved}");
    let back = worker.ok(&["queue", "move", &sqlite, &at("producer"), "--queue", "default"]).await;
    assert!(back.starts_with("2 moved"), "{back}");
    for task in [&now, &later] {
        assert!(viewer.ok(&["task", "show", task]).await.contains(task.as_str()));
    }
    std::fs::write(viewer.folder().join("ping.json"), r#"{"v": 1, "task": "longshore.ping"}"#).unwrap();
    let said = viewer.run(&["submit", "--file", "ping.json"]).await;
    assert_eq!(said.code, Some(3), "a viewer must not submit: {said:?}");
}

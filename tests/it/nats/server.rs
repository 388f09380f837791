//! How streams are made and kept, and what is said of a server or address that does not serve.

use std::time::Duration;

use async_nats::jetstream;
use longshore::broker::{BrokerError, OpenOptions, Submission};

use super::opened;
use crate::contract::dock::{Dock, LONG, message, submit};
use crate::support::longshore::Longshore;
use crate::support::nats::Nats;

async fn refused(nats: &Nats, address: &str) -> String {
    let error = opened(nats, address).await.unwrap_err();
    let text = error.to_string();
    assert!(!text.contains("secret") && !format!("{error:?}").contains("secret"), "{text}");
    text
}

async fn stream_of(nats: &Nats, name: &str) -> jetstream::stream::Config {
    let context = jetstream::new(nats.connection().await);
    context.get_stream(name).await.unwrap().cached_info().config.clone()
}

#[tokio::test]
async fn limits_are_raised_and_never_lowered() {
    let nats = Nats::start().await;
    let with = |count, age| OpenOptions {
        event_count: count,
        event_age: Duration::from_secs(age),
        ..nats.options("one", &["default"], LONG)
    };
    let url = Dock::url(&nats);
    for (count, age, kept) in [(1_000, 600, (500, 600)), (4_000, 300, (2_000, 600)), (100, 900, (2_000, 900))]
    {
        longshore::broker::open(&url, &with(count, age)).await.unwrap();
        let config = stream_of(&nats, "longshore_chatter").await;
        assert_eq!((config.max_messages, config.max_age.as_secs()), kept);
    }
    let longer = format!("{}?dedup=1h", nats.url());
    opened(&nats, &longer).await.unwrap();
    assert_eq!(stream_of(&nats, "longshore_work").await.duplicate_window, Duration::from_secs(3_600));
    opened(&nats, &nats.url()).await.unwrap();
    assert_eq!(stream_of(&nats, "longshore_work").await.duplicate_window, Duration::from_secs(3_600));
}

#[tokio::test]
async fn where_streams_are_not_to_be_made_they_are_asked_for() {
    let nats = Nats::start().await;
    let address = format!("{}?manage=no", nats.url());
    let error = refused(&nats, &address).await;
    assert!(error.contains("longshore broker init"), "{error}");
    let longshore = Longshore::with_settings(&format!("brokers = [\"{address}\"]\n"));
    let made = longshore.ok(&["broker", "init", "--queue", "default"]).await;
    assert!(made.contains("stream longshore_work  was made"), "{made}");
    assert!(made.contains("stream KV_longshore_records  was made"), "{made}");
    let again = longshore.ok(&["broker", "init", "--queue", "default"]).await;
    assert!(!again.contains("was made"), "{again}");
    let one = opened(&nats, &address).await.unwrap();
    submit(&one, vec![message("a")]).await;
    crate::contract::dock::fetch_one(&one).await;
}

#[tokio::test]
async fn namespaces_share_a_server_without_meeting() {
    let nats = Nats::start().await;
    let lab = opened(&nats, &format!("{}?prefix=lab&storage=memory", nats.url())).await.unwrap();
    let usual = nats.one().await;
    submit(&lab, vec![message("a")]).await;
    crate::contract::dock::assert_nothing_comes(&usual).await;
    crate::contract::dock::fetch_one(&lab).await;
    assert_eq!(stream_of(&nats, "lab_work").await.storage, jetstream::stream::StorageType::Memory);
}

#[tokio::test]
async fn a_message_beyond_what_the_server_takes_is_refused_with_the_remedy() {
    let nats = Nats::with(|_| "max_payload: 10000\n".to_owned()).await;
    let one = nats.one().await;
    let large = Submission { body: vec![b'x'; 20_000].into(), ..message("large") };
    let error = one.submit.submit(vec![large]).await.unwrap_err();
    assert!(matches!(error, BrokerError::Refused { .. }), "{error:?}");
    assert!(error.to_string().contains("raise its max_payload"), "{error}");
}

#[tokio::test]
async fn a_server_without_jetstream_is_told_apart_from_one_that_is_away() {
    let nats = Nats::without_jetstream().await;
    let error = refused(&nats, &nats.url()).await;
    assert!(error.contains("-js"), "{error}");
    let error = opened(&nats, "nats://127.0.0.1:1").await.unwrap_err();
    assert!(matches!(error, BrokerError::Unavailable { .. }), "{error:?}");
}

//! Envelopes that real Girder and Celery producers left in Redis: taken through the adapter, they decode as the corpus says.

use std::path::Path;

use longshore::broker::Settlement;
use longshore::task::message::{Decoded, decode};
use longshore::task::{Limits, RawMessage};
use redis::AsyncCommands;
use serde_json::Value;

use super::dock::CeleryRedis;
use crate::contract::dock::{Dock, LONG, fetch_one, settle};

#[tokio::test]
async fn raw_envelopes_of_the_corpus_decode_as_the_same_messages_in_files() {
    let dock = CeleryRedis::start().await;
    let one = dock.client("one", &["celery"], LONG).await;
    let mut producer = dock.redis.connection().await;
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut tried = 0;
    for file in std::fs::read_dir(corpus).unwrap() {
        let file = file.unwrap();
        let name = file.file_name().to_string_lossy().into_owned();
        if !name.contains("_redis_") || name.contains(".expected.") {
            continue;
        }
        let bytes = std::fs::read(file.path()).unwrap();
        let captured: Value = serde_json::from_slice(&bytes).unwrap();
        let envelope = captured["raw_envelope"].as_str().unwrap();
        let key = captured["redis_key"].as_str().unwrap();
        let _: i64 = producer.lpush(key, envelope).await.unwrap();
        let delivery = fetch_one(&one).await;
        let limits = Limits::default();
        let filed = decode(&RawMessage::from_file(&bytes, &limits).unwrap(), &limits);
        let taken = decode(&delivery.raw(), &limits);
        let Ok(Decoded::Task(task)) = &taken else { panic!("{}: {taken:?}", captured["name"]) };
        assert_eq!(task.id.as_str(), captured["headers"]["id"]);
        assert_eq!(taken, filed, "{}", captured["name"]);
        // Given back and taken again, it is still the same.
        settle(delivery, Settlement::Release { after: std::time::Duration::ZERO }).await;
        let again = fetch_one(&one).await;
        assert!(again.redelivered);
        assert_eq!(decode(&again.raw(), &limits), filed);
        settle(again, Settlement::Ack).await;
        tried += 1;
    }
    assert!(tried >= 4, "only {tried} envelopes of Redis are in the corpus");
}

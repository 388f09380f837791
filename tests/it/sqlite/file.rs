//! The file: who may read it, what is refused, and how it shrinks.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use longshore::broker::{self, BrokerUrl};
use longshore::store::{self, Expected, Put, Record, RecordQuery, Retention, StoreError};
use rusqlite::Connection;
use serde_json::json;

use super::{open, open_store, options};
use crate::contract::dock::{LONG, message, submit, task};

fn finished(name: &str, log: &str) -> Record {
    serde_json::from_value(json!({
        "id": name, "kind": "docker_run", "queue": "default", "priority": 5, "generation": 0, "status": "succeeded",
        "fence": 1, "attempts": 1, "unfinished_starts": 0, "times": {"changed": "2020-01-01T00:00:00Z"},
        "details": {"log_tail": log},
    }))
    .unwrap()
}

#[tokio::test]
async fn a_swept_store_gives_its_room_back() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("longshore.db");
    let store = open_store(&file).await;
    let records: Vec<Record> = (0..400).map(|n| finished(&format!("r{n}"), &"x".repeat(20_000))).collect();
    let puts = records.iter().map(|record| store.put(record, Expected::Absent));
    for put in futures_util::future::join_all(puts).await {
        assert!(matches!(put, Ok(Put::Stored(_))));
    }
    let day = Duration::from_secs(86_400);
    let size = || std::fs::metadata(&file).unwrap().len();
    // Nothing is beyond a size this large; sweeping for age does the rest.
    assert_eq!(store.sweep(&Retention { succeeded: day, failed: day, bytes: u64::MAX }).await.unwrap(), 400);
    assert!(size() < 400_000, "{} bytes are left of 8 MB", size());
    assert_eq!(store.list(&RecordQuery::default()).await.unwrap(), []);
}

#[tokio::test]
async fn only_its_owner_can_read_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("state/longshore.db");
    let broker = open(&file, "one", LONG).await;
    submit(&broker, vec![message("a")]).await;
    let mode = |name: &str| {
        std::fs::metadata(folder.path().join("state").join(name)).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode("longshore.db"), 0o600);
    assert_eq!(mode("longshore.db-wal"), 0o600);
    assert_eq!(mode("longshore.db.bell"), 0o700);
    assert_eq!(mode("."), 0o700);
}

#[tokio::test]
async fn a_broken_record_is_told_by_its_id_and_hides_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("longshore.db");
    let store = open_store(&file).await;
    for name in ["good", "broken", "binary"] {
        store.put(&finished(name, ""), Expected::Absent).await.unwrap();
    }
    let connection = Connection::open(&file).unwrap();
    connection.execute("UPDATE records SET document = '{\"id\": 5}' WHERE task = 'broken'", []).unwrap();
    connection
        .execute("UPDATE records SET document = CAST(x'ff00fe' AS TEXT) WHERE task = 'binary'", [])
        .unwrap();
    for name in ["broken", "binary"] {
        match store.load(&task(name)).await {
            Err(StoreError::Corrupt { id, .. }) => assert_eq!(id, name),
            unexpected => panic!("{unexpected:?}"),
        }
        let put = store.put(&finished(name, ""), Expected::Absent).await;
        assert!(matches!(put, Err(StoreError::Corrupt { .. })), "{put:?}");
    }
    let listed = store.list(&RecordQuery::default()).await.unwrap();
    assert_eq!(listed.iter().map(|record| record.id.as_str()).collect::<Vec<_>>(), ["good"]);
}

#[tokio::test]
async fn files_of_others_and_of_newer_versions_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let refusal = async |name: &str| {
        let url = BrokerUrl::sqlite(&folder.path().join(name));
        let refused = broker::open(&url, &options("one", LONG)).await.unwrap_err().to_string();
        assert!(store::open(&url, &options("one", LONG)).await.is_err());
        refused
    };
    let theirs = Connection::open(folder.path().join("theirs.db")).unwrap();
    theirs.execute("CREATE TABLE t (x)", []).unwrap();
    assert!(refusal("theirs.db").await.contains("another program's database: name another file"));
    let tables: i64 = theirs.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).unwrap();
    assert_eq!(tables, 1);

    drop(open(&folder.path().join("newer.db"), "one", LONG).await);
    Connection::open(folder.path().join("newer.db"))
        .unwrap()
        .pragma_update(None, "user_version", 99)
        .unwrap();
    assert!(refusal("newer.db").await.contains("newer longshore (schema 99, this one knows 1)"));

    std::fs::write(folder.path().join("text.db"), "no database at all, but text of some length").unwrap();
    assert!(refusal("text.db").await.contains("not a database"));
    std::fs::write(folder.path().join("file"), "").unwrap();
    assert!(refusal("file/longshore.db").await.contains("name a file in a writable folder"));
}

#[tokio::test]
async fn an_unknown_scheme_names_the_known_ones() {
    let url = BrokerUrl::parse("mysql://user:secret@host/db").unwrap();
    let refused = broker::open(&url, &options("one", LONG)).await.unwrap_err().to_string();
    assert!(refused.contains("\"mysql\"") && refused.contains("sqlite:///") && refused.contains("memory:"));
    assert!(!refused.contains("secret"));
    let Err(refused) = store::open(&url, &options("one", LONG)).await else { panic!("mysql is no store") };
    assert!(refused.to_string().contains("sqlite:///"));
    let nowhere = BrokerUrl::parse("sqlite:").unwrap();
    let refused = broker::open(&nowhere, &options("one", LONG)).await.unwrap_err().to_string();
    assert!(refused.contains("names no file"), "{refused}");
}

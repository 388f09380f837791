//! Group commits, one writer per file, and what a reboot means.

use std::path::Path;
use std::sync::Arc;

use rusqlite::Connection;

use super::{Database, DatabaseError};

fn file() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("longshore.db");
    (folder, file)
}

async fn add_queue(database: &Database, name: Option<String>) -> Result<usize, DatabaseError> {
    let insert = "INSERT INTO queues (name) VALUES (?1)";
    database.write(move |transaction| transaction.statement(insert)?.execute([&name])).await
}

fn queues(path: &Path) -> i64 {
    let connection = Connection::open(path).unwrap();
    connection.query_row("SELECT count(*) FROM queues", [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn an_operation_that_fails_spoils_no_other_of_its_group() {
    let (_folder, file) = file();
    let database = Database::open(&file).unwrap();
    let adds = (0..40).map(|n| add_queue(&database, (n % 10 != 3).then(|| format!("q{n}"))));
    let results = futures_util::future::join_all(adds).await;
    for (number, result) in results.iter().enumerate() {
        assert_eq!(result.is_err(), number % 10 == 3, "{number}: {result:?}");
    }
    assert_eq!(queues(&file), 36);
}

#[tokio::test]
async fn what_is_asked_for_together_shares_a_commit() {
    let (_folder, file) = file();
    let database = Database::open(&file).unwrap();
    let before = database.commits();
    let adds = (0..200).map(|n| add_queue(&database, Some(format!("q{n}"))));
    assert!(futures_util::future::join_all(adds).await.iter().all(Result::is_ok));
    let commits = database.commits() - before;
    assert!((1..=20).contains(&commits), "{commits} commits for 200 operations");
    assert_eq!(queues(&file), 200);
}

#[tokio::test]
async fn an_operation_is_done_even_if_nobody_waits_for_it() {
    let (_folder, file) = file();
    let database = Database::open(&file).unwrap();
    {
        let mut add = std::pin::pin!(add_queue(&database, Some("left".to_owned())));
        assert!(futures_util::poll!(&mut add).is_pending());
    }
    // Operations are done in order.
    add_queue(&database, Some("after".to_owned())).await.unwrap();
    assert_eq!(queues(&file), 2);
}

#[test]
fn a_file_has_one_writer_per_process_however_it_is_named() {
    let (folder, file) = file();
    let database = Database::open(&file).unwrap();
    let other_name = folder.path().join("..").join(folder.path().file_name().unwrap()).join("longshore.db");
    assert!(Arc::ptr_eq(&database, &Database::open(&other_name).unwrap()));
    drop(database);
    Database::open(&file).unwrap();
}

#[test]
fn leases_of_an_earlier_boot_have_lapsed() {
    let (_folder, file) = file();
    drop(Database::open(&file).unwrap());
    let connection = Connection::open(&file).unwrap();
    let insert = "INSERT INTO messages (id, queue, rank, state, due, token, submitted, task)
                  VALUES (?1, 'default', 4, ?2, 9000000000000000, 1, 0, 't')";
    for (id, state) in [(1, 1), (2, 2)] {
        connection.execute(insert, [id, state]).unwrap();
    }
    let due = |id: i64| -> i64 {
        connection.query_row("SELECT due FROM messages WHERE id = ?1", [id], |row| row.get(0)).unwrap()
    };
    drop(Database::open(&file).unwrap());
    assert_eq!(due(2), 9_000_000_000_000_000, "of this boot");
    connection.execute("UPDATE meta SET value = 'another' WHERE name = 'boot'", []).unwrap();
    drop(Database::open(&file).unwrap());
    assert_eq!(due(2), 0);
    assert_eq!(due(1), 9_000_000_000_000_000, "a delay goes by the wall's clock and outlives a reboot");
}

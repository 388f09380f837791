//! A worker whose clock jumps while it works: by libfaketime, which leaves the clock alone that only goes forward.

use super::berth::Berth;
use super::storm::{Plan, storms};

/// Where Debian puts it, whatever the machine is.
fn faketime() -> String {
    let rooms = std::fs::read_dir("/usr/lib").unwrap().flatten();
    let found = rooms.map(|room| room.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.exists());
    found.expect("libfaketime is installed; run scripts/test-servers").display().to_string()
}

async fn jumps<B: Berth>(by: &str) {
    storms::<B>(
        async |_, _| Plan {
            lease: std::time::Duration::from_secs(6),
            ..Plan::of(format!("clock jump {by}"))
        },
        async |storm| {
            storm.submit().await;
            let clock = storm.longshore.folder().join("clock");
            std::fs::write(&clock, "+0").unwrap();
            let environment = [
                ("LD_PRELOAD", faketime()),
                ("FAKETIME_TIMESTAMP_FILE", clock.display().to_string()),
                ("FAKETIME_NO_CACHE", "1".to_owned()),
                ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
                ("DONT_FAKE_MONOTONIC", "1".to_owned()),
            ];
            let one = storm.worker_in("one", &environment).await;
            let two = storm.worker("two").await;
            storm.done(20).await;
            std::fs::write(&clock, by).unwrap();
            storm.done(60).await;
            std::fs::write(&clock, "+0").unwrap();
            vec![one, two]
        },
    )
    .await;
}

pub(super) async fn a_clock_that_jumps_ahead_ends_no_lease<B: Berth>() {
    jumps::<B>("+1h").await;
}

pub(super) async fn a_clock_that_jumps_back_ends_no_lease<B: Berth>() {
    jumps::<B>("-1h").await;
}

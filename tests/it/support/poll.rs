//! Bounded polling, the only way in which a test waits for something that does not announce itself.

use std::time::{Duration, Instant};

/// Asks `probe` until it answers and returns that answer.
///
/// Panics with `what` once `deadline` has passed. The first questions come quickly, later ones every 100 ms.
pub(crate) async fn eventually<T>(
    deadline: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> T {
    let start = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(answer) = probe().await {
            return answer;
        }
        assert!(start.elapsed() < deadline, "{what}: not within {deadline:?}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}

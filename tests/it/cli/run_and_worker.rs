//! `worker` from its first line to its last, and what `run` refuses before it starts anything.

use nix::sys::signal::Signal;

use super::Harbour;

#[test]
fn a_worker_says_that_it_is_ready_and_ends_well_when_asked() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let harbour = Harbour::new();
        let mut worker = harbour.worker(&["--queue", "a", "--queue", "b", "--concurrency", "3"]);
        let told = harbour.run(&["doctor", "--quick"]).good();
        assert!(told.contains("1 live, 0 of 3 slots taken"), "{told}");
        worker.signal(signal);
        assert_eq!(worker.child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn a_worker_whose_flags_are_wrong_says_which() {
    let harbour = Harbour::new();
    let told = harbour.run(&["worker", "--drain-timeout", "soon"]).bad(2);
    assert!(told.contains("--drain-timeout") && told.contains("soon"), "{told}");
    let told = harbour.run(&["worker", "--queue", "a b"]).bad(2);
    assert!(told.contains("a b"), "{told}");
}

#[test]
fn a_run_that_cannot_be_meant_is_refused() {
    let harbour = Harbour::new();
    assert!(harbour.run(&["run"]).bad(2).contains("IMAGE"));
    assert!(harbour.run(&["run", "--volume", "x", "busybox"]).bad(2).contains("HOST:CONTAINER"));
}

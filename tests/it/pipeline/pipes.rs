//! Named pipes and connectors: every byte arrives, and whoever opens late, never, early or twice hangs nobody.

use longshore::cancel::CancelReason;
use serde_json::json;

use super::*;
use crate::support::poll::eventually;

fn to_stdout(name: &str) -> Value {
    from_pipe(name, &json!({"$": "HostStdOut"}))
}

/// A stream from the container's pipe `out` into its pipe `in`.
fn looped() -> Request {
    let output = json!({"$": "NamedInputPipe", "name": "in"});
    Request {
        stream_connectors: vec![spec(from_pipe("out", &output))],
        ..request(&[json!({"$": "NamedOutputPipe", "name": "out"}), output])
    }
}

#[tokio::test]
async fn every_byte_of_an_output_pipe_arrives() {
    let data = bytes(8_000_003);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, &data).unwrap();
    let rig = Rig::new(request(&[to_stdout("out")])).await;
    let ran = rig.run(&format!("dd if={} of=\"$1\" bs=7777 2>/dev/null", file.path().display())).await;
    ran.assert_clean();
    assert_eq!(ran.bytes("out"), data.len() as u64);
    assert!(ran.stdout == data);
}

#[tokio::test]
async fn an_output_pipe_may_be_opened_again_and_its_writer_may_exit_at_once() {
    let ran = Rig::new(request(&[to_stdout("out")])).await.run("for n in 1 2 3; do echo $n > $1; done").await;
    ran.assert_clean();
    assert_eq!(ran.stdout, b"1\n2\n3\n");
}

#[tokio::test]
async fn lines_of_two_streams_do_not_tear() {
    let rig = Rig::new(request(&[to_stdout("a"), to_stdout("b")])).await;
    let script = "(yes aaaaaaaaaaaaaaaaaaaaaaa | head -n 60000 > $1) & yes bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb | head -n 60000 > $2; wait";
    let ran = rig.run(script).await;
    ran.assert_clean();
    let text = String::from_utf8(ran.stdout).unwrap();
    assert_eq!(text.lines().count(), 120_000);
    assert!(
        text.lines()
            .all(|line| line == "aaaaaaaaaaaaaaaaaaaaaaa" || line == "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb")
    );
}

#[tokio::test]
async fn every_byte_reaches_an_input_pipe_and_then_its_end() {
    let rig = Rig::new(looped()).await;
    let folder = tempfile::tempdir().unwrap();
    let (sent, got) = (folder.path().join("sent"), folder.path().join("got"));
    std::fs::write(&sent, bytes(20_000_003)).unwrap();
    let script =
        format!("cat {} > $1 & dd if=$2 of={} bs=777 2>/dev/null; wait", sent.display(), got.display());
    let ran = rig.run(&script).await;
    ran.assert_clean();
    assert!(std::fs::read(sent).unwrap() == std::fs::read(got).unwrap());
    assert_eq!(ran.bytes("NamedOutputPipe out → NamedInputPipe in"), 20_000_003);
}

#[tokio::test]
async fn a_reader_that_stops_early_is_no_error() {
    let ran = Rig::new(looped()).await.run("(yes > $1 2>/dev/null || true) & head -c 10 $2; wait").await;
    ran.assert_clean();
}

#[tokio::test]
async fn a_reader_that_looked_before_there_was_anything_may_come_back() {
    let ran =
        Rig::new(looped()).await.run(": < $2; : < $2; (echo data > $1) & test \"$(cat $2)\" = data").await;
    ran.assert_clean();
}

#[tokio::test]
async fn a_container_that_opens_no_pipe_ends_as_it_ends() {
    let ran = Rig::new(looped()).await.run("exit 3").await;
    ran.streams.unwrap();
    assert_eq!(ran.exit.code(), Some(3));
}

#[tokio::test]
async fn a_container_that_dies_half_way_leaves_what_it_wrote() {
    let rig = Rig::new(request(&[to_stdout("out")])).await;
    let ran = rig.run("exec 3> $1; printf half >&3; kill -KILL $$").await;
    ran.streams.unwrap();
    assert_eq!(ran.stdout, b"half");
}

#[tokio::test]
async fn pipes_that_nobody_is_connected_to_hang_nobody() {
    let rig = Rig::new(request(&[
        json!({"$": "NamedOutputPipe", "name": "out"}),
        json!({"$": "NamedInputPipe", "name": "in"}),
    ]))
    .await;
    let ran = rig.run("head -c 3000000 /dev/zero > $1; test -z \"$(cat $2)\"").await;
    ran.assert_clean();
    assert_eq!(ran.details.warnings.len(), 2, "{:?}", ran.details.warnings);
    assert!(ran.stdout.is_empty());
}

#[tokio::test]
async fn a_stuck_stream_holds_up_no_other_and_ends_with_its_scope() {
    let mut request = looped();
    request.stream_connectors.push(spec(to_stdout("other")));
    request.container_args.push(Arg::from(spec(json!({"$": "NamedOutputPipe", "name": "other"}))));
    let mut rig = Rig::new(request).await;
    rig.pipeline.open().unwrap();
    // The input pipe is opened and never read; the output pipe is full for ever.
    let mut container = rig.start("exec 4< $2; (yes > $1) & echo through > $3; sleep 1000");
    eventually(DEADLINE, "the other stream's line", async || {
        rig.stdout.0.lock().unwrap().ends_with(b"through\n").then_some(())
    })
    .await;
    rig.attempt.scope().cancel(CancelReason::Canceled("test".to_owned()));
    assert_eq!(rig.pipeline.container_ended().await.unwrap_err().code, "interrupted");
    container.kill().await;
    rig.pipeline.cleanup(&NoCleaner).await;
}

#[tokio::test]
async fn a_containers_own_output_can_be_connected() {
    let connect = |input: &str, output: &str| {
        spec(json!({"$": "Connect", "input": {"$": input}, "output": {"$": output}}))
    };
    let connectors = vec![connect("ContainerStdOut", "HostStdErr"), connect("ContainerStdErr", "HostStdOut")];
    let mut rig = Rig::new(Request { stream_connectors: connectors, ..Request::default() }).await;
    rig.pipeline.open().unwrap();
    let mut standard = rig.pipeline.standard_streams();
    let data = bytes(3_000_000);
    standard.stdout.as_mut().unwrap().write(&data).await;
    standard.stderr.as_mut().unwrap().write(b"oh").await;
    drop(standard);
    let ran = rig.run("true").await;
    ran.assert_clean();
    assert!(ran.stderr == data);
    assert_eq!(ran.stdout, b"oh");
}

#[tokio::test]
async fn a_stream_that_makes_no_sense_says_what_is_wrong() {
    let connect = |input: &str, output: &str| json!({"$": "Connect", "input": {"$": input, "name": "x"}, "output": {"$": output, "name": "y"}});
    let twice = from_pipe("x", &json!({"$": "HostStdOut"}));
    for (args, says) in [
        (vec![connect("NamedInputPipe", "NamedInputPipe")], "NamedInputPipe cannot be the input"),
        (vec![connect("NamedOutputPipe", "NamedOutputPipe")], "NamedOutputPipe cannot be the output"),
        (vec![twice.clone(), twice], "connected twice"),
        (vec![json!({"$": "HostStdOut"})], "belongs in a Connect"),
        (
            vec![json!({"$": "NamedInputPipe", "name": "x", "host_path": "/a"})],
            "only one of container_path and host_path",
        ),
        (
            vec![json!({"$": "NamedInputPipe", "name": "x"}), json!({"$": "NamedOutputPipe", "name": "x"})],
            "both an input and an output",
        ),
    ] {
        let error = Rig::with(request(&args), |_| {}).await.err().unwrap();
        assert!(error.message.contains(says), "{error}");
    }
}

#[tokio::test]
async fn a_fifo_is_a_mount_of_its_own_with_something_to_be_mounted_upon() {
    let bind = tempfile::tempdir().unwrap();
    let rig = Rig::new(Request {
        volumes: vec![spec(json!({"$": "BindMountVolume", "host_path": bind.path(), "container_path": "/data"}))],
        ..request(&[
            json!({"$": "NamedOutputPipe", "name": "out"}),
            json!({"$": "NamedInputPipe", "name": "in", "volume":
                {"$": "BindMountVolume", "host_path": bind.path(), "container_path": "/data"}}),
            json!({"$": "NamedInputPipe", "name": "free", "container_path": "/elsewhere", "host_path": "/nowhere"}),
        ])
    })
    .await;
    let [out, input, free] = &rig.plan.arguments[..] else { panic!("{:?}", rig.plan.arguments) };
    assert_eq!((input.as_str(), free.as_str()), ("/data/in", "/elsewhere/free"));
    for target in [out, input, free] {
        assert_eq!(kind_at(&rig.plan, target), Some(MountKind::Fifo), "{target}");
    }
    assert!(bind.path().join("in").is_file());
    let volume = rig.host(out.strip_suffix("/out").unwrap());
    assert!(volume.join("out").is_file());
    rig.pipeline.cleanup(&NoCleaner).await;
    assert_eq!(bind.path().read_dir().unwrap().count(), 0);
}

//! Volumes, pipes and streams as flags, through real containers.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use super::Harbour;
use crate::support::docker::engine;

const NEVER: [&str; 4] = ["--pull", "never", "--option", "network=none"];

/// `run` with flags, and `sh -c script` with its arguments.
fn run<'a>(flags: &[&'a str], script: &'a str, arguments: &[&'a str]) -> Vec<&'a str> {
    [&["run"], &NEVER[..], flags, &["busybox:latest", "sh", "-c", script], arguments].concat()
}

#[tokio::test]
async fn volumes_and_pipes_are_made_and_named_in_the_arguments() {
    engine().await;
    let harbour = Harbour::new();
    let script = "echo '{\"current\": 1, \"total\": 2, \"message\": \"half\"}' > $0
        echo through > $WORK/file; cat $WORK/file > $1
        echo looped > $2 & cat $3 >&2; wait
        echo at $4 and {{pipe:out}}";
    let flags = [
        "--progress-pipe",
        "--temp-volume",
        "scratch",
        "--output-pipe",
        "out=-",
        "--output-pipe",
        "scratch/loop=pipe:in",
        "--env",
        "WORK={volume:scratch}",
    ];
    let places = ["{pipe:progress}", "{pipe:out}", "{pipe:scratch/loop}", "{pipe:in}", "{volume/log.txt}"];
    let ran = harbour.run(&run(&flags, script, &places));
    let (out, err) = (ran.out.clone(), ran.err.clone());
    ran.good();
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines.contains(&"through"), "{out}");
    let path = lines.iter().find_map(|line| line.strip_prefix("at ")).unwrap();
    assert!(path.starts_with("/mnt/girder_worker/") && path.ends_with("/log.txt and {{pipe:out}}"), "{path}");
    assert!(err.contains("looped\n") && err.contains("50 %  half"), "{err}");
}

#[tokio::test]
async fn standard_output_is_passed_on_byte_for_byte_when_that_is_asked() {
    engine().await;
    let harbour = Harbour::new();
    let script = "head -c 3000000 /dev/urandom > /tmp/x; md5sum < /tmp/x >&2; cat /tmp/x";
    let ran = harbour.command(&run(&["--stdout", "-"], script, &[])).output().unwrap();
    let err = String::from_utf8(ran.stderr).unwrap();
    assert!(ran.status.success(), "{err}");
    assert_eq!(ran.stdout.len(), 3_000_000);
    let mut sum = Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    sum.stdin.take().unwrap().write_all(&ran.stdout).unwrap();
    let sum = String::from_utf8(sum.wait_with_output().unwrap().stdout).unwrap();
    assert!(err.contains(sum.split_whitespace().next().unwrap()), "{err}{sum}");
}

#[tokio::test]
async fn pipes_at_paths_of_the_container_are_made_and_joined() {
    engine().await;
    let flags = ["--output-pipe", "/run/out=pipe:/run/in"];
    let ran = Harbour::new().run(&run(&flags, "cat /run/in & echo through > /run/out; wait", &[]));
    assert_eq!(ran.out, "through\n", "{}", ran.err);
    ran.good();
}

#[tokio::test]
async fn a_stream_goes_to_a_url_with_the_headers_of_a_file() {
    engine().await;
    let harbour = Harbour::new();
    let headers = harbour.file("headers", "X-Secret: hunter22\n");
    let (url, received) = server();
    let pipe = format!("/run/out={url}");
    let header = format!("@{}", headers.display());
    let flags = ["--output-pipe", &pipe, "--header", &header];
    let ran = harbour.run(&run(&flags, "echo body > /run/out; echo hunter22", &[]));
    assert!(!ran.out.contains("hunter22"), "a header's value is told nowhere: {}", ran.out);
    ran.good();
    let received = received.join().unwrap();
    assert!(received.starts_with("POST /x "), "{received}");
    assert!(received.to_lowercase().contains("x-secret: hunter22"), "{received}");
    assert!(received.contains("body\n"), "{received}");
}

#[tokio::test]
async fn a_submitted_task_keeps_its_streams() {
    engine().await;
    let harbour = Harbour::new();
    let _worker = harbour.worker(&[]);
    let submit = [
        &["submit", "--wait", "--id", "t", "--progress-pipe=p"],
        &NEVER[..],
        &["--stderr", "stderr", "busybox:latest", "sh", "-c"],
        &["echo '{\"current\": 3}' > $0; printf 12345 >&2", "{pipe:p}"],
    ];
    harbour.run(&submit.concat()).good();
    let shown = harbour.run(&["task", "show", "t", "--output", "json"]).json().to_string();
    assert!(
        shown.contains("ContainerStdErr → HostStdErr\",\"bytes\":5") || shown.contains("\"bytes\":5"),
        "{shown}"
    );
    assert!(shown.contains("\"current\":3"), "{shown}");
}

#[test]
fn streams_that_cannot_be_meant_are_refused_before_anything_runs() {
    let harbour = Harbour::new();
    for (args, says) in [
        (&["run", "--json", "--stdout", "-", "busybox"][..], "--json"),
        (&["run", "--output-pipe", "out=-", "busybox"], "{pipe:out}"),
        (&["run", "--stdout", "file.bin", "busybox"], "--stdout file.bin"),
        (&["submit", "--header", "A: b", "busybox"], "--header"),
        (&["submit", "busybox", "{volume:none}"], "--temp-volume none"),
    ] {
        let told = harbour.run(args).bad(2);
        assert!(told.contains(says), "{told}");
    }
    let told = harbour.run(&["submit", "--output", "json", "--temp-volume", "v:rw", "busybox"]).bad(2);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["error"]["kind"], "usage");
    assert!(told["error"]["message"].as_str().unwrap().contains("--temp-volume v:rw"), "{told}");
}

/// A server that takes one request with a chunked body; its URL, and all that it received.
fn server() -> (String, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/x", listener.local_addr().unwrap());
    let received = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut received = Vec::new();
        let mut buffer = [0; 4096];
        while !received.ends_with(b"0\r\n\r\n") {
            match socket.read(&mut buffer).unwrap() {
                0 => break,
                n => received.extend_from_slice(&buffer[..n]),
            }
        }
        socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").unwrap();
        String::from_utf8(received).unwrap()
    });
    (url, received)
}

//! HTTP sinks against small servers that answer well, badly, late, early or not at all.

use std::net::SocketAddr;

use longshore::girder::settings::Tls;
use longshore::girder::{self, Site};
use longshore::http::{Judge, Timeouts};
use serde_json::json;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::*;
use crate::support::authority::certificates;
use crate::support::poll::eventually;
use crate::support::process::{free_port, tied_to_this_thread};

/// What a server got.
#[derive(Default)]
struct Got {
    head: String,
    body: Vec<u8>,
    /// Whether the last chunk came.
    whole: bool,
}

/// A server that takes one request: the whole of it when `reads`, else its head only; then answers and closes.
async fn server(answer: &'static str, reads: Reads) -> (SocketAddr, oneshot::Receiver<Got>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (done, got) = oneshot::channel();
    tokio::spawn(async move {
        let (socket, _) = listener.accept().await.unwrap();
        let mut socket = BufReader::new(socket);
        let mut got = Got::default();
        while !got.head.ends_with("\r\n\r\n") {
            socket.read_line(&mut got.head).await.unwrap();
        }
        match reads {
            Reads::All => read_chunks(&mut socket, &mut got, Duration::ZERO).await,
            Reads::Slowly => read_chunks(&mut socket, &mut got, Duration::from_millis(2)).await,
            Reads::Head => {}
            Reads::Nothing => std::future::pending().await,
        }
        socket.write_all(answer.as_bytes()).await.unwrap();
        let _ = done.send(got);
        // Until the client is done, so that its answer is not lost to a reset.
        if matches!(reads, Reads::Head) {
            let _ = tokio::io::copy(&mut socket, &mut tokio::io::sink()).await;
        }
    });
    (address, got)
}

#[derive(Clone, Copy)]
enum Reads {
    All,
    Slowly,
    Head,
    Nothing,
}

async fn read_chunks(socket: &mut (impl AsyncBufRead + Unpin), got: &mut Got, pause: Duration) {
    loop {
        let mut size = String::new();
        if socket.read_line(&mut size).await.unwrap_or(0) == 0 {
            return;
        }
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        let start = got.body.len();
        got.body.resize(start + size + 2, 0);
        if socket.read_exact(&mut got.body[start..]).await.is_err() {
            return;
        }
        got.body.truncate(start + size);
        if size == 0 {
            got.whole = true;
            return;
        }
        tokio::time::sleep(pause).await;
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn posting(address: SocketAddr) -> Request {
    request(&[from_pipe(
        "out",
        &json!({"$": "ChunkedTransferEncodingStream", "url": format!("http://{address}/up?token=hunter2"),
            "headers": {"X-Token": "hunter2", "Content-Type": "text/plain"}}),
    )])
}

#[tokio::test]
async fn a_stream_is_one_chunked_post_with_the_given_headers() {
    let (address, got) = server(OK, Reads::All).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, bytes(5_000_001)).unwrap();
    let ran = Rig::new(posting(address)).await.run(&format!("cat {} > $1", file.path().display())).await;
    ran.assert_clean();
    let got = got.await.unwrap();
    let head = got.head.to_lowercase();
    assert!(head.starts_with("post /up?token=hunter2 http/1.1\r\n"), "{head}");
    assert!(
        head.contains("\r\nx-token: hunter2\r\n") && head.contains("\r\ntransfer-encoding: chunked\r\n"),
        "{head}"
    );
    assert!(got.body == bytes(5_000_001) && got.whole);
    let told = &ran.details.streams[0];
    assert_eq!(told.bytes, 5_000_001);
    assert_eq!(told.sha256, None, "it would cost more than the sending");
    assert!(!format!("{:?}", ran.details).contains("hunter2"), "{:?}", ran.details);
}

/// A server behind TLS whose certificate only a private authority vouches for.
async fn locked_server(folder: &Path) -> (u16, Child) {
    certificates(folder);
    let port = free_port();
    let mut command = std::process::Command::new("openssl");
    command.args(["s_server", "-quiet", "-cert", "cert.pem", "-key", "key.pem", "-port", &port.to_string()]);
    let mut command = Command::from(tied_to_this_thread(command.current_dir(folder)));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let server = command.spawn().unwrap();
    eventually(DEADLINE, "openssl listens", async || std::net::TcpStream::connect(("127.0.0.1", port)).ok())
        .await;
    (port, server)
}

#[tokio::test]
async fn a_stream_to_a_server_of_a_private_authority_is_sent_encrypted_and_summed_up() {
    let folder = tempfile::tempdir().unwrap();
    let (port, mut server) = locked_server(folder.path()).await;
    let file = folder.path().join("file");
    std::fs::write(&file, bytes(3_000_001)).unwrap();
    let posting = || {
        let stream =
            json!({"$": "ChunkedTransferEncodingStream", "url": format!("https://127.0.0.1:{port}/up")});
        request(&[from_pipe("out", &stream)])
    };
    let serving = async {
        let mut got = Got::default();
        let mut socket = BufReader::new(server.stdout.take().unwrap());
        while !got.head.ends_with("\r\n\r\n") {
            socket.read_line(&mut got.head).await.unwrap();
        }
        read_chunks(&mut socket, &mut got, Duration::ZERO).await;
        server.stdin.as_mut().unwrap().write_all(OK.as_bytes()).await.unwrap();
        got
    };
    let ca_file = folder.path().join("ca.pem");
    let site = Arc::new(Site::new(girder::Settings::default(), &Tls { ca_file }).unwrap());
    let rig = Rig::with(posting(), |settings| settings.girder = site).await.unwrap();
    let script = format!("cat {} > $1", file.display());
    let (ran, got) = tokio::join!(rig.run(&script), serving);
    ran.assert_clean();
    assert!(got.body == bytes(3_000_001) && got.whole);
    let sum = std::process::Command::new("sha256sum").arg(&file).output().unwrap().stdout;
    assert_eq!(ran.details.streams[0].sha256.as_deref().unwrap().as_bytes(), &sum[..64]);

    let error = Rig::new(posting()).await.run("echo x > $1").await.streams.unwrap_err();
    assert!(error.message.to_lowercase().contains("certificate"), "{error}");
}

#[tokio::test]
async fn a_stream_without_bytes_is_an_empty_post() {
    let (address, got) = server(OK, Reads::All).await;
    Rig::new(posting(address)).await.run("true").await.assert_clean();
    let got = got.await.unwrap();
    assert!(got.body.is_empty() && got.whole);
}

#[tokio::test]
async fn a_container_that_waits_for_the_answer_gets_it() {
    let (address, got) = server(OK, Reads::All).await;
    let mut rig = Rig::new(posting(address)).await;
    rig.pipeline.open().unwrap();
    let mut container = rig.start("echo data > $1; exec sleep 1000");
    let got =
        tokio::time::timeout(DEADLINE, got).await.expect("the post ends while the container runs").unwrap();
    assert_eq!(got.body, b"data\n");
    container.kill().await;
    rig.run("true").await.assert_clean();
}

#[tokio::test]
async fn a_pause_shorter_than_the_linger_is_no_end() {
    let (address, got) = server(OK, Reads::All).await;
    let rig =
        Rig::with(posting(address), |settings| settings.linger = Duration::from_secs(30)).await.unwrap();
    rig.run("for n in 1 2 3; do echo $n > $1; sleep 0.05; done").await.assert_clean();
    assert_eq!(got.await.unwrap().body, b"1\n2\n3\n");
}

#[tokio::test]
async fn bytes_that_come_after_the_end_are_an_error_and_not_lost_in_silence() {
    let (address, got) = server(OK, Reads::All).await;
    let mut rig = Rig::with(posting(address), |settings| settings.linger = Duration::ZERO).await.unwrap();
    rig.pipeline.open().unwrap();
    rig.start("echo one > $1").0.wait().await.unwrap();
    assert_eq!(got.await.unwrap().body, b"one\n");
    let ran = rig.run("echo two > $1; exec sleep 1000").await;
    assert_eq!(ran.streams.unwrap_err().code, "stream_reopened");
}

#[tokio::test]
async fn an_error_status_is_told_with_the_answer() {
    let long = "HTTP/1.1 507 Insufficient Storage\r\nconnection: close\r\n\r\nthe disk is full";
    for (answer, reads, class, says) in [
        (long, Reads::All, "Retryable", "507 Insufficient Storage: the disk is full"),
        (
            "HTTP/1.1 401 Unauthorized\r\nconnection: close\r\n\r\nno",
            Reads::Head,
            "Permanent",
            "401 Unauthorized: no",
        ),
    ] {
        let (address, _got) = server(answer, reads).await;
        let ran = Rig::new(posting(address)).await.run("yes | head -c 20000000 > $1").await;
        let error = ran.streams.unwrap_err();
        assert!(error.message.contains(says), "{error}");
        assert!(error.message.contains(&format!("http://{address}/up answered")), "{error}");
        assert_eq!(format!("{:?}", error.class), class);
        assert!(!error.message.contains("hunter2"), "{error}");
    }
}

#[tokio::test]
async fn only_so_much_of_an_answer_is_told() {
    let answer: &'static str = Box::leak(
        format!("HTTP/1.1 500 No\r\nconnection: close\r\n\r\n{}", "x".repeat(100_000)).into_boxed_str(),
    );
    let (address, _got) = server(answer, Reads::All).await;
    let error = Rig::new(posting(address)).await.run("echo > $1").await.streams.unwrap_err();
    assert!(error.message.contains(&"x".repeat(512)) && !error.message.contains(&"x".repeat(513)), "{error}");
}

#[tokio::test]
async fn a_redirect_is_told_and_not_followed() {
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = other.local_addr().unwrap();
    let answer: &'static str = Box::leak(
        format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: http://{target}/x?token=hunter2\r\ncontent-length: 0\r\n\r\n")
            .into_boxed_str(),
    );
    let (address, _got) = server(answer, Reads::All).await;
    let error = Rig::new(posting(address)).await.run("echo > $1").await.streams.unwrap_err();
    assert!(error.message.contains(&format!("307 Temporary Redirect to http://{target}/x;")), "{error}");
    let nobody = tokio::time::timeout(Duration::from_millis(1), other.accept()).await;
    assert!(nobody.is_err(), "nobody asked the redirect's target");
}

#[tokio::test]
async fn a_refused_connection_ends_the_container() {
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = Rig::new(posting(address)).await.run("exec sleep 1000").await.streams.unwrap_err();
    assert!(error.message.contains("refused") && error.message.contains(&address.to_string()), "{error}");
    assert_eq!(error.code, "http_stream");
}

#[tokio::test]
async fn a_slow_reader_slows_its_writer_and_loses_nothing() {
    let (address, got) = server(OK, Reads::Slowly).await;
    let ran = Rig::new(posting(address)).await.run("seq 1000000 > $1").await;
    ran.assert_clean();
    let got = String::from_utf8(got.await.unwrap().body).unwrap();
    assert!(got.lines().map(|line| line.parse::<u32>().unwrap()).eq(1..=1_000_000));
}

#[tokio::test]
async fn a_server_that_takes_nothing_is_given_up() {
    let (address, _got) = server(OK, Reads::Nothing).await;
    let idle = |settings: &mut Settings| {
        settings.http = Timeouts { idle: Duration::from_millis(300), ..Timeouts::default() };
    };
    let rig = Rig::with(posting(address), idle).await.unwrap();
    let before = resident();
    let error = rig.run("exec cat /dev/zero > $1").await.streams.unwrap_err();
    assert!(error.message.contains("took nothing for 300ms"), "{error}");
    // The container would have written for ever: what is not taken stays with it.
    let grown = most_resident().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes more");
}

#[tokio::test]
async fn a_quiet_container_is_not_an_idle_server() {
    let (address, got) = server(OK, Reads::All).await;
    let idle = |settings: &mut Settings| {
        settings.http = Timeouts { idle: Duration::from_millis(100), ..Timeouts::default() };
    };
    let rig = Rig::with(posting(address), idle).await.unwrap();
    rig.run("exec 3> $1; echo a >&3; sleep 0.5; echo b >&3").await.assert_clean();
    assert_eq!(got.await.unwrap().body, b"a\nb\n");
}

#[tokio::test]
async fn a_stream_that_takes_too_long_altogether_is_given_up() {
    let (address, _got) = server(OK, Reads::All).await;
    let total = |settings: &mut Settings| {
        settings.http = Timeouts { total: Some(Duration::from_millis(200)), ..Timeouts::default() };
    };
    let rig = Rig::with(posting(address), total).await.unwrap();
    let error = rig.run("exec 3> $1; exec sleep 1000").await.streams.unwrap_err();
    assert!(error.message.contains("was not done for 200ms"), "{error}");
}

#[tokio::test]
async fn a_canceled_task_gives_the_server_no_whole_body() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut rig = Rig::new(posting(listener.local_addr().unwrap())).await;
    rig.pipeline.open().unwrap();
    let mut container = rig.start("exec 3> $1; echo part >&3; exec sleep 1000");
    let (mut socket, _) = listener.accept().await.unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"part\n\r\n") {
        assert!(socket.read_buf(&mut got).await.unwrap() > 0);
    }
    rig.attempt.scope().cancel(longshore::cancel::CancelReason::Interrupted);
    // It dies of the cancellation before anybody looks at its streams.
    container.kill().await;
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(DEADLINE, socket.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty(), "{closed:?} {:?}", String::from_utf8_lossy(&rest));
    rig.pipeline.container_ended().await.unwrap_err();
    rig.pipeline.cleanup(&NoCleaner).await;
}

#[tokio::test]
async fn streams_that_are_dropped_give_the_server_no_whole_body() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut rig = Rig::new(posting(listener.local_addr().unwrap())).await;
    rig.pipeline.open().unwrap();
    let _container = rig.start("exec 3> $1; echo part >&3; exec sleep 1000");
    let (mut socket, _) = listener.accept().await.unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"part\n\r\n") {
        assert!(socket.read_buf(&mut got).await.unwrap() > 0);
    }
    rig.pipeline.cleanup(&NoCleaner).await;
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(DEADLINE, socket.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty(), "{closed:?} {:?}", String::from_utf8_lossy(&rest));
}

#[tokio::test]
async fn what_policy_forbids_is_refused_before_any_container() {
    struct Nowhere;
    impl Judge for Nowhere {
        fn host(&self, _url: &reqwest::Url) -> Result<(), TaskError> {
            Ok(())
        }
        fn address(&self, host: &str, address: std::net::IpAddr) -> Result<(), TaskError> {
            Err(TaskError::permanent("denied", format!("{host} is {address}")))
        }
    }
    let judge = |settings: &mut Settings| settings.judge = Arc::new(Nowhere);
    let address = SocketAddr::from(([127, 0, 0, 1], 9));
    assert_eq!(Rig::with(posting(address), judge).await.err().unwrap().code, "denied");
}

#[tokio::test]
async fn headers_that_carry_the_request_and_malformed_ones_are_refused() {
    for (name, value) in [
        ("Host", "a"),
        ("content-length", "1"),
        ("Transfer-Encoding", "x"),
        ("A", "b\r\nC: d"),
        ("A\r\nB", "c"),
    ] {
        let stream =
            json!({"$": "ChunkedTransferEncodingStream", "url": "http://a/", "headers": {name: value}});
        let error = Rig::with(request(&[from_pipe("out", &stream)]), |_| {}).await.err().unwrap();
        assert!(error.message.contains("leave it out"), "{error}");
    }
    for url in ["ftp://a/", "a", "/a", "http://"] {
        let stream = json!({"$": "ChunkedTransferEncodingStream", "url": url});
        let error = Rig::with(request(&[from_pipe("out", &stream)]), |_| {}).await.err().unwrap();
        assert!(error.message.contains("absolute http or https URL"), "{error}");
    }
}

//! The real broker servers of the test support: each starts, talks, and survives what the chaos suites do to it.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::support::nats::Nats;
use crate::support::poll::eventually;
use crate::support::rabbitmq::RabbitMq;
use crate::support::redis::Redis;

const LOADED_WITHIN: Duration = Duration::from_secs(10);

#[tokio::test]
async fn nats_answers_and_has_jetstream() {
    let nats = Nats::start().await;
    assert_eq!(nats.url(), format!("nats://{}", nats.address()));
    let mut client = Lines::connect(&nats.address()).await;
    assert!(client.line().await.starts_with("INFO "));
    client.say("CONNECT {\"verbose\": false}\r\nSUB answer 1\r\nPUB $JS.API.INFO answer 0\r\n\r\n").await;
    assert!(client.line().await.starts_with("MSG answer 1 "));
    let account = client.line().await;
    assert!(account.contains(r#""streams":0"#), "{account}");
}

#[tokio::test]
async fn redis_that_was_killed_still_knows_what_it_was_told() {
    let mut redis = Redis::start().await;
    assert_eq!(redis.url(), format!("redis://{}", redis.address()));
    let mut client = Lines::connect(&redis.address()).await;
    client.say("SET cargo grain\r\n").await;
    assert_eq!(client.line().await, "+OK");

    redis.server().kill();
    assert!(TcpStream::connect(redis.address()).await.is_err(), "a killed server accepts");
    redis.server().start_again().await;
    let mut client = Lines::connect(&redis.address()).await;
    // It accepts before it has read back what it wrote, and refuses everything until then.
    let length = eventually(LOADED_WITHIN, "what was on disk is loaded", async || {
        client.say("GET cargo\r\n").await;
        let answer = client.line().await;
        (!answer.starts_with("-LOADING")).then_some(answer)
    })
    .await;
    assert_eq!(length, "$5");
    assert_eq!(client.line().await, "grain");
}

#[tokio::test]
async fn a_frozen_nats_is_silent_until_it_is_thawed() {
    let mut nats = Nats::start().await;
    let mut client = Lines::connect(&nats.address()).await;
    client.line().await;
    nats.server().freeze().await;
    client.say("CONNECT {\"verbose\": false}\r\nPING\r\n").await;
    let silence = tokio::time::timeout(Duration::from_millis(200), client.line()).await;
    assert!(silence.is_err(), "a frozen server said {silence:?}");
    nats.server().thaw();
    assert_eq!(client.line().await, "PONG");
}

#[tokio::test]
async fn rabbitmq_opens_the_virtual_host_of_a_test() {
    let rabbit = RabbitMq::vhost().await;
    assert_eq!(open_vhost(rabbit.address(), rabbit.name()).await, (10, 41));
    assert_eq!(open_vhost(rabbit.address(), "no such host").await, (10, 50));
}

#[tokio::test]
async fn two_tests_share_the_node_but_no_virtual_host() {
    let (one, other) = (RabbitMq::vhost().await, RabbitMq::vhost().await);
    assert_eq!(one.address(), other.address());
    assert_ne!(one.url(), other.url());
}

/// Logs in as AMQP 0-9-1 wants it and opens a virtual host; the class and method of the answer: `open-ok` is 10, 41 and
/// `close` is 10, 50.
async fn open_vhost(address: &str, vhost: &str) -> (u16, u16) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"AMQP\x00\x00\x09\x01").await.unwrap();
    assert_eq!(method(&mut stream).await, (10, 10), "start");
    let start_ok = b"\x00\x0a\x00\x0b\x00\x00\x00\x00\x05PLAIN\x00\x00\x00\x0c\x00guest\x00guest\x05en_US";
    send_method(&mut stream, start_ok).await;
    assert_eq!(method(&mut stream).await, (10, 30), "tune");
    send_method(&mut stream, b"\x00\x0a\x00\x1f\x00\x10\x00\x02\x00\x00\x00\x00").await;
    let name = [&[u8::try_from(vhost.len()).unwrap()], vhost.as_bytes()].concat();
    send_method(&mut stream, &[b"\x00\x0a\x00\x28", &name[..], b"\x00\x00"].concat()).await;
    method(&mut stream).await
}

async fn send_method(stream: &mut TcpStream, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let frame = [b"\x01\x00\x00", &length[..], payload, b"\xce"].concat();
    stream.write_all(&frame).await.unwrap();
}

async fn method(stream: &mut TcpStream) -> (u16, u16) {
    let mut head = [0; 7];
    stream.read_exact(&mut head).await.unwrap();
    let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
    let mut payload = vec![0; usize::try_from(length).unwrap() + 1];
    stream.read_exact(&mut payload).await.unwrap();
    (u16::from_be_bytes([payload[0], payload[1]]), u16::from_be_bytes([payload[2], payload[3]]))
}

/// A client of a protocol of lines.
struct Lines {
    stream: BufReader<TcpStream>,
}

impl Lines {
    async fn connect(address: &str) -> Lines {
        Lines { stream: BufReader::new(TcpStream::connect(address).await.unwrap()) }
    }

    async fn say(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).await.unwrap();
        line.trim_end().to_owned()
    }
}

//! What clients of the HTTP front may take, and how it speaks to them in secret.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use backstop_gateway::{HttpOptions, Limits, Tls, TlsError};
use serde_json::{Value, json};
use support::{gateway, serve_http_with};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const PING: &str = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;

async fn front(limits: Limits) -> (backstop_gateway::Gateway, String) {
    let gateway = gateway(vec![]);
    let options = HttpOptions {
        limits,
        ..HttpOptions::default()
    };
    let url = serve_http_with(&gateway, options).await;
    let address = url[7..].split('/').next().unwrap().to_owned();
    (gateway, address)
}

fn head(address: &str, more: &str) -> String {
    format!(
        "POST /mcp HTTP/1.1\r\nHost: {address}\r\n{more}Content-Length: {}\r\n\r\n",
        PING.len()
    )
}

/// All that comes until the connection is closed.
async fn rest(stream: &mut TcpStream) -> String {
    let mut text = String::new();
    let read = stream.read_to_string(&mut text);
    let read = tokio::time::timeout(Duration::from_secs(20), read).await;
    let _ = read.expect("the connection stays open");
    text
}

async fn ping(stream: &mut TcpStream, address: &str) -> String {
    let request = head(address, "Connection: close\r\n") + PING;
    stream.write_all(request.as_bytes()).await.unwrap();
    rest(stream).await
}

#[tokio::test]
async fn a_client_too_many_is_told_so_and_has_its_place_when_another_leaves() {
    let limits = Limits {
        max_connections: 2,
        ..Limits::default()
    };
    let (gateway, address) = front(limits).await;
    let mut first = TcpStream::connect(&address).await.unwrap();
    let second = TcpStream::connect(&address).await.unwrap();
    let mut third = TcpStream::connect(&address).await.unwrap();
    let told = rest(&mut third).await;
    assert!(told.starts_with("HTTP/1.1 503"), "{told}");
    assert!(ping(&mut first, &address).await.starts_with("HTTP/1.1 200"));
    drop(second);
    let let_in = async {
        loop {
            let mut again = TcpStream::connect(&address).await.unwrap();
            if ping(&mut again, &address).await.starts_with("HTTP/1.1 200") {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), let_in)
        .await
        .expect("nobody is let in any more");
    gateway.shut_down().await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let limits = Limits {
        max_header_bytes: 8 * 1024,
        ..Limits::default()
    };
    let (gateway, address) = front(limits).await;
    for (bytes, status) in [(4 * 1024, "200"), (16 * 1024, "431")] {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        let more = format!("Connection: close\r\nX-Long: {}\r\n", "x".repeat(bytes));
        let request = head(&address, &more) + PING;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, *format!("HTTP/1.1 {status}").as_bytes());
    }
    gateway.shut_down().await;
}

#[tokio::test]
async fn a_client_that_keeps_others_waiting_is_let_go() {
    let limits = Limits {
        idle: Duration::from_millis(300),
        ..Limits::default()
    };
    let (gateway, address) = front(limits).await;
    // Says nothing; begins as HTTP/2 does; begins a head; begins a body.
    for (said, answer) in [
        (String::new(), ""),
        ("P".to_owned(), ""),
        ("POST /mcp HTTP/1.1\r\nHos".to_owned(), ""),
        (head(&address, "") + "{\"json", "HTTP/1.1 408"),
    ] {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(said.as_bytes()).await.unwrap();
        let told = rest(&mut stream).await;
        assert!(told.starts_with(answer), "{said:?}: {told}");
    }
    // One that is used now and then stays.
    let mut stream = TcpStream::connect(&address).await.unwrap();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let request = head(&address, "") + PING;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, *b"HTTP/1.1 200");
        let mut body = vec![0; 4096];
        let _ = stream.read(&mut body).await.unwrap();
    }
    gateway.shut_down().await;
}

fn pem(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/tls")
        .join(name)
}

#[tokio::test]
async fn with_a_certificate_tls_is_spoken_and_nothing_else() {
    let gateway = gateway(vec![]);
    let options = HttpOptions {
        tls: Some(Tls::read(&pem("certificate.pem"), &pem("key.pem")).unwrap()),
        ..HttpOptions::default()
    };
    let url = serve_http_with(&gateway, options).await;
    let certificate = std::fs::read(pem("certificate.pem")).unwrap();
    let certificate = reqwest::Certificate::from_pem(&certificate).unwrap();
    let client = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([certificate])
        .build()
        .unwrap();
    let ask = |url: &str| {
        client
            .post(url)
            .header("content-type", "application/json")
            .body(PING)
            .send()
    };
    let answer = ask(&url.replace("http:", "https:")).await.unwrap();
    let answer: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    assert_eq!(answer, json!({ "jsonrpc": "2.0", "id": 1, "result": {} }));
    assert!(ask(&url).await.is_err());
    gateway.shut_down().await;
}

#[test]
fn a_certificate_that_cannot_be_used_is_refused_with_its_file() {
    let (certificate, key) = (pem("certificate.pem"), pem("key.pem"));
    let missing = Tls::read(&pem("none.pem"), &key).unwrap_err();
    assert!(missing.to_string().contains("none.pem"), "{missing}");
    let no_key = Tls::read(&certificate, &certificate).unwrap_err();
    assert!(matches!(no_key, TlsError::File { path, .. } if path == certificate));
    let no_certificate = Tls::read(&key, &key).unwrap_err();
    assert!(
        matches!(
            no_certificate,
            TlsError::Unusable { .. } | TlsError::File { .. }
        ),
        "{no_certificate:?}"
    );
}

//! Connections of clients over HTTP: how many, how long, and how they are kept secret.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::app::App;
use super::http::Limits;
use crate::workers::Workers;

/// What a client is told for which there is no room.
const NO_ROOM: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
/// How long a client may take to agree on TLS.
const TLS_TIMEOUT: Duration = Duration::from_secs(10);
/// How it is called in ALPN (RFC 7301), and what a client begins with.
pub(super) const HTTP2: &[u8] = b"h2";
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The wait for more of a preface that has begun.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// The wait after a connection could not be accepted, as when there are no more file descriptors.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

/// Serves until `closing` is set; requests under way are finished first.
pub(super) async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    limits: Limits,
    app: App,
    closing: CancellationToken,
    workers: Option<&Workers>,
) -> io::Result<()> {
    let room = Arc::new(Semaphore::new(limits.max_connections));
    let connections = TaskTracker::new();
    let builder = builder(&limits);
    while let Some(accepted) = closing.run_until_cancelled(listener.accept()).await {
        let stream = match accepted {
            Ok((stream, _)) => stream,
            // The client left before it was let in.
            Err(error) if is_of_client(&error) => continue,
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                continue;
            }
        };
        let Ok(permit) = room.clone().try_acquire_owned() else {
            tracing::warn!(
                "{} clients are connected; another is sent away",
                limits.max_connections
            );
            connections.spawn(send_away(stream, tls.is_none()));
            continue;
        };
        // Small answers must not wait for an acknowledgement (40 ms on some clients).
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        let (builder, tls) = (builder.clone(), tls.clone());
        let (app, closing) = (app.clone(), closing.clone());
        // It is waited for where it is served.
        let stream = stream.into_std();
        let connection = async move {
            let _permit = permit;
            let stream = match stream.and_then(TcpStream::from_std) {
                Ok(stream) => stream,
                Err(error) => return tracing::warn!(%error, "a connection cannot be served"),
            };
            let Some(tls) = tls else {
                let spoken = tokio::time::timeout(limits.idle, speaks_http2(&stream));
                match spoken.await {
                    Ok(Ok(http2)) => converse(builder, http2, stream, app, closing).await,
                    Ok(Err(error)) => tracing::debug!(%error, "a client left without a word"),
                    Err(_) => tracing::debug!("a client that said nothing is let go"),
                }
                return;
            };
            match tokio::time::timeout(TLS_TIMEOUT, tls.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let http2 = stream.get_ref().1.alpn_protocol() == Some(HTTP2);
                    converse(builder, http2, stream, app, closing).await;
                }
                Ok(Err(error)) => tracing::debug!(%error, "TLS was not agreed"),
                Err(_) => tracing::debug!("a client was slow to agree on TLS"),
            }
        };
        let connection = connections.track_future(connection);
        match workers {
            Some(workers) => workers.run(connection),
            None => drop(tokio::spawn(connection)),
        }
    }
    connections.close();
    connections.wait().await;
    Ok(())
}

fn builder(limits: &Limits) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    let header_bytes = limits.max_header_bytes;
    builder
        .http1()
        .timer(TokioTimer::new())
        // It runs while the next request is waited for, too.
        .header_read_timeout(limits.idle)
        .max_buf_size(header_bytes);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(limits.idle)
        .max_header_list_size(u32::try_from(header_bytes).unwrap_or(u32::MAX));
    builder
}

/// Whether the first a client says is the preface of HTTP/2 (RFC 9113, section 3.4). What finds it out
/// by itself in the library waits for it without end.
async fn speaks_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut seen = [0; PREFACE.len()];
    loop {
        let read = stream.peek(&mut seen).await?;
        if read == 0 || !PREFACE.starts_with(&seen[..read]) {
            return Ok(false);
        }
        if read == PREFACE.len() {
            return Ok(true);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn converse(
    builder: Builder<TokioExecutor>,
    http2: bool,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    app: App,
    closing: CancellationToken,
) {
    let builder = match http2 {
        true => builder.http2_only(),
        false => builder.http1_only(),
    };
    let service = TowerToHyperService::new(app);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error, "a connection of a client broke");
    }
}

/// Tells a client that there is no room; one that speaks TLS hears nothing but the end.
async fn send_away(mut stream: TcpStream, plain: bool) {
    if plain {
        let told = stream.write_all(NO_ROOM);
        let _ = tokio::time::timeout(Duration::from_secs(1), told).await;
    }
}

fn is_of_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset
    )
}

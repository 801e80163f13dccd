//! The front over standard input and output: one message per line, one client per process.

use std::sync::Arc;
use std::time::Duration;

use backstop::mcp::rpc;
use bytes::Bytes;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::client::Client;
use crate::envelope::{self, Envelope};
use crate::router::{Asker, Router};
use crate::upstream::MAX_MESSAGE_BYTES;

/// Messages that may wait for a client that does not read.
const WRITE_QUEUE: usize = 256;
/// How long requests may still take once the client has said all it has to say.
const DRAIN: Duration = Duration::from_secs(10);

/// Serves one client until it closes its side or the gateway shuts down. A `sole` client is the only
/// one the gateway will ever have.
pub(crate) async fn serve(
    router: Arc<Router>,
    input: impl AsyncRead + Unpin,
    output: impl AsyncWrite + Unpin + Send + 'static,
    sole: bool,
) -> std::io::Result<()> {
    let shutdown = router.closing.clone();
    // One client, and no other like it.
    let caller: Arc<str> = format!("stream {}", uuid::Uuid::new_v4().simple()).into();
    let (out, outgoing) = mpsc::channel(WRITE_QUEUE);
    let client = if sole {
        let client = Client::sole(caller.clone(), out.clone());
        router.sole.is(&client);
        client
    } else {
        Client::new(caller.clone(), out.clone())
    };
    let writer = tokio::spawn(write(outgoing, output));
    let requests = TaskTracker::new();
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    tokio::spawn(stop.clone().run_until_cancelled_owned(tell_news(
        router.clone(),
        client.clone(),
        out.clone(),
    )));

    let mut input = BufReader::with_capacity(64 * 1024, input);
    let limit = u64::try_from(MAX_MESSAGE_BYTES).unwrap_or(u64::MAX);
    let mut outcome = Ok(());
    loop {
        let mut line = Vec::new();
        let read = async { (&mut input).take(limit).read_until(b'\n', &mut line).await };
        match shutdown.run_until_cancelled(read).await {
            None | Some(Ok(0)) => break,
            Some(Err(error)) => {
                outcome = Err(error);
                break;
            }
            Some(Ok(_)) => {}
        }
        if line.len() >= MAX_MESSAGE_BYTES {
            let text = format!("a message is larger than {MAX_MESSAGE_BYTES} bytes");
            let _ = out
                .send(envelope::error_message(
                    None,
                    rpc::INVALID_REQUEST,
                    &text,
                    None,
                ))
                .await;
            outcome = Err(std::io::Error::new(std::io::ErrorKind::InvalidData, text));
            break;
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        match Envelope::parse(line) {
            Err(error) => {
                tokio::select! {
                    _ = out.send(error.answer()) => {}
                    () = shutdown.cancelled() => break,
                }
            }
            Ok(Envelope::Request { id, method, params }) => {
                let (router, client, out) = (router.clone(), client.clone(), out.clone());
                // Registered before the next line is read: it may take the request back.
                let running = client.begin(&id);
                let stop = stop.clone();
                let caller = caller.clone();
                // What it says of itself must be known before anything else it asks is answered.
                router.meet(&method, params.as_ref(), &client);
                requests.spawn(async move {
                    let asker = Asker {
                        caller: Some(caller),
                        out: Some(out.clone()),
                        client: Some(client),
                        ..Asker::default()
                    };
                    // A client that does not read holds its own requests back, and no end of ours.
                    let work = async {
                        let answer = router.answer(&id, &method, params, &asker).await;
                        let _ = out.send(answer.text).await;
                    };
                    tokio::select! {
                        () = work => {}
                        () = running.cancelled.cancelled() => {}
                        () = stop.cancelled() => {}
                    }
                });
            }
            Ok(other) => client.heed(other),
        }
    }
    requests.close();
    if !shutdown.is_cancelled() {
        let _ = tokio::time::timeout(DRAIN, requests.wait()).await;
    }
    stop.cancel();
    requests.wait().await;
    client.close();
    drop((client, out));
    // A client that no longer reads must not hold us.
    let _ = tokio::time::timeout(DRAIN, writer).await;
    outcome
}

async fn tell_news(router: Arc<Router>, client: Arc<Client>, out: mpsc::Sender<Bytes>) {
    let mut news = router.news.subscribe();
    loop {
        match news.recv().await {
            Ok(news) if news.concerns(&client) => {
                if out.send(news.text).await.is_err() {
                    return;
                }
            }
            Ok(_) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
            Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
        }
    }
}

async fn write(
    mut outgoing: mpsc::Receiver<Bytes>,
    mut output: impl AsyncWrite + Unpin,
) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    while let Some(message) = outgoing.recv().await {
        buffer.clear();
        let mut next = Some(message);
        // What has gathered meanwhile goes out in one write.
        while let Some(message) = next {
            // A message must be one line; inside JSON text a line feed can only be white space.
            buffer.extend(
                message
                    .iter()
                    .map(|byte| if *byte == b'\n' { b' ' } else { *byte }),
            );
            buffer.push(b'\n');
            next = outgoing.try_recv().ok();
        }
        output.write_all(&buffer).await?;
        output.flush().await?;
    }
    Ok(())
}

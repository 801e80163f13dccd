//! A streamed answer on its way from a model: its events, read one by one, and whether it is whole.
//!
//! Nothing is read ahead: the next piece is taken from the connection when it is asked for, so a
//! client that reads slowly slows the model down and fills no memory. A stream is whole once
//! every choice has its `finish_reason`, with or without `[DONE]` behind it; what ends before is
//! broken, whatever it says. A piece that cannot be read may have held a word, so it breaks the
//! stream as well.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::Response;
use tokio::time::{Instant, timeout_at};

use super::anthropic;
use super::error::ModelError;
use super::openai;
use crate::upstream::http::fault;
use crate::upstream::sse::Events;
use crate::upstream::{Fault, UpstreamError};

/// How long a model that has finished may keep what comes behind: what was used, `[DONE]`.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// The longest text that is kept for another model to go on with.
const KEPT_TEXT: usize = 1024 * 1024;

/// One event for the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// An OpenAI chunk, as JSON without line ends.
    pub(crate) data: Bytes,
    /// Whether it holds something of the answer.
    pub(crate) content: bool,
}

/// How far an answer has come.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    /// How many choices were asked for.
    wanted: usize,
    /// The choices seen, and whether each is finished.
    choices: Vec<(u64, bool)>,
    /// The model said that nothing follows.
    pub(crate) done: bool,
    /// The text so far, where somebody may have to go on with it.
    text: Option<String>,
    /// There is more to the answer than one text.
    pub(crate) mixed: bool,
}

impl Progress {
    pub(crate) fn new(wanted: u32, keep_text: bool) -> Self {
        Self {
            wanted: wanted as usize,
            text: keep_text.then(String::new),
            ..Self::default()
        }
    }

    /// A choice was heard of.
    pub(crate) fn saw(&mut self, choice: u64, finished: bool) {
        match self.choices.iter_mut().find(|(index, _)| *index == choice) {
            Some((_, done)) => *done |= finished,
            None => self.choices.push((choice, finished)),
        }
    }

    pub(crate) fn said(&mut self, text: &str) {
        if let Some(so_far) = &mut self.text {
            so_far.push_str(text);
        }
        self.text.take_if(|text| text.len() > KEPT_TEXT);
    }

    /// Whether every choice is finished.
    pub(crate) fn is_whole(&self) -> bool {
        self.choices.len() >= self.wanted.max(1) && self.choices.iter().all(|(_, done)| *done)
    }
}

/// How the events of an API are read.
#[derive(Debug)]
pub(crate) enum Dialect {
    OpenAi,
    Anthropic(anthropic::Translator),
}

/// Why an event breaks a stream.
#[derive(Debug)]
pub(crate) enum Broken {
    /// It cannot be read.
    Unreadable(serde_json::Error),
    /// It is an error of the provider.
    Error(Bytes),
    /// It ends the stream before the answer is whole.
    TooEarly,
}

/// A stream of pieces.
#[derive(Debug)]
pub(crate) struct Pieces {
    model: Arc<str>,
    sent: Sent,
    events: Events,
    dialect: Dialect,
    ready: VecDeque<Piece>,
    pub(crate) progress: Progress,
    idle: Duration,
    /// When the last piece with content came; the time nobody waited for the next is left out.
    last: Option<Instant>,
    /// Since when nobody waits.
    unasked: Option<Instant>,
    /// The connection has ended.
    closed: bool,
}

impl Pieces {
    pub(crate) fn new(
        model: Arc<str>,
        sent: Sent,
        dialect: Dialect,
        progress: Progress,
        idle: Duration,
    ) -> Self {
        Self {
            model,
            sent,
            events: Events::default(),
            dialect,
            ready: VecDeque::new(),
            progress,
            idle,
            last: None,
            unasked: None,
            closed: false,
        }
    }

    /// The text so far, if the answer is one text and it is kept.
    pub(crate) fn text(&self) -> Option<&str> {
        self.progress
            .text
            .as_deref()
            .filter(|_| !self.progress.mixed)
    }

    /// The next piece; `None` once the answer is whole. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<Piece>, ModelError> {
        if let (Some(since), Some(last)) = (self.unasked.take(), &mut self.last) {
            *last += since.elapsed();
        }
        let next = self.read().await;
        self.unasked = Some(Instant::now());
        next
    }

    async fn read(&mut self) -> Result<Option<Piece>, ModelError> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Ok(Some(piece));
            }
            if self.progress.done {
                return Ok(None);
            }
            if let Some(data) = self.events.next() {
                self.take(&data)?;
                continue;
            }
            if self.closed {
                return self.ended("the stream ended before the answer was whole");
            }
            let whole = self.progress.is_whole();
            let limit = if whole { AFTERWARDS } else { self.idle };
            // Before the first token the attempt's own timeout counts.
            let read = match self.last {
                Some(last) => timeout_at(last + limit, self.sent.response.chunk()).await,
                None => Ok(self.sent.response.chunk().await),
            };
            match read {
                Ok(Ok(Some(chunk))) => self.events.feed(&chunk).map_err(|error| {
                    let text = "its stream cannot be read";
                    UpstreamError::caused(&self.model, Fault::Garbage, text, error)
                })?,
                Ok(Ok(None)) => {
                    self.closed = true;
                    // An event at the very end counts without the empty line behind it.
                    let _ = self.events.feed(b"\n\n");
                }
                Ok(Err(_)) if whole => self.progress.done = true,
                Ok(Err(error)) => return Err(fault(&self.model, error).into()),
                Err(_) if whole => self.progress.done = true,
                Err(_) => {
                    return Err(ModelError::Stalled {
                        model: self.model.clone(),
                        after: self.idle,
                    });
                }
            }
        }
    }

    fn ended(&mut self, otherwise: &str) -> Result<Option<Piece>, ModelError> {
        if self.progress.is_whole() {
            self.progress.done = true;
            return Ok(None);
        }
        Err(UpstreamError::fault(&self.model, Fault::Eof, otherwise).into())
    }

    fn take(&mut self, data: &Bytes) -> Result<(), ModelError> {
        let before = self.ready.len();
        let taken = match &mut self.dialect {
            Dialect::OpenAi => openai::take(data, &mut self.ready, &mut self.progress),
            Dialect::Anthropic(translator) => {
                translator.take(data, &mut self.ready, &mut self.progress)
            }
        };
        if self.ready.iter().skip(before).any(|piece| piece.content) {
            self.last = Some(Instant::now());
        }
        let error = match taken {
            Ok(()) => return Ok(()),
            // What fails behind a whole answer takes nothing from it.
            Err(_) if self.progress.is_whole() => {
                self.progress.done = true;
                return Ok(());
            }
            Err(Broken::TooEarly) => {
                let text = "the stream was declared done before the answer was whole";
                UpstreamError::fault(&self.model, Fault::Eof, text)
            }
            Err(Broken::Unreadable(error)) => {
                let text = "a piece of its stream cannot be read";
                UpstreamError::caused(&self.model, Fault::Garbage, text, error)
            }
            Err(Broken::Error(body)) => self.sent.said_error(&self.model, body),
        };
        Err(error.into())
    }
}

/// A request that was sent, and the beginning of what came back.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) response: Response,
    /// The key it was sent with, which some providers repeat in what they say.
    pub(crate) key: Option<Arc<str>>,
}

impl Sent {
    /// An error that came in the place of an answer. Its own number counts as the status, where it
    /// has one.
    pub(crate) fn said_error(&self, model: &Arc<str>, body: Bytes) -> UpstreamError {
        let read: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let error = read.get("error").unwrap_or(&read);
        let number = |key: &str| {
            let value = error.get(key)?;
            let number = value
                .as_u64()
                .or_else(|| value.as_str().and_then(|text| text.parse().ok()))?;
            u16::try_from(number)
                .ok()
                .filter(|status| (400..600).contains(status))
        };
        UpstreamError::Http {
            service: model.clone(),
            status: number("status").or_else(|| number("code")).unwrap_or(500),
            headers: Box::new(self.response.headers().clone()),
            body: without_key(self.key.as_deref(), body),
        }
    }
}

/// What a provider says, without the key.
pub(crate) fn without_key(key: Option<&str>, said: Bytes) -> Bytes {
    match (key, std::str::from_utf8(&said)) {
        (Some(key), Ok(text)) if !key.is_empty() && text.contains(key) => {
            text.replace(key, "...").into()
        }
        _ => said,
    }
}

//! An exchange whose targets do what a test says, and which remembers what it was asked.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use backstop::call::{Attempt, Degraded};
use backstop::detect::Detector;
use backstop::{Exchange, Failure, Kind, Retained};
use bytes::Bytes;
use tokio::time::Instant;

/// What a target does when it is asked.
#[derive(Clone)]
pub enum Reply {
    Good(&'static str),
    /// Takes a while, then answers.
    Slow(Duration, &'static str),
    Bad(Failure),
    Silent,
}

/// One request, as a target saw it.
#[derive(Debug, Clone)]
pub struct Sent {
    pub target: String,
    pub operation: String,
    pub arguments: String,
    pub at: Instant,
}

/// Replies by `target/operation`, then by `target`; the last one of a list stays.
#[derive(Default)]
pub struct Script {
    replies: Mutex<HashMap<String, Vec<Reply>>>,
    sent: Mutex<Vec<Sent>>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub operation: String,
    pub arguments: String,
}

impl Request {
    pub fn new(operation: &str, arguments: &str) -> Self {
        Self {
            operation: operation.into(),
            arguments: arguments.into(),
        }
    }
}

impl Script {
    /// Says what a target does from now on.
    #[must_use]
    pub fn on(self, at: &str, replies: impl IntoIterator<Item = Reply>) -> Self {
        self.set(at, replies);
        self
    }

    /// The same, while calls are under way.
    pub fn set(&self, at: &str, replies: impl IntoIterator<Item = Reply>) {
        let mut list: Vec<_> = replies.into_iter().collect();
        list.reverse();
        self.replies.lock().unwrap().insert(at.to_owned(), list);
    }

    fn reply(&self, target: &str, operation: &str) -> Reply {
        let mut replies = self.replies.lock().unwrap();
        let key = format!("{target}/{operation}");
        let key = if replies.contains_key(&key) {
            key
        } else {
            target.to_owned()
        };
        let list = replies
            .get_mut(&key)
            .unwrap_or_else(|| panic!("no reply scripted for {key}"));
        if list.len() > 1 {
            list.pop().unwrap()
        } else {
            list[0].clone()
        }
    }

    /// Every request, oldest first.
    pub fn sent(&self) -> Vec<Sent> {
        self.sent.lock().unwrap().clone()
    }

    /// The targets asked, in order, as one word each.
    pub fn targets(&self) -> String {
        let names: Vec<_> = self.sent().into_iter().map(|sent| sent.target).collect();
        names.join(" ")
    }

    /// The time between one request and the next.
    pub fn gaps(&self) -> Vec<Duration> {
        self.sent()
            .windows(2)
            .map(|pair| pair[1].at - pair[0].at)
            .collect()
    }
}

impl Exchange for Script {
    type Request = Request;
    type Answer = String;
    type Error = Failure;

    async fn send(&self, attempt: &Attempt, request: &Request) -> Result<String, Failure> {
        assert_eq!(&*attempt.operation, request.operation);
        let target = attempt.target.name.to_string();
        self.sent.lock().unwrap().push(Sent {
            target: target.clone(),
            operation: request.operation.clone(),
            arguments: request.arguments.clone(),
            at: Instant::now(),
        });
        match self.reply(&target, &request.operation) {
            Reply::Good(text) => Ok(text.into()),
            Reply::Slow(delay, text) => {
                tokio::time::sleep(delay).await;
                Ok(text.into())
            }
            Reply::Bad(failure) => Err(failure),
            Reply::Silent => std::future::pending().await,
        }
    }

    fn classify(&self, outcome: Result<&String, &Failure>, _: &Detector) -> Option<Failure> {
        outcome.err().cloned()
    }

    fn arguments(&self, request: &Request) -> Option<Bytes> {
        Some(request.arguments.clone().into())
    }

    fn redirect(
        &self,
        request: &Request,
        operation: &str,
        arguments: Option<&str>,
    ) -> Result<Request, String> {
        Ok(Request::new(
            operation,
            arguments.unwrap_or(&request.arguments),
        ))
    }

    fn compose(&self, _: &Request, body: &[u8], _: &Degraded) -> Result<String, String> {
        String::from_utf8(body.to_vec()).map_err(|error| error.to_string())
    }

    fn retain(&self, _: &Request, answer: &String) -> Option<Retained> {
        Some(Retained {
            body: answer.clone().into(),
            shared: false,
            ttl: None,
        })
    }
}

/// A failure of this kind, for good.
pub fn bad(kind: Kind) -> [Reply; 1] {
    [Reply::Bad(Failure::new(kind, "scripted"))]
}

/// The same, with the server's wish to be left alone.
pub fn bad_for(kind: Kind, retry_after: Duration) -> [Reply; 1] {
    let mut failure = Failure::new(kind, "scripted");
    failure.retry_after = Some(retry_after);
    [Reply::Bad(failure)]
}

pub fn good(text: &'static str) -> [Reply; 1] {
    [Reply::Good(text)]
}

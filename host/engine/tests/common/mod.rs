//! A scripted exchange and small native strategies: what the tests of the call loop are told in.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    missing_docs
)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backstop::call::{Attempt, AttemptRecord, Degraded, RepeatSafety};
use backstop::detect::Detector;
use backstop::registry::TargetSpec;
use backstop::strategy::{Action, Decision, Entry, Situation, Strategy, StrategyInfo};
use backstop::{Engine, Exchange, Failure, Kind, Retained};
use bytes::Bytes;
use tokio::time::Instant;

/// What a target does when it is asked.
#[derive(Clone)]
pub enum Reply {
    Good(&'static str),
    /// Takes a while, then answers.
    Slow(Duration, &'static str),
    Bad(Failure),
    /// Takes a while, then does that.
    Late(Duration, Box<Reply>),
    /// Answers, and the answer is an error: the raw outcome is there.
    BadAnswer(Failure, &'static str),
    Silent,
}

/// Replies by `target/operation`, then by `target`; the last one of a list stays.
#[derive(Default)]
pub struct Script {
    pub replies: Mutex<HashMap<String, Vec<Reply>>>,
    pub sent: Mutex<Vec<(String, String, Instant)>>,
    pub read_only: Vec<&'static str>,
    pub keep: bool,
    /// Targets that cannot serve any request.
    pub unfit: Vec<&'static str>,
}

impl Script {
    pub fn on(self, at: &str, replies: impl IntoIterator<Item = Reply>) -> Self {
        let mut list: Vec<_> = replies.into_iter().collect();
        list.reverse();
        self.replies.lock().unwrap().insert(at.to_owned(), list);
        self
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

    pub fn targets_sent(&self) -> Vec<String> {
        self.sent
            .lock()
            .unwrap()
            .iter()
            .map(|(target, ..)| target.clone())
            .collect()
    }

    pub fn gaps(&self) -> Vec<Duration> {
        self.sent
            .lock()
            .unwrap()
            .windows(2)
            .map(|pair| pair[1].2 - pair[0].2)
            .collect()
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub operation: String,
    pub arguments: String,
}

pub fn request(operation: &str) -> Request {
    Request {
        operation: operation.into(),
        arguments: r#"{"q":1}"#.into(),
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub text: String,
    pub failure: Option<Failure>,
}

impl Exchange for Script {
    type Request = Request;
    type Answer = Answer;
    type Error = Failure;

    async fn send(&self, attempt: &Attempt, request: &Request) -> Result<Answer, Failure> {
        assert_eq!(&*attempt.operation, request.operation);
        let target = attempt.target.name.to_string();
        self.sent
            .lock()
            .unwrap()
            .push((target.clone(), request.operation.clone(), Instant::now()));
        let mut reply = self.reply(&target, &request.operation);
        while let Reply::Late(delay, then) = reply {
            tokio::time::sleep(delay).await;
            reply = *then;
        }
        match reply {
            Reply::Good(text) => Ok(Answer {
                text: text.into(),
                failure: None,
            }),
            Reply::Slow(delay, text) => {
                tokio::time::sleep(delay).await;
                Ok(Answer {
                    text: text.into(),
                    failure: None,
                })
            }
            Reply::Bad(failure) => Err(failure),
            Reply::BadAnswer(failure, text) => Ok(Answer {
                text: text.into(),
                failure: Some(failure),
            }),
            Reply::Silent | Reply::Late(..) => std::future::pending().await,
        }
    }

    fn classify(&self, outcome: Result<&Answer, &Failure>, _: &Detector) -> Option<Failure> {
        match outcome {
            Ok(answer) => answer.failure.clone(),
            Err(failure) => Some(failure.clone()),
        }
    }

    fn unfit(&self, _: &Request, _: &str, _: &[AttemptRecord]) -> Vec<Arc<str>> {
        self.unfit.iter().map(|name| (*name).into()).collect()
    }

    fn arguments(&self, request: &Request) -> Option<Bytes> {
        Some(request.arguments.clone().into())
    }

    fn repeat_safety(&self, operation: &str) -> RepeatSafety {
        if self.read_only.contains(&operation) {
            RepeatSafety::ReadOnly
        } else {
            RepeatSafety::Unsafe
        }
    }

    fn redirect(
        &self,
        request: &Request,
        operation: &str,
        arguments: Option<&str>,
    ) -> Result<Request, String> {
        if operation == "impossible" {
            return Err("there is no such operation".into());
        }
        let arguments = arguments.map_or_else(|| request.arguments.clone(), str::to_owned);
        Ok(Request {
            operation: operation.into(),
            arguments,
        })
    }

    fn compose(&self, _: &Request, body: &[u8], _: &Degraded) -> Result<Answer, String> {
        Ok(Answer {
            text: String::from_utf8(body.to_vec()).unwrap(),
            failure: None,
        })
    }

    fn retain(&self, _: &Request, answer: &Answer) -> Option<Retained> {
        self.keep.then(|| Retained {
            body: answer.text.clone().into(),
            shared: false,
            ttl: None,
        })
    }
}

/// A native strategy made of a closure; `None` means that it does not apply.
pub struct Rule<F>(pub StrategyInfo, pub F);

impl<F: Fn(&Situation) -> Option<Action> + Send + Sync> Strategy for Rule<F> {
    fn info(&self) -> StrategyInfo {
        self.0.clone()
    }
    fn condition(&self, situation: &Situation) -> bool {
        (self.1)(situation).is_some()
    }
    fn action(&self, situation: &Situation) -> Decision {
        (self.1)(situation).unwrap_or(Action::Decline).into()
    }
}

pub fn rule(
    name: &str,
    priority: i32,
    decide: impl Fn(&Situation) -> Option<Action> + Send + Sync + 'static,
) -> Entry {
    Entry::native(Rule(
        StrategyInfo::new(name, "test").with_priority(priority),
        decide,
    ))
    .unwrap()
}

pub fn retry_always(priority: i32, delay: Option<Duration>) -> Entry {
    rule("retry", priority, move |_| Some(Action::Retry { delay }))
}

pub fn switch_always(priority: i32) -> Entry {
    rule("switch", priority, |_| {
        Some(Action::SwitchTarget {
            target: None,
            target_kind: None,
        })
    })
}

/// An engine with the group `g` and services of these names, the first with the highest priority.
pub fn engine(services: &[&str], strategies: Vec<Entry>) -> Engine {
    build(Engine::builder(), services, strategies)
}

pub fn build(
    builder: backstop::EngineBuilder,
    services: &[&str],
    strategies: Vec<Entry>,
) -> Engine {
    let engine = builder.random(backstop::random::seeded(1)).build().unwrap();
    for (at, name) in services.iter().enumerate() {
        let spec = TargetSpec::service(*name, "g").priority(-(at as i32));
        engine.registry().register(spec).unwrap();
    }
    for strategy in strategies {
        engine.strategies().add(strategy).unwrap();
    }
    engine
}

pub fn refused() -> Failure {
    Failure::new(Kind::CONNECTION_ERROR, "connection refused")
}

pub fn reset() -> Failure {
    let mut failure = Failure::new(Kind::CONNECTION_ERROR, "connection reset");
    failure.ambiguous = true;
    failure
}

//! Targets that fail at random, and know what really became of each request.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use backstop::call::{Attempt, AttemptKind, CallId, Degraded, RepeatSafety};
use backstop::detect::{Detector, Signal, TransportFault};
use backstop::registry::{ConcurrencyLimit, RateLimit};
use backstop::{Exchange, Failure, Kind, Origin, Retained};
use bytes::Bytes;
use tokio::time::Instant;

use super::Chance;

/// `read` is read-only, `put` idempotent; `other` belongs to the group `h`.
pub const OPERATIONS: [&str; 4] = ["read", "put", "write", "other"];

/// The first and the last are the same in other words.
pub const ARGUMENTS: [&str; 3] = [r#"{"q":1,"r":2}"#, r#"{"q":2}"#, r#" { "r":2, "q" : 1 } "#];

#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub operation: String,
    pub arguments: String,
    /// A fallback made it.
    pub redirected: bool,
}

/// One request, as it left the engine, and what became of it.
#[derive(Debug, Clone)]
pub struct Sent {
    pub target: String,
    pub operation: String,
    /// As JSON, so that spaces and order make no difference.
    pub arguments: serde_json::Value,
    pub redirected: bool,
    pub kind: AttemptKind,
    pub at: Instant,
    /// When its future ended, by itself or by being dropped.
    pub until: Option<Instant>,
    /// How long it may take.
    pub deadline: Instant,
    /// It may have been carried out, and no answer says so: what the engine was told, or had to assume.
    pub ambiguous: bool,
    /// It was carried out: what only the world knows.
    pub acted: bool,
    /// What the failure it ended with says; none where it answered, or was dropped.
    pub failed: Option<String>,
}

/// What a target has agreed to be given.
#[derive(Debug, Clone, Copy, Default)]
pub struct Agreed {
    pub concurrency: Option<ConcurrencyLimit>,
    pub rate: Option<RateLimit>,
}

#[derive(Default)]
struct Books {
    sent: BTreeMap<CallId, Vec<Sent>>,
    agreed: HashMap<String, Agreed>,
    in_flight: HashMap<String, u32>,
    /// When each target was sent something, since its limits were last agreed.
    times: HashMap<String, Vec<Instant>>,
    broken: Option<String>,
    /// Nothing fails any more.
    mended: bool,
}

#[derive(Clone)]
pub struct World {
    chance: Chance,
    /// Of a hundred attempts, so many fail.
    failing: u64,
    /// The longest an attempt takes that answers, in milliseconds.
    slowness: u64,
    books: Arc<Mutex<Books>>,
}

/// What a target does with a request.
enum Fate {
    Good,
    Bad(Bad),
    /// Nothing comes back.
    Silent,
}

/// How a target fails, as the exchange sees it.
#[derive(Debug, Clone)]
pub enum Bad {
    Transport(TransportFault),
    Http(u16),
    JsonRpc(i64, &'static str),
    Tool(&'static str),
    /// Classified by the exchange itself.
    Own(Failure),
}

/// What an attempt ended with.
#[derive(Debug, Clone)]
pub struct Error {
    bad: Bad,
    message: String,
}

impl World {
    pub fn new(chance: &Chance) -> Self {
        Self {
            failing: chance.below(101),
            slowness: 1 + chance.below(600),
            chance: chance.fork(),
            books: Arc::default(),
        }
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap()
    }

    /// Notes what a strategy or a target has seen that must not be.
    pub fn broken(&self, what: impl Into<String>) {
        self.books().broken.get_or_insert(what.into());
    }

    pub fn verdict(&self) -> Result<(), String> {
        self.books().broken.clone().map_or(Ok(()), Err)
    }

    pub fn mend(&self) {
        self.books().mended = true;
    }

    pub fn sent_by(&self, id: CallId) -> Vec<Sent> {
        self.books().sent.get(&id).cloned().unwrap_or_default()
    }

    pub fn all_sent(&self) -> BTreeMap<CallId, Vec<Sent>> {
        self.books().sent.clone()
    }

    pub fn in_flight(&self) -> u32 {
        self.books().in_flight.values().sum()
    }

    /// From now on the target is to be given no more than this.
    pub fn agree(&self, target: &str, agreed: Agreed) {
        let mut books = self.books();
        books.agreed.insert(target.to_owned(), agreed);
        books.times.remove(target);
    }

    pub fn rates(&self) -> Vec<(String, RateLimit, Vec<Instant>)> {
        let books = self.books();
        let of = |(target, times): (&String, &Vec<Instant>)| {
            let rate = books.agreed.get(target)?.rate?;
            Some((target.clone(), rate, times.clone()))
        };
        books.times.iter().filter_map(of).collect()
    }

    /// What becomes of a request, and whether it is carried out.
    fn fate(&self) -> (Fate, bool) {
        let chance = &self.chance;
        if self.books().mended || chance.below(100) >= self.failing {
            return (Fate::Good, true);
        }
        let by_chance = chance.one_in(2);
        if chance.one_in(6) {
            return (Fate::Silent, by_chance);
        }
        use TransportFault::*;
        let (bad, acted) = match chance.below(6) {
            0 => {
                match chance.one_of(&[Refused, Dns, Tls, NotSent, Reset, Eof, ProcessExit, Garbage])
                {
                    before @ (Refused | Dns | Tls | NotSent) => (Bad::Transport(*before), false),
                    after => (Bad::Transport(*after), by_chance),
                }
            }
            1 => match chance.one_of(&[400, 401, 404, 408, 429, 500, 502, 503, 504, 529]) {
                // The server has looked at the request, and says that it did nothing.
                before @ (400 | 401 | 404 | 429 | 503 | 529) => (Bad::Http(*before), false),
                after => (Bad::Http(*after), by_chance),
            },
            2 => match chance.one_of(&[
                (-32601, ""),
                (-32602, ""),
                (-32603, "oh"),
                (-32000, "timed out"),
                (-32001, "rate limit exceeded"),
                (-32011, "service unavailable"),
                (-32020, ""),
                (77, "?"),
            ]) {
                (code @ (-32601 | -32602 | -32020 | -32001), words) => {
                    (Bad::JsonRpc(*code, words), false)
                }
                (code, words) => (Bad::JsonRpc(*code, words), by_chance),
            },
            3 => {
                let words = ["the disk is full", "too many requests", "HTTP 503"];
                (Bad::Tool(chance.one_of::<&str>(&words)), by_chance)
            }
            _ => {
                let mut failure = Failure::new(chance.one_of(Kind::WELL_KNOWN).clone(), "");
                // What arises in the host is the engine's to say.
                failure.origin = Origin::Remote;
                if chance.one_in(4) {
                    failure.retry_after = Some(chance.millis(20_000));
                }
                if chance.one_in(4) {
                    failure.ambiguous = !failure.ambiguous;
                }
                let doubtful = failure.ambiguous || failure.kind == Kind::TOOL_ERROR;
                (Bad::Own(failure), doubtful && by_chance)
            }
        };
        (Fate::Bad(bad), acted)
    }

    /// Notes that a request arrives, and how many there are.
    fn arrive(&self, attempt: &Attempt, request: &Request, acted: bool) -> usize {
        let now = Instant::now();
        let target = attempt.target.name.to_string();
        let mut books = self.books();
        let books = &mut *books;
        if now >= attempt.deadline {
            let what = format!("{target} was asked after the deadline: {:?}", attempt.kind);
            books.broken.get_or_insert(what);
        }
        let in_flight = books.in_flight.entry(target.clone()).or_default();
        *in_flight += 1;
        let most = books
            .agreed
            .get(&target)
            .and_then(|agreed| agreed.concurrency);
        if most.is_some_and(|most| *in_flight > most.max.get()) {
            let what = format!("{target} was given {in_flight} requests at once");
            books.broken.get_or_insert(what);
        }
        books.times.entry(target.clone()).or_default().push(now);
        let sent = books.sent.entry(attempt.call).or_default();
        sent.push(Sent {
            target,
            operation: request.operation.clone(),
            arguments: serde_json::from_str(&request.arguments).unwrap(),
            redirected: request.redirected,
            kind: attempt.kind,
            at: now,
            until: None,
            deadline: attempt.deadline,
            ambiguous: true,
            acted,
            failed: None,
        });
        sent.len() - 1
    }
}

/// Notes how an attempt ends: with everything open, where it is given up before it does.
struct Ends<'a> {
    world: &'a World,
    attempt: &'a Attempt,
    at: usize,
    /// Whether the answer leaves open that the operation was carried out.
    ambiguous: bool,
    failed: Option<String>,
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        let mut books = self.world.books();
        if let Some(count) = books.in_flight.get_mut(&*self.attempt.target.name) {
            *count -= 1;
        }
        let sent = books.sent.get_mut(&self.attempt.call).unwrap();
        let sent = &mut sent[self.at];
        sent.until = Some(Instant::now());
        sent.ambiguous = self.ambiguous;
        sent.failed = self.failed.take();
    }
}

impl Exchange for World {
    type Request = Request;
    type Answer = String;
    type Error = Error;

    async fn send(&self, attempt: &Attempt, request: &Request) -> Result<String, Error> {
        let (fate, acted) = self.fate();
        let at = self.arrive(attempt, request, acted);
        let mut ends = Ends {
            world: self,
            attempt,
            at,
            ambiguous: true,
            failed: None,
        };
        let steps = 1 + self.chance.below(3);
        for _ in 0..steps {
            tokio::time::sleep(self.chance.millis(self.slowness)).await;
            if self.chance.one_in(2) {
                attempt.progressed();
            }
        }
        match fate {
            Fate::Good => {
                ends.ambiguous = false;
                Ok("good".to_owned())
            }
            Fate::Silent => {
                // Some show life for ever, and never answer.
                let lively = self.chance.one_in(2);
                loop {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    if lively {
                        attempt.progressed();
                    }
                }
            }
            Fate::Bad(bad) => {
                let message = format!("simulated {}.{at}", attempt.call);
                let error = Error { bad, message };
                let failure = error.failure(&Detector::default());
                ends.ambiguous = failure.ambiguous || failure.kind == Kind::TOOL_ERROR;
                ends.failed = Some(failure.message);
                Err(error)
            }
        }
    }

    fn classify(&self, outcome: Result<&String, &Error>, detector: &Detector) -> Option<Failure> {
        Some(outcome.err()?.failure(detector))
    }

    fn arguments(&self, request: &Request) -> Option<Bytes> {
        Some(request.arguments.clone().into())
    }

    fn repeat_safety(&self, operation: &str) -> RepeatSafety {
        match operation {
            "read" => RepeatSafety::ReadOnly,
            "put" => RepeatSafety::Idempotent,
            _ => RepeatSafety::Unsafe,
        }
    }

    fn group_of(&self, operation: &str) -> Option<Arc<str>> {
        (operation == "other").then(|| "h".into())
    }

    fn redirect(
        &self,
        request: &Request,
        operation: &str,
        arguments: Option<&str>,
    ) -> Result<Request, String> {
        if self.chance.one_in(8) {
            return Err("not now".into());
        }
        Ok(Request {
            operation: operation.to_owned(),
            arguments: arguments.map_or_else(|| request.arguments.clone(), str::to_owned),
            redirected: true,
        })
    }

    fn compose(&self, _: &Request, _: &[u8], _: &Degraded) -> Result<String, String> {
        if self.chance.one_in(3) {
            Err("not now".into())
        } else {
            Ok("data".into())
        }
    }

    fn retain(&self, _: &Request, answer: &String) -> Option<Retained> {
        Some(Retained {
            body: answer.clone().into(),
            shared: self.chance.one_in(2),
            ttl: None,
        })
    }
}

impl Error {
    fn failure(&self, detector: &Detector) -> Failure {
        let message = &self.message;
        match &self.bad {
            Bad::Transport(fault) => detector.detect(Signal::Transport {
                fault: *fault,
                message,
            }),
            Bad::Http(status) => detector.detect(Signal::Http {
                status: *status,
                header: &|name| (name == "retry-after").then(|| "1".to_owned()),
                body: message.as_bytes(),
                now: SystemTime::UNIX_EPOCH,
                session: false,
            }),
            Bad::JsonRpc(code, words) => detector.detect(Signal::JsonRpc {
                code: *code,
                message: &format!("{words} {message}"),
                data: None,
            }),
            Bad::Tool(words) => detector.detect(Signal::ToolResult {
                text: &format!("{words} {message}"),
            }),
            Bad::Own(failure) => {
                let mut failure = failure.clone();
                failure.message.clone_from(message);
                failure
            }
        }
    }
}

//! The whole way round: a primary that fails its callers while its health checks pass, until it serves
//! again, with the time of every step.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use backstop::event::{Event, EventKind};
use backstop_gateway::Gateway;
use serde_json::{Map, Value, json};
use tokio::sync::broadcast::Receiver;
use tokio::time::{sleep, timeout};

use super::server::{Broken, Fault, Server};
use super::{drain, terminal};

/// Longer than this the way round must not take.
const PATIENCE: Duration = Duration::from_secs(8);

/// From one call to the next.
const PACE: Duration = Duration::from_millis(25);

/// Something that happened on the way.
pub(super) struct Step {
    /// Since the primary broke.
    at: Duration,
    name: &'static str,
    says: String,
}

/// What the steps must be, in this order. What the circuit does in between, such as opening again after a
/// failed trial, may come on top.
const WAY: [&str; 8] = [
    "down",
    "fallback",
    "open",
    "left_alone",
    "mended",
    "half_open",
    "closed",
    "primary",
];

struct Way<'a> {
    gateway: &'a Gateway,
    events: &'a mut Receiver<Arc<Event>>,
    began: SystemTime,
    steps: Vec<Step>,
}

impl Way<'_> {
    fn note(&mut self, at: SystemTime, name: &'static str, says: impl Into<String>) {
        let at = at.duration_since(self.began).unwrap_or_default();
        let says = says.into();
        self.steps.push(Step { at, name, says });
    }

    fn has(&self, name: &str) -> bool {
        self.steps.iter().any(|step| step.name == name)
    }

    /// One call, with what the engine said meanwhile: whether the primary answered at once.
    async fn call(&mut self) -> Result<bool, String> {
        let arguments = Map::from_iter([("city".to_owned(), Value::from("Oslo"))]);
        let outcome = self.gateway.call_tool("weather", &arguments).await;
        let outcome = outcome.map_err(|error| format!("a call was lost: {error}"))?;
        let now = SystemTime::now();
        for event in drain(self.events) {
            match &event.what {
                EventKind::CircuitOpened {
                    target, open_for, ..
                } => self.note(
                    event.at,
                    "open",
                    format!(
                        "the circuit of {target} opens for {} ms",
                        open_for.as_millis()
                    ),
                ),
                EventKind::CircuitHalfOpened { target } => self.note(
                    event.at,
                    "half_open",
                    format!("the circuit of {target} is half open: one call may try"),
                ),
                EventKind::CircuitClosed { target } => {
                    self.note(
                        event.at,
                        "closed",
                        format!("the circuit of {target} closes"),
                    );
                }
                _ => {}
            }
        }
        let by = outcome.served_by.as_deref().unwrap_or("nobody");
        let at_once = outcome.trouble.is_none();
        if by == "secondary" && !at_once && !self.has("fallback") {
            self.note(now, "fallback", "a call is saved by secondary");
        }
        if by == "secondary" && at_once && self.has("open") && !self.has("left_alone") {
            let says = "calls go to secondary at once: primary is left alone";
            self.note(now, "left_alone", says);
        }
        Ok(by == "primary" && at_once)
    }
}

/// Breaks the primary, mends it, and says what happened on the way.
///
/// # Errors
/// In one sentence, what was not as it should be.
pub(super) async fn run(
    gateway: &Gateway,
    primary: &Server,
    events: &mut Receiver<Arc<Event>>,
) -> Result<Vec<Step>, String> {
    let mut way = Way {
        gateway,
        events,
        began: SystemTime::now(),
        steps: Vec::new(),
    };
    // What an earlier scene left behind is over once the primary answers at once for a while.
    let settled = async {
        let mut in_a_row = 0;
        while in_a_row < 10 {
            in_a_row = if way.call().await? { in_a_row + 1 } else { 0 };
            sleep(PACE).await;
        }
        Ok::<_, String>(())
    };
    timeout(PATIENCE, settled)
        .await
        .map_err(|_| format!("the primary is not in use after {PATIENCE:?}"))??;
    drain(way.events);
    way.steps.clear();
    way.began = SystemTime::now();
    let walked = timeout(PATIENCE, walk(&mut way, primary)).await;
    primary.set(None);
    walked.map_err(|_| format!("the primary is not back after {PATIENCE:?}"))??;
    let mut steps = way.steps.iter().map(|step| step.name);
    let missing = WAY
        .iter()
        .find(|wanted| !steps.any(|name| name == **wanted));
    match missing {
        None => Ok(way.steps),
        Some(missing) => Err(format!("{missing} did not happen, or not in its turn")),
    }
}

async fn walk(way: &mut Way<'_>, primary: &Server) -> Result<(), String> {
    primary.set(Some(Broken {
        fault: Fault::Status(503, None),
        tool: None,
        once: false,
    }));
    let says = "primary answers 503 to every call, and its health checks pass";
    way.note(way.began, "down", says);
    while !way.has("left_alone") {
        way.call().await?;
        sleep(PACE).await;
    }
    primary.set(None);
    way.note(SystemTime::now(), "mended", "primary works again");
    // The call that closes the circuit is a trial of its own: the one after it counts.
    loop {
        let closed = way.has("closed");
        if way.call().await? && closed {
            break;
        }
        sleep(PACE).await;
    }
    way.note(
        SystemTime::now(),
        "primary",
        "primary answers at once again",
    );
    Ok(())
}

pub(super) fn print(steps: &[Step]) {
    terminal::say(
        "\nThe whole way round, down to primary again, with the milliseconds since it broke:",
    );
    for step in steps {
        terminal::say(&format!("   {:>6}  {}", step.at.as_millis(), step.says));
    }
}

pub(super) fn as_json(steps: &[Step]) -> Value {
    let step = |step: &Step| json!({ "step": step.name, "at_ms": step.at.as_millis() as u64 });
    steps.iter().map(step).collect()
}

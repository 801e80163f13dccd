//! `backstop demo`: real MCP servers on loopback, really broken, and what saves the calls.
//!
//! Nothing here is scripted output: every line is an event of the engine or a field of an outcome. A
//! call that does not end as it should fails the demo.

mod cycle;
mod scenes;
mod server;
mod story;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use backstop::call::{Degraded, Ending, Trouble, Verdict};
use backstop::config::Config;
use backstop::event::Event;
use backstop::health::HealthChecker;
use backstop_gateway::{Gateway, ToolCallError};
use serde_json::json;
use tokio::sync::broadcast::Receiver;
use tokio::time::{Instant, sleep, timeout};

use crate::cli::host::Host;
use crate::cli::terminal;
use scenes::{Damage, Expected, Scene};
use server::Server;
use story::Told;

/// Longer than this no call of the demo may take: its deadline, and some grace.
const LOST_AFTER: Duration = Duration::from_secs(6);

/// How long the host may take to return to the primary after everything works again.
const SETTLE: Duration = Duration::from_secs(5);

pub(crate) async fn run(as_json: bool) -> anyhow::Result<ExitCode> {
    terminal::log();
    let (mut primary, mut secondary) = (
        Server::start("primary").await?,
        Server::start("secondary").await?,
    );
    let text = scenes::configuration(&primary.url(), &secondary.url());
    let file = Path::new("demo.toml");
    let loaded = Config::parse(&text, file, &|_| None);
    let host = Host::make(loaded.config, loaded.diagnostics, file).await?;
    if let Some(problem) = host
        .diagnostics
        .iter()
        .find(|diagnostic| diagnostic.is_error())
    {
        bail!("the demo's own configuration: {problem}");
    }
    let engine = host.gateway.engine().clone();
    let _checks = HealthChecker::spawn(
        engine.registry().clone(),
        Arc::new(host.gateway.prober()?),
        backstop::random::from_os(),
    );
    let mut events = engine.subscribe();
    if !as_json {
        terminal::say(
            "Two MCP servers on this machine, `primary` and `secondary`, and what happens when they break.",
        );
    }

    let mut calls = Vec::new();
    let mut surprises = Vec::new();
    for (number, scene) in scenes::scenes().into_iter().enumerate() {
        let back = settle(&host.gateway, &mut primary, &mut secondary, &mut events).await?;
        break_servers(scene.damage, &mut primary, &mut secondary).await;
        let called = call(&host.gateway, &scene, &mut events).await;
        if !as_json {
            story::print(
                number + 1,
                &scene,
                &called,
                back,
                primary.tickets() + secondary.tickets(),
            );
        }
        if let Err(surprise) = called.check(scene.expected) {
            surprises.push(format!("{}: {surprise}", scene.name));
        }
        if scene.expected == Expected::Unknown && primary.tickets() + secondary.tickets() != 1 {
            surprises.push(format!(
                "{}: the ticket was opened more than once",
                scene.name
            ));
        }
        calls.push((scene, called));
    }

    settle(&host.gateway, &mut primary, &mut secondary, &mut events).await?;
    let way_round = cycle::run(&host.gateway, &primary, &mut events).await;
    let way_round = way_round.unwrap_or_else(|surprise| {
        surprises.push(format!("way-round: {surprise}"));
        Vec::new()
    });

    let count = |outcome| {
        calls
            .iter()
            .filter(|(_, called)| called.outcome() == outcome)
            .count()
    };
    let (saved, failed_clean, lost) = (count("saved"), count("failed_clean"), count("lost"));
    if as_json {
        let list = calls.iter().map(|(scene, called)| {
            json!({
                "name": scene.name,
                "outcome": called.outcome(),
                "served_by": called.served_by,
                "degraded": called.degraded,
                "attempts": called.attempts,
                "strategies": called.strategies(),
            })
        });
        let summary = json!({ "calls": calls.len(), "saved": saved, "failed_clean": failed_clean, "lost": lost });
        let document = json!({
            "calls": list.collect::<Vec<_>>(),
            "way_round": cycle::as_json(&way_round),
            "summary": summary,
        });
        terminal::say(&serde_json::to_string_pretty(&document)?);
    } else {
        cycle::print(&way_round);
        terminal::say(&format!(
            "\n{} calls: {} answered at once, {saved} saved, {failed_clean} failed cleanly, {lost} lost.",
            calls.len(),
            count("ok"),
        ));
    }
    host.gateway.shut_down().await;
    for surprise in &surprises {
        terminal::complain(&format!("backstop: not as expected: {surprise}"));
    }
    Ok(if surprises.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn break_servers(damage: Damage, primary: &mut Server, secondary: &mut Server) {
    match damage {
        Damage::None => {}
        Damage::Primary(broken) => primary.set(Some(broken)),
        Damage::Both(broken) => {
            primary.set(Some(broken));
            secondary.set(Some(broken));
        }
        Damage::PrimaryDown => primary.stop().await,
        Damage::AllDown => {
            primary.stop().await;
            secondary.stop().await;
        }
    }
}

/// Mends the servers and calls until the primary answers at once again: how long that took, and what
/// was seen on the way.
async fn settle(
    gateway: &Gateway,
    primary: &mut Server,
    secondary: &mut Server,
    events: &mut Receiver<Arc<Event>>,
) -> anyhow::Result<Told> {
    for server in [primary, secondary] {
        server.set(None);
        server.listen_again().await?;
    }
    let started = Instant::now();
    let arguments = serde_json::Map::from_iter([("city".to_owned(), "Oslo".into())]);
    while started.elapsed() < SETTLE {
        let called = gateway.call_tool("weather", &arguments).await;
        if called.is_ok_and(|outcome| {
            outcome.trouble.is_none() && outcome.served_by.as_deref() == Some("primary")
        }) {
            return Ok(Told {
                took: started.elapsed(),
                events: drain(events),
            });
        }
        sleep(Duration::from_millis(20)).await;
    }
    bail!("the primary was not used again within {SETTLE:?} of its return")
}

fn drain(events: &mut Receiver<Arc<Event>>) -> Vec<Arc<Event>> {
    std::iter::from_fn(|| events.try_recv().ok()).collect()
}

/// What came of a call.
struct Called {
    lost: bool,
    answer: Option<String>,
    error: Option<(Ending, String)>,
    /// The kind of the first failure.
    cause: Option<String>,
    served_by: Option<String>,
    degraded: Option<Degraded>,
    attempts: usize,
    trouble: Trouble,
    told: Told,
}

impl Called {
    fn outcome(&self) -> &'static str {
        match (self.lost, &self.answer, self.attempts) {
            (true, ..) => "lost",
            (false, Some(_), _) if self.trouble.attempts.is_empty() => "ok",
            (false, Some(_), _) => "saved",
            (false, None, _) => "failed_clean",
        }
    }

    /// The strategies whose actions were carried out, in order.
    fn strategies(&self) -> Vec<&str> {
        let taken = self
            .trouble
            .steps
            .iter()
            .filter(|step| matches!(step.verdict, Verdict::Taken { .. }));
        taken.map(|step| &*step.strategy).collect()
    }

    fn check(&self, expected: Expected) -> Result<(), String> {
        let met = match expected {
            Expected::Healthy => {
                self.outcome() == "ok" && self.served_by.as_deref() == Some("primary")
            }
            Expected::By(server) => {
                self.outcome() == "saved" && self.served_by.as_deref() == Some(server)
            }
            Expected::OtherOperation => matches!(self.degraded, Some(Degraded::Operation { .. })),
            Expected::Stale => matches!(self.degraded, Some(Degraded::Stale { .. })),
            Expected::Fails(kind) => {
                self.outcome() == "failed_clean" && self.cause.as_deref() == Some(kind)
            }
            Expected::Unknown => matches!(self.error, Some((Ending::OutcomeUnknown, _))),
        };
        if met {
            Ok(())
        } else {
            Err(format!(
                "expected {expected:?}, saw {}: {:?}",
                self.outcome(),
                self.error
            ))
        }
    }
}

async fn call(gateway: &Gateway, scene: &Scene, events: &mut Receiver<Arc<Event>>) -> Called {
    drain(events);
    let started = Instant::now();
    let result = timeout(LOST_AFTER, gateway.call_tool(scene.tool, &scene.arguments)).await;
    let told = Told {
        took: started.elapsed(),
        events: drain(events),
    };
    let mut called = Called {
        lost: false,
        answer: None,
        error: None,
        cause: None,
        served_by: None,
        degraded: None,
        attempts: 0,
        trouble: Trouble::default(),
        told,
    };
    match result {
        Ok(Ok(outcome)) => {
            called.attempts = outcome.attempts() as usize;
            called.answer = Some(story::text(&outcome.answer));
            called.served_by = outcome.served_by.as_deref().map(str::to_owned);
            called.degraded = outcome.degraded;
            called.trouble = outcome.trouble.map(|trouble| *trouble).unwrap_or_default();
        }
        Ok(Err(ToolCallError::Failed(failed))) => {
            called.attempts = failed.error.trouble.attempts.len();
            called.error = Some((failed.error.ending, failed.error.to_string()));
            called.cause = Some(failed.error.cause.kind.to_string());
            called.trouble = failed.error.trouble;
        }
        Ok(Err(_)) | Err(_) => called.lost = true,
    }
    called
}

/// Reads a server's answer as any client would.
fn parse(text: &[u8]) -> anyhow::Result<serde_json::Value> {
    serde_json::from_slice(text).context("the answer is no JSON")
}

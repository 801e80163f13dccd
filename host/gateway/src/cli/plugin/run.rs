//! `backstop plugin run`: one decision.

use std::process::ExitCode;

use backstop::cases::{self, ActionText};
use backstop::strategy::component::ComponentStrategy;
use serde_json::{Value, json};

use super::Component;
use crate::cli::terminal;

pub(super) async fn run(
    component: &Component,
    context: &str,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    let loaded = component.read()?;
    let context = super::context(context)?;
    let runtime = super::runtime()?;
    let strategy =
        ComponentStrategy::load(&runtime, &loaded.plugin, loaded.bytes, component.options()?)
            .await?;
    let Some(rehearsal) = cases::ask(&strategy, &context, None).await else {
        if as_json {
            terminal::say(&json!({ "asked": false }).to_string());
        } else {
            terminal::say("not asked: its metadata names other kinds or operations");
        }
        return Ok(ExitCode::SUCCESS);
    };
    let decision = rehearsal.outcome.as_ref().ok().and_then(Option::as_ref);
    let action = decision.map(|decision| ActionText::from(&decision.action));
    let fault = rehearsal.outcome.as_ref().err();
    if as_json {
        let state: serde_json::Map<String, Value> = rehearsal
            .state
            .iter()
            .map(|(key, value)| (key.clone(), String::from_utf8_lossy(value).into()))
            .collect();
        let log: Vec<Value> = rehearsal
            .log
            .iter()
            .map(|(level, line)| json!({ "level": level, "line": line }))
            .collect();
        let document = json!({
            "asked": true,
            "condition": rehearsal.outcome.as_ref().ok().map(Option::is_some),
            "action": action,
            "reason": decision.map(|decision| &decision.reason),
            "fault": fault.map(|fault| json!({ "kind": fault.label(), "message": fault.to_string() })),
            "log": log,
            "state": state,
            "took_us": u64::try_from(rehearsal.took.as_micros()).unwrap_or(u64::MAX),
        });
        terminal::say(&serde_json::to_string_pretty(&document)?);
    } else {
        for (_, line) in &rehearsal.log {
            terminal::say(&format!("log: {line}"));
        }
        match (&action, fault) {
            (_, Some(fault)) => terminal::complain(&format!("backstop: the strategy {fault}")),
            (None, None) => terminal::say("condition: false"),
            (Some(action), None) => {
                terminal::say(&format!("action: {}", serde_json::to_string(action)?));
                if let Some(reason) = decision
                    .map(|decision| &decision.reason)
                    .filter(|it| !it.is_empty())
                {
                    terminal::say(&format!("reason: {reason}"));
                }
            }
        }
    }
    Ok(if fault.is_some() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

//! `backstop check`: everything that can be found out without running anything.

use std::path::Path;
use std::process::ExitCode;

use backstop::config::Config;
use backstop::strategy::Entry;
use serde_json::json;

use super::host::Host;
use super::{USAGE, terminal};

pub(super) async fn run(path: &Path, as_json: bool) -> anyhow::Result<ExitCode> {
    terminal::log();
    let mut loaded = Config::load(path);
    // A program that runs with this configuration uses it, and only one can.
    loaded.config.state = None;
    let host = Host::make(loaded.config, loaded.diagnostics, path).await?;
    let engine = host.gateway.engine();
    let strategies = engine.strategies().list();
    let targets = engine.registry().list();
    if as_json {
        let document = json!({
            "ok": !host.has_errors(),
            "diagnostics": host.diagnostics,
            "targets": targets.iter().map(|target| json!({
                "name": &*target.name,
                "group": &*target.spec.group,
                "kind": target.spec.kind.as_str(),
                "priority": target.spec.priority,
                "weight": target.spec.weight,
            })).collect::<Vec<_>>(),
            "strategies": strategies.iter().map(|strategy| json!({
                "name": &**strategy.name(),
                "priority": strategy.priority(),
                "level": &**strategy.level(),
                "plugin": strategy.as_component().map(|component| component.plugin()),
                "component": strategy.as_component().map(|component| component.inspection()),
            })).collect::<Vec<_>>(),
        });
        terminal::say(&serde_json::to_string_pretty(&document)?);
    } else {
        for diagnostic in &host.diagnostics {
            terminal::complain(&diagnostic.to_string());
        }
        let (targets_found, strategies_found) = (
            terminal::count(targets.len(), "target", "targets"),
            terminal::count(strategies.len(), "strategy", "strategies"),
        );
        terminal::say(&format!("{targets_found}, {strategies_found}"));
        for target in &targets {
            let spec = &target.spec;
            let (kind, group) = (spec.kind.as_str(), &spec.group);
            terminal::say(&format!(
                "  {kind} {} in group {group}, priority {}",
                target.name, spec.priority
            ));
        }
        for strategy in strategies.iter() {
            terminal::say(&line(strategy));
        }
        let errors = host
            .diagnostics
            .iter()
            .filter(|diagnostic| diagnostic.is_error())
            .count();
        let verdict = match errors {
            0 => format!("{} is in order", path.display()),
            _ => format!(
                "{} has {}",
                path.display(),
                terminal::count(errors, "error", "errors")
            ),
        };
        terminal::say(&verdict);
    }
    host.gateway.shut_down().await;
    Ok(if host.has_errors() {
        ExitCode::from(USAGE)
    } else {
        ExitCode::SUCCESS
    })
}

fn line(strategy: &Entry) -> String {
    let plugin = strategy.as_component().map_or(String::new(), |component| {
        let inspection = component.inspection();
        let name = if component.plugin() == &**strategy.name() {
            ""
        } else {
            component.plugin()
        };
        format!(
            " {name} {} ({} KB)",
            inspection.info.version,
            inspection.size / 1000
        )
    });
    format!(
        "  strategy {}, level {}, priority {}{plugin}",
        strategy.name(),
        strategy.level(),
        strategy.priority()
    )
}

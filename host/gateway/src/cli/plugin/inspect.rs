//! `backstop plugin inspect`: what a component says of itself, what it wants and what it gets.

use std::process::ExitCode;

use backstop::strategy::StrategyInfo;
use backstop::strategy::component::{ComponentStrategy, Grants, Inspection};
use serde_json::json;

use super::{Component, shown_size};
use crate::cli::terminal;

pub(super) async fn run(component: &Component, as_json: bool) -> anyhow::Result<ExitCode> {
    let loaded = component.read()?;
    let options = component.options()?;
    let (limits, grants) = (options.limits.clone(), options.grants.clone());
    let runtime = super::runtime()?;
    let described =
        ComponentStrategy::describe(&runtime, &loaded.plugin, loaded.bytes.clone(), &limits)
            .await?;
    // Without its configuration or its grants it cannot be asked for its routes; all else is known.
    let strategy =
        ComponentStrategy::load(&runtime, &loaded.plugin, loaded.bytes.clone(), options).await;
    let (inspection, problem) = match &strategy {
        Ok(strategy) => (Some(strategy.inspection()), None),
        Err(error) => (None, Some(error.to_string())),
    };
    if as_json {
        let document = json!({
            "file": loaded.path,
            "component": described,
            "limits": limits,
            "grants": { "wanted": described.info.capabilities, "given": grants },
            "routes": inspection.map(|inspection| &inspection.routes),
            "isolation": inspection.map(|inspection| &inspection.isolation),
            "usable": problem.is_none(),
            "problem": problem,
        });
        terminal::say(&serde_json::to_string_pretty(&document)?);
        return Ok(ExitCode::SUCCESS);
    }
    let info = &described.info;
    let line = |key: &str, value: &str| terminal::say(&format!("{key:<12}{value}"));
    line("strategy", &format!("{} {}", info.name, info.version));
    line("", &info.description);
    line("level", &info.level);
    line("priority", &info.default_priority.to_string());
    let kinds: Vec<&str> = info.kinds.iter().map(|kind| kind.as_str()).collect();
    line("kinds", &listed(&kinds, "every kind"));
    line("operations", &listed(&info.operations, "every operation"));
    for (key, value) in &info.extra {
        line(key, value);
    }
    line("contract", &described.contract);
    line(
        "imports",
        &listed(&described.imports, "nothing").replace(", ", "\n            "),
    );
    line("grants", &granted(info, &grants));
    line("routes", &routes(inspection));
    line(
        "schema",
        if info.config_schema.is_empty() {
            "none: it takes any configuration"
        } else {
            &info.config_schema
        },
    );
    line(
        "file",
        &format!("{}, {}", loaded.path.display(), shown_size(described.size)),
    );
    line("sha256", &described.sha256.to_string());
    line(
        "limits",
        &limits.to_string().replace('\n', "\n            "),
    );
    if let Some(problem) = problem {
        line("problem", &problem);
    }
    Ok(ExitCode::SUCCESS)
}

fn listed<T: AsRef<str>>(list: &[T], none: &str) -> String {
    if list.is_empty() {
        return none.to_owned();
    }
    let list: Vec<&str> = list.iter().map(AsRef::as_ref).collect();
    list.join(", ")
}

/// Whether a capability is among those given.
pub(super) fn is_given(capability: &str, grants: &Grants) -> Option<bool> {
    match capability {
        "state" => Some(grants.state),
        "folder" => Some(grants.folder.is_some()),
        _ => None,
    }
}

fn granted(info: &StrategyInfo, grants: &Grants) -> String {
    let wanted: Vec<String> = info
        .capabilities
        .iter()
        .map(|capability| {
            let given = match is_given(capability, grants) {
                Some(true) => "given",
                Some(false) => "not given",
                None => "not known to this host",
            };
            format!("{capability}: wanted, {given}")
        })
        .collect();
    listed(&wanted, "none wanted")
}

fn routes(inspection: Option<&Inspection>) -> String {
    match inspection {
        None => "not known before it is configured".into(),
        Some(inspection) => {
            let routes: Vec<String> = inspection
                .routes
                .iter()
                .map(|route| format!("{} -> {}", route.source, route.fallback))
                .collect();
            listed(&routes, "none declared")
        }
    }
}

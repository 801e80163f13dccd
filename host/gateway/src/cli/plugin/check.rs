//! `backstop plugin check`: everything a host would refuse, and what it would wonder at.

use std::process::ExitCode;
use std::time::Duration;

use backstop::Kind;
use backstop::cases::{self, Context};
use backstop::strategy::component::{
    ComponentStrategy, Description, LoadError, Runtime, StrategyOptions,
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Component, Loaded, inspect, shown_size};
use crate::cli::terminal;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    /// A host refuses it, or it cannot decide.
    Error,
    /// It works, and probably not as meant.
    Warning,
    /// What the operator has to know.
    Note,
}

#[derive(Debug, Serialize)]
struct Finding {
    severity: Severity,
    about: &'static str,
    what: String,
    remedy: String,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(
        &mut self,
        severity: Severity,
        about: &'static str,
        what: impl Into<String>,
        remedy: impl Into<String>,
    ) {
        let (what, remedy) = (what.into(), remedy.into());
        self.0.push(Finding {
            severity,
            about,
            what,
            remedy,
        });
    }

    fn refused(&mut self, about: &'static str, error: &LoadError) {
        // Its last part says how to mend it.
        let text = error.to_string();
        let text = text
            .split_once(": ")
            .map_or(text.as_str(), |(_, rest)| rest);
        match text.rsplit_once(": ") {
            Some((what, remedy)) => self.add(Severity::Error, about, what, remedy),
            None => self.add(Severity::Error, about, text, "mend the plugin"),
        }
    }
}

pub(super) async fn run(component: &Component, as_json: bool) -> anyhow::Result<ExitCode> {
    let loaded = component.read()?;
    let options = component.options()?;
    let runtime = super::runtime()?;
    let mut findings = Findings::default();
    let described = ComponentStrategy::describe(
        &runtime,
        &loaded.plugin,
        loaded.bytes.clone(),
        &options.limits,
    )
    .await;
    match &described {
        Err(error) => findings.refused("component", error),
        Ok(described) => {
            metadata(&mut findings, &loaded.plugin, described);
            schema(&mut findings, &described.info.config_schema);
            decision(&mut findings, &runtime, &loaded, described, options).await;
        }
    }
    let Findings(findings) = findings;
    let errors = findings
        .iter()
        .filter(|finding| finding.severity == Severity::Error)
        .count();
    if as_json {
        let document = json!({
            "file": loaded.path,
            "ok": errors == 0,
            "component": described.ok(),
            "findings": findings,
        });
        terminal::say(&serde_json::to_string_pretty(&document)?);
    } else {
        for finding in &findings {
            let severity = match finding.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
                Severity::Note => "note",
            };
            terminal::say(&format!(
                "{severity}: {}: {}\n    {}",
                finding.about, finding.what, finding.remedy
            ));
        }
        let size = shown_size(loaded.bytes.len());
        let verdict = match errors {
            0 => "is in order".into(),
            _ => format!("has {}", terminal::count(errors, "error", "errors")),
        };
        terminal::say(&format!("{} ({size}) {verdict}", loaded.path.display()));
    }
    Ok(if errors == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn metadata(findings: &mut Findings, plugin: &str, described: &Description) {
    use Severity::{Note, Warning};

    let info = &described.info;
    if info.name != plugin {
        findings.add(
            Warning,
            "name",
            format!(
                "the file is called {plugin:?}, and the strategy calls itself {:?}",
                info.name
            ),
            "give both the same name: a configuration names the file",
        );
    }
    if info.description.trim().is_empty() {
        findings.add(
            Warning,
            "description",
            "it is empty",
            "say in a sentence what the strategy does",
        );
    }
    let numbers = info.version.split(['-', '+']).next().unwrap_or_default();
    let numbers: Vec<&str> = numbers.split('.').collect();
    if numbers.len() != 3 || numbers.iter().any(|number| number.parse::<u64>().is_err()) {
        findings.add(
            Warning,
            "version",
            format!("{:?} is no semantic version", info.version),
            "write three numbers, such as 1.0.0",
        );
    }
    for kind in &info.kinds {
        if !Kind::WELL_KNOWN.contains(kind) {
            findings.add(
                Note,
                "kinds",
                format!("`{kind}` is not a well-known kind of failure"),
                "see that it is spelt as the configuration that adds it spells it",
            );
        }
    }
    if info.kinds.is_empty() && info.operations.is_empty() {
        findings.add(
            Note,
            "kinds",
            "it is asked about every failure of every operation",
            "name the kinds it can do something about: the host then need not ask for the rest",
        );
    }
}

fn schema(findings: &mut Findings, schema: &str) {
    if schema.is_empty() {
        findings.add(
            Severity::Warning,
            "schema",
            "there is none, so a wrong configuration is found only when it does harm",
            "give the JSON Schema of the configuration",
        );
        return;
    }
    // Whether it is a schema at all is found when the strategy is loaded.
    let Ok(Value::Object(schema)) = serde_json::from_str(schema) else {
        return;
    };
    let closed = ["additionalProperties", "unevaluatedProperties"]
        .iter()
        .any(|key| schema.get(*key) == Some(&Value::Bool(false)));
    if !closed {
        findings.add(
            Severity::Warning,
            "schema",
            "it accepts any key, so a misspelt one goes unnoticed",
            "add \"additionalProperties\": false",
        );
    }
}

/// Loads it as an operator would who grants what it wants, and lets it decide once.
async fn decision(
    findings: &mut Findings,
    runtime: &Runtime,
    loaded: &Loaded,
    described: &Description,
    mut options: StrategyOptions,
) {
    use Severity::{Error, Note, Warning};

    for capability in &described.info.capabilities {
        let remedy = match inspect::is_given(capability, &options.grants) {
            Some(true) => continue,
            Some(false) if capability == "state" => "grants.state = true",
            Some(false) => "grants.folder = \"DIR\"",
            None => {
                findings.add(
                    Warning,
                    "capabilities",
                    format!("it wants `{capability}`, which this host does not know"),
                    "use `state` and `folder`",
                );
                continue;
            }
        };
        findings.add(
            Note,
            "capabilities",
            format!("it wants `{capability}`"),
            format!("the operator has to write `{remedy}` in its [[strategy]]"),
        );
    }
    options.grants.state = true;
    // Nothing is read while it is configured.
    options.grants.folder.get_or_insert_with(std::env::temp_dir);
    let deadline = options.limits.decision_deadline();
    let strategy =
        match ComponentStrategy::load(runtime, &loaded.plugin, loaded.bytes.clone(), options).await
        {
            Ok(strategy) => strategy,
            Err(error @ (LoadError::Config { .. } | LoadError::Refused { .. })) => {
                findings.refused("config", &error);
                if let Some(finding) = findings.0.last_mut() {
                    finding
                        .remedy
                        .push_str(" (--config gives it a configuration)");
                }
                return;
            }
            Err(error) => return findings.refused("loading", &error),
        };
    let kind = described
        .info
        .kinds
        .first()
        .cloned()
        .unwrap_or(Kind::TIMEOUT_ERROR);
    let Ok(context) = ordinary(&kind) else {
        return;
    };
    let Some(rehearsal) = cases::ask(&strategy, &context, None).await else {
        // It names operations; there is no telling which are real.
        return;
    };
    match rehearsal.outcome {
        Err(fault) => findings.add(
            Error,
            "decision",
            format!("asked about a `{kind}` it {fault}"),
            "try it with `backstop plugin run`, and mend it",
        ),
        Ok(_) if rehearsal.took > deadline / 2 => findings.add(
            Warning,
            "decision",
            format!("it took {:?} of its {deadline:?}", rehearsal.took),
            "make it faster, or have the operator write `limits.decision_deadline`",
        ),
        Ok(_) => {}
    }
    if let Some(warning) = slow(rehearsal.took) {
        findings.add(
            Note,
            "decision",
            warning,
            "measure it with `backstop plugin bench`",
        );
    }
}

/// The smallest whole situation: two targets, one failed attempt.
fn ordinary(kind: &Kind) -> serde_json::Result<Context> {
    serde_json::from_value(json!({
        "failure": { "kind": kind, "message": "a check" },
        "call": { "group": "check", "operation": "check" },
        "target": "a",
        "targets": [{ "name": "a", "priority": 1 }, { "name": "b" }],
        "arguments": {},
    }))
}

/// A decision that would be felt.
fn slow(took: Duration) -> Option<String> {
    (took > Duration::from_millis(5)).then(|| format!("one decision took {took:?}"))
}

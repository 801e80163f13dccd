//! `backstop plugin test`: the cases of a file, in the real sandbox.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::bail;
use backstop::cases::{Report, Suite};
use serde_json::json;

use super::Component;
use crate::cli::{USAGE, terminal};

pub(super) async fn run(
    component: &Component,
    cases: Option<&Path>,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    let loaded = component.read()?;
    let path = match cases {
        Some(path) => path.to_owned(),
        None => beside(&loaded.path)?,
    };
    let suite = match Suite::load(&path) {
        Ok(suite) => suite,
        Err(error) => {
            terminal::complain(&format!("backstop: {:#}", anyhow::Error::new(error)));
            return Ok(ExitCode::from(USAGE));
        }
    };
    let defaults = component.options()?;
    let runtime = super::runtime()?;
    let reports = suite
        .run(&runtime, &loaded.plugin, &loaded.bytes, &defaults)
        .await;
    let failed = reports.iter().filter(|report| !report.passed).count();
    if as_json {
        let document = json!({
            "component": loaded.path,
            "cases": path,
            "passed": reports.len() - failed,
            "failed": failed,
            "reports": reports,
        });
        terminal::say(&serde_json::to_string_pretty(&document)?);
    } else {
        for report in &reports {
            terminal::say(&shown(report));
        }
        terminal::say(&format!(
            "{} passed, {failed} failed",
            reports.len() - failed
        ));
    }
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The cases of a component that lies in its project's `dist`, or of this folder.
fn beside(component: &Path) -> anyhow::Result<PathBuf> {
    let above = component.parent().and_then(Path::parent);
    for folder in [Some(Path::new("")), above].into_iter().flatten() {
        for name in ["cases.toml", "cases.json"] {
            let path = folder.join(name);
            if path.is_file() {
                return Ok(path);
            }
        }
    }
    bail!("there is no cases.toml or cases.json here or above the component: name one with --cases")
}

fn shown(report: &Report) -> String {
    let mut text = format!(
        "{}  {} ({:.2} ms)",
        if report.passed { "ok    " } else { "FAILED" },
        report.name,
        report.took.as_secs_f64() * 1e3
    );
    for difference in &report.differences {
        let value = |value: &Option<serde_json::Value>| {
            value
                .as_ref()
                .map_or_else(|| "nothing".into(), ToString::to_string)
        };
        text.push_str(&format!(
            "\n          {}\n            expected  {}\n            got       {}",
            difference.at,
            value(&difference.expected),
            value(&difference.actual)
        ));
    }
    if !report.passed {
        for line in &report.log {
            text.push_str(&format!("\n          log: {line}"));
        }
    }
    text
}

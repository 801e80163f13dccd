//! What was measured, as a table, as JSON, and against the targets.

use serde::Serialize;

use crate::measure::Sample;
use crate::scale::Curve;

#[derive(Serialize)]
pub struct Row {
    section: &'static str,
    name: String,
    unit: &'static str,
    median: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    p99: Option<f64>,
    /// The median over that of backstop in its section.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
}

/// A promise, and whether it was kept in this run.
#[derive(Serialize)]
pub struct Target {
    pub section: &'static str,
    pub promise: String,
    pub measured: f64,
    pub at_most: f64,
    pub met: bool,
}

#[derive(Serialize, Default)]
pub struct Report {
    pub machine: Machine,
    pub rows: Vec<Row>,
    pub targets: Vec<Target>,
    pub curves: Vec<Curve>,
}

#[derive(Serialize, Default)]
pub struct Machine {
    pub cores: usize,
    pub processor: String,
    /// Of the last minute, when the run ended: what else the machine was doing.
    pub load: String,
}

impl Machine {
    pub fn now() -> Self {
        let text = |path| std::fs::read_to_string(path).unwrap_or_default();
        let model = text("/proc/cpuinfo");
        let model = model.lines().find(|line| line.starts_with("model name"));
        let load = text("/proc/loadavg");
        Self {
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: model
                .and_then(|line| line.split(':').nth(1))
                .map_or_else(String::new, |name| name.trim().to_owned()),
            load: load.split(' ').next().unwrap_or_default().to_owned(),
        }
    }
}

impl Report {
    /// Adds a section, every median beside that of the first.
    pub fn section(&mut self, section: &'static str, samples: &[Sample]) {
        let ours = samples.first().map(Sample::median);
        for sample in samples {
            self.rows.push(Row {
                section,
                name: sample.name.to_owned(),
                unit: "ns",
                median: sample.median(),
                p99: Some(sample.p99()),
                ratio: ours.map(|ours| sample.median() / ours),
            });
        }
    }

    /// Adds a single figure.
    pub fn figure(&mut self, section: &'static str, name: &str, unit: &'static str, value: f64) {
        self.rows.push(Row {
            section,
            name: name.to_owned(),
            unit,
            median: value,
            p99: None,
            ratio: None,
        });
    }

    /// Holds a figure against a target.
    pub fn target(&mut self, section: &'static str, promise: &str, measured: f64, at_most: f64) {
        self.targets.push(Target {
            section,
            promise: promise.to_owned(),
            measured,
            at_most,
            met: measured <= at_most,
        });
    }

    /// The table, as Markdown.
    pub fn table(&self) -> String {
        use std::fmt::Write as _;
        let mut out = String::new();
        let mut line = |text: String| {
            let _ = writeln!(out, "{text}");
        };
        line("| | | median | p99 | times backstop |".into());
        line("|---|---|---:|---:|---:|".into());
        let mut last = "";
        for row in &self.rows {
            let section = if row.section == last { "" } else { row.section };
            last = row.section;
            let p99 = row
                .p99
                .map_or_else(String::new, |p99| figure(p99, row.unit));
            let ratio = row.ratio.map_or_else(String::new, |ratio| short(ratio));
            let median = figure(row.median, row.unit);
            line(format!(
                "| {section} | {} | {median} | {p99} | {ratio} |",
                row.name
            ));
        }
        line(String::new());
        line("| curve | of | |".into());
        line("|---|---|---|".into());
        for curve in &self.curves {
            let points = curve.points.iter();
            let points: Vec<_> = points
                .map(|(size, value)| format!("{size}: {} {}", short(*value), curve.unit))
                .collect();
            line(format!(
                "| {} | {} | {} |",
                curve.name,
                curve.of,
                points.join(" · ")
            ));
        }
        line(String::new());
        line("| target | at most | measured | |".into());
        line("|---|---:|---:|---|".into());
        for target in &self.targets {
            let met = if target.met { "met" } else { "**missed**" };
            line(format!(
                "| {}: {} | {} | {} | {met} |",
                target.section,
                target.promise,
                short(target.at_most),
                short(target.measured)
            ));
        }
        out
    }
}

/// Three digits that count.
fn short(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn figure(value: f64, unit: &str) -> String {
    match unit {
        "ns" if value >= 1e6 => format!("{} ms", short(value / 1e6)),
        "ns" if value >= 1e3 => format!("{} µs", short(value / 1e3)),
        _ => format!("{} {unit}", short(value)),
    }
}

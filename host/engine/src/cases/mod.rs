//! Test cases for strategies, as data: a situation in, a decision out.
//!
//! The cases run against the built component in the real sandbox, with its real limits, so they hold
//! for every language a strategy can be written in. Time stands still, chance repeats, and every case
//! has a state of its own: what passes once always passes.
//!
//! `backstop plugin test` runs them from the command line; an embedder runs them with
//! [`Suite::run`].
//!
#![doc = include_str!("format.md")]

mod context;
mod expect;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use context::Context;
pub use expect::{ActionText, AnswerText, Difference, Expectation};

use self::expect::Came;
use crate::strategy::component::{
    ComponentStrategy, Grants, Limits, LoadError, Rehearsal, Runtime, StrategyOptions,
};

/// The cases of one file.
#[derive(Debug, Clone)]
pub struct Suite {
    cases: Vec<Case>,
    folder: PathBuf,
}

#[derive(Debug, Clone)]
struct Case {
    name: String,
    options: Options,
    steps: Vec<Step>,
}

/// How the strategy of a case is loaded.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Options {
    config: Option<Map<String, Value>>,
    grants: Option<Grants>,
    limits: Option<Limits>,
}

#[derive(Debug, Clone)]
struct Step {
    context: Context,
    expect: Expectation,
    /// The state is written in the step itself, so it does not go on from the one before.
    own_state: bool,
}

/// Why a file of cases cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum SuiteError {
    /// It cannot be read.
    #[error("{} cannot be read: name a file of cases, in TOML or JSON", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// It is no TOML.
    #[error("{} is not TOML", path.display())]
    Toml {
        path: PathBuf,
        #[source]
        source: Box<toml::de::Error>,
    },
    /// It is no JSON.
    #[error("{} is not JSON", path.display())]
    Json {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    /// It is not a list of cases.
    #[error("{}: {reason}", path.display())]
    Shape { path: PathBuf, reason: String },
    /// One case is wrong.
    #[error("{}: case {case}: {reason}", path.display())]
    Case {
        path: PathBuf,
        case: String,
        reason: String,
    },
}

impl Suite {
    /// Reads a file of cases: JSON if its name ends in `.json`, else TOML.
    ///
    /// # Errors
    /// [`SuiteError`].
    pub fn load(path: &Path) -> Result<Self, SuiteError> {
        let text = std::fs::read_to_string(path).map_err(|source| SuiteError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, path)
    }

    /// The same, of a text that was read from `path`.
    ///
    /// # Errors
    /// [`SuiteError`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, SuiteError> {
        let json = path
            .extension()
            .is_some_and(|extension| extension == "json");
        let document: Value = if json {
            serde_json::from_str(text).map_err(|source| SuiteError::Json {
                path: path.to_owned(),
                source,
            })?
        } else {
            toml::from_str(text).map_err(|source| SuiteError::Toml {
                path: path.to_owned(),
                source: Box::new(source),
            })?
        };
        let shape = |reason: &str| SuiteError::Shape {
            path: path.to_owned(),
            reason: reason.to_owned(),
        };
        let Value::Object(mut document) = document else {
            return Err(shape("it is not a table with a list `case`"));
        };
        let defaults = document
            .remove("defaults")
            .unwrap_or_else(|| Value::Object(Map::new()));
        let Some(Value::Array(list)) = document.remove("case") else {
            return Err(shape("it has no cases: write at least one [[case]]"));
        };
        if let Some(key) = document.keys().next() {
            let reason = format!("unknown key `{key}`: write `defaults` and `case`");
            return Err(shape(&reason));
        }
        if list.is_empty() {
            return Err(shape("it has no cases: write at least one [[case]]"));
        }
        let mut cases = Vec::with_capacity(list.len());
        for (at, own) in list.iter().enumerate() {
            let case = Case::read(&defaults, own).map_err(|reason| SuiteError::Case {
                path: path.to_owned(),
                case: match own.get("name").and_then(Value::as_str) {
                    Some(name) => format!("{name:?}"),
                    None => (at + 1).to_string(),
                },
                reason,
            })?;
            cases.push(case);
        }
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        Ok(Self { cases, folder })
    }

    /// How many cases there are.
    pub fn len(&self) -> usize {
        self.cases.len()
    }

    /// Never: a file without a case is refused.
    pub fn is_empty(&self) -> bool {
        self.cases.is_empty()
    }

    /// Runs every case against a component, in order. `plugin` is the name the component has in
    /// messages; `defaults` is how it is loaded where a case does not say.
    ///
    /// A case that fails, for whatever reason, is a [`Report`], not an error.
    pub async fn run(
        &self,
        runtime: &Runtime,
        plugin: &str,
        component: &Bytes,
        defaults: &StrategyOptions,
    ) -> Vec<Report> {
        // Cases with the same options share one strategy: a large component loads slowly.
        let mut loaded: BTreeMap<String, Result<Arc<ComponentStrategy>, String>> = BTreeMap::new();
        let mut reports = Vec::with_capacity(self.cases.len());
        for case in &self.cases {
            let options = case.options(&self.folder, defaults);
            let key = format!("{options:?}");
            if !loaded.contains_key(&key) {
                let strategy =
                    ComponentStrategy::load(runtime, plugin, component.clone(), options).await;
                loaded.insert(key.clone(), strategy.map_err(|error| sentence(&error)));
            }
            let report = match &loaded[&key] {
                Ok(strategy) => case.run(strategy).await,
                Err(why) => case.refused(why),
            };
            reports.push(report);
        }
        reports
    }
}

/// An error with its causes.
fn sentence(error: &LoadError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let next = error.to_string();
        // Some errors say what their cause says.
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

/// What became of one case.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The case's name.
    pub name: String,
    /// Whether everything was as expected.
    pub passed: bool,
    /// What was not. In a case of several steps each is marked with its step's number.
    pub differences: Vec<Difference>,
    /// What the strategy wrote to its log.
    pub log: Vec<String>,
    /// How long `condition` and `action` took, all steps together.
    #[serde(rename = "took_us", serialize_with = "as_micros")]
    pub took: Duration,
}

fn as_micros<S: serde::Serializer>(took: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_u64(u64::try_from(took.as_micros()).unwrap_or(u64::MAX))
}

impl Case {
    fn read(defaults: &Value, own: &Value) -> Result<Self, String> {
        let mut whole = defaults.clone();
        lay_over(&mut whole, own);
        let Value::Object(mut whole) = whole else {
            return Err("it is not a table".into());
        };
        let Some(Value::String(name)) = whole.remove("name") else {
            return Err("it has no `name`".into());
        };
        let mut options = Map::new();
        for key in ["config", "grants", "limits"] {
            if let Some(value) = whole.remove(key) {
                options.insert(key.to_owned(), value);
            }
        }
        let options = serde_json::from_value(options.into()).map_err(|error| error.to_string())?;
        let steps = match whole.remove("steps") {
            None => vec![Step::read(whole)?],
            Some(Value::Array(list)) if !list.is_empty() => {
                let mut steps = Vec::with_capacity(list.len());
                for (at, own) in list.iter().enumerate() {
                    let mut step = Value::Object(whole.clone());
                    lay_over(&mut step, own);
                    let Value::Object(step) = step else {
                        return Err(format!("step {} is not a table", at + 1));
                    };
                    let mut step =
                        Step::read(step).map_err(|reason| format!("step {}: {reason}", at + 1))?;
                    step.own_state = own.get("state").is_some();
                    steps.push(step);
                }
                steps
            }
            Some(_) => return Err("`steps` is not a list of tables".into()),
        };
        Ok(Self {
            name,
            options,
            steps,
        })
    }

    fn options(&self, folder: &Path, defaults: &StrategyOptions) -> StrategyOptions {
        let mut options = defaults.clone();
        if let Some(config) = &self.options.config {
            options.config = Value::Object(config.clone());
        }
        if let Some(limits) = &self.options.limits {
            options.limits = limits.clone();
        }
        if let Some(grants) = &self.options.grants {
            options.grants = grants.clone();
            options.grants.folder = options.grants.folder.map(|path| folder.join(path));
        }
        options
    }

    fn refused(&self, why: &str) -> Report {
        let expect = self.steps.first().map(|step| &step.expect);
        let differences = expect
            .map(|expect| expect.compare(&Came::Refused(why)))
            .unwrap_or_default();
        self.report(differences, Vec::new(), Duration::ZERO)
    }

    async fn run(&self, strategy: &ComponentStrategy) -> Report {
        let (mut differences, mut log, mut took) = (Vec::new(), Vec::new(), Duration::ZERO);
        let mut state: Option<Vec<(String, Vec<u8>)>> = None;
        for (at, step) in self.steps.iter().enumerate() {
            let carried = if step.own_state { None } else { state.take() };
            let asked = ask(strategy, &step.context, carried).await;
            let mut found = match &asked {
                None => step.expect.compare(&Came::NotAsked),
                Some(rehearsal) => step.expect.compare(&Came::Asked(rehearsal)),
            };
            if self.steps.len() > 1 {
                for difference in &mut found {
                    difference.at = format!("step {}, {}", at + 1, difference.at);
                }
            }
            differences.append(&mut found);
            if let Some(rehearsal) = asked {
                took += rehearsal.took;
                log.extend(rehearsal.log.into_iter().map(|(_, line)| line));
                state = Some(rehearsal.state);
            }
        }
        self.report(differences, log, took)
    }

    fn report(&self, differences: Vec<Difference>, log: Vec<String>, took: Duration) -> Report {
        Report {
            name: self.name.clone(),
            passed: differences.is_empty(),
            differences,
            log,
            took,
        }
    }
}

/// Asks a strategy once, as the host would: only about what it wants to be asked about. `None` means
/// that the host would not. `state` takes the place of the context's.
pub async fn ask(
    strategy: &ComponentStrategy,
    context: &Context,
    state: Option<Vec<(String, Vec<u8>)>>,
) -> Option<Rehearsal> {
    let (situation, mut frozen) = context.situation();
    let interest = strategy.interest();
    if !interest.matches(&situation.failure.kind, &situation.operation) {
        return None;
    }
    if let Some(state) = state {
        frozen.state = state;
    }
    Some(strategy.rehearse(&situation, &frozen).await)
}

impl Step {
    fn read(mut whole: Map<String, Value>) -> Result<Self, String> {
        let expect: Expectation = match whole.remove("expect") {
            None => Expectation::default(),
            Some(value) => {
                serde_json::from_value(value).map_err(|error| format!("`expect`: {error}"))?
            }
        };
        if expect.is_empty() {
            return Err("it expects nothing: write `expect`".into());
        }
        let context = serde_json::from_value(whole.into()).map_err(|error| error.to_string())?;
        Ok(Self {
            context,
            expect,
            own_state: false,
        })
    }
}

/// Lays one document over another: tables are merged, anything else is replaced.
fn lay_over(below: &mut Value, above: &Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (key, value) in above {
                match below.get_mut(key) {
                    // An expectation is one statement, not a collection of old ones.
                    Some(old) if key != "expect" => lay_over(old, value),
                    _ => {
                        below.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        (below, above) => *below = above.clone(),
    }
}

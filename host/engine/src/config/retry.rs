//! `[retry.KIND]`: how failures of a kind are retried.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::reader::{Issue, Reader};
use super::units::DurationText;
use super::value::{self, ANY_DURATION, POSITIVE};
use crate::kind::Kind;
use crate::retry::RetryPolicies;

/// Every `[retry.…]` table.
///
/// Each key is looked for in the table of the failure's kind, then in the host's own table of kinds
/// (RULES: backoff), then in `[retry.default]`, then in [`Retry::standard`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
#[serde(default)]
#[non_exhaustive]
pub struct Retries {
    /// What holds for every kind that neither the file nor the host has a table for.
    pub default: Retry,
    /// What holds for a kind, such as `[retry.TimeoutError]`. Custom kinds are welcome.
    #[serde(flatten)]
    #[schemars(with = "BTreeMap<String, Retry>")]
    pub kinds: BTreeMap<Kind, Retry>,
}

/// One `[retry.KIND]` table; what is not given is not changed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Retry {
    /// How often a call is sent again, 0 to 100; 0 switches retries off. Standard: 3, or the number
    /// of `delays`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub max_retries: Option<u32>,
    /// The delay before the first retry. Standard: 100 ms (DESIGN: configuration).
    #[serde(with = "DurationText", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DurationText")]
    pub initial_delay: Option<Duration>,
    /// The cap of every delay; it is applied before jitter. Standard: 60 s (DESIGN: configuration).
    #[serde(with = "DurationText", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "DurationText")]
    pub max_delay: Option<Duration>,
    /// What each delay is multiplied by to get the next, 1 to 100. Standard: 2 (DESIGN: configuration).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub factor: Option<f64>,
    /// How delays are spread. Standard: `equal`, which never falls to nearly nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter: Option<Jitter>,
    /// The delays themselves, at most 100, in place of `initial_delay` and `factor`.
    #[serde(with = "DurationText", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Vec<DurationText>")]
    pub delays: Option<Vec<Duration>>,
}

/// How delays are spread, so that callers that failed together do not come back together (RULES:
/// backoff). `b` is the delay without jitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Jitter {
    /// `b`.
    None,
    /// Anything from 0 to `b`.
    Full,
    /// `b/2`, and anything from 0 to `b/2` more.
    Equal,
    /// Anything from the first delay to three times the delay before, at most the cap.
    Decorrelated,
}

impl Retry {
    /// What holds where nothing else says anything: 3 retries, 0.1 s, factor 2, 60 s cap (DESIGN:
    /// configuration), equal jitter.
    pub fn standard() -> Self {
        Self {
            max_retries: Some(3),
            initial_delay: Some(Duration::from_millis(100)),
            max_delay: Some(Duration::from_secs(60)),
            factor: Some(2.0),
            jitter: Some(Jitter::Equal),
            delays: None,
        }
    }

    fn read(r: &mut Reader<'_, '_>) -> Self {
        const MANY: usize = 100;
        let retry = Self {
            max_retries: r.read("max_retries", value::integer(0..=100)),
            initial_delay: r.read("initial_delay", value::duration(ANY_DURATION)),
            max_delay: r.read("max_delay", value::duration(POSITIVE)),
            factor: r.read("factor", value::float(1.0..=100.0)),
            jitter: r.read(
                "jitter",
                value::word(&[
                    ("none", Jitter::None),
                    ("full", Jitter::Full),
                    ("equal", Jitter::Equal),
                    ("decorrelated", Jitter::Decorrelated),
                ]),
            ),
            delays: r.list("delays", value::duration(ANY_DURATION)),
        };
        if retry
            .delays
            .as_ref()
            .is_some_and(|delays| delays.len() > MANY)
        {
            let issue = Issue::error(
                "out of range",
                format!("there are more than {MANY} delays"),
                "Shorten the list.",
            );
            r.issue("delays", issue);
            return Self {
                delays: None,
                ..retry
            };
        }
        for key in ["initial_delay", "factor"] {
            if retry.delays.is_some() && r.has(key) {
                let reason = "delays are given one by one here, so nothing is computed from it";
                r.issue(
                    key,
                    Issue::warning(
                        format!("{key} has no effect"),
                        reason,
                        format!("Remove {key} or delays."),
                    ),
                );
            }
        }
        if let (Some(initial), Some(max)) = (retry.initial_delay, retry.max_delay)
            && initial > max
        {
            let reason =
                "initial_delay is longer than max_delay, so every delay is cut to max_delay";
            r.issue(
                "initial_delay",
                Issue::warning(
                    "a delay beyond the cap",
                    reason,
                    "Make it shorter, or raise max_delay.",
                ),
            );
        }
        retry
    }
}

impl Retries {
    pub(super) fn read(root: &mut Reader<'_, '_>) -> Self {
        let mut retries = Self::default();
        let tables = root.sections("retry", |name, r| {
            let retry = Retry::read(r);
            if name != "default" {
                let kind = Kind::new(name);
                warn_of_unknown_kind(name)
                    .into_iter()
                    .chain(warn_of_no_effect(&kind, &retry))
                    .for_each(|issue| r.issue_here(issue));
            }
            retry
        });
        for (name, retry) in tables {
            if name == "default" {
                retries.default = retry;
            } else {
                retries.kinds.insert(Kind::new(&name), retry);
            }
        }
        retries
    }
}

/// A table that shapes delays which never come.
fn warn_of_no_effect(kind: &Kind, retry: &Retry) -> Option<Issue> {
    let shapes_only = retry.max_retries.is_none() && retry.delays.is_none();
    let usual = RetryPolicies::default().of(kind).max_retries;
    (shapes_only && usual == 0 && *retry != Retry::default()).then(|| {
        Issue::warning(
            format!("[retry.{kind}] has no effect"),
            format!("{kind} is not retried unless the table says how often"),
            "Add max_retries, or remove the table.",
        )
    })
}

/// A custom kind is welcome; one that looks almost like a well-known one is probably a slip.
pub(super) fn warn_of_unknown_kind(name: &str) -> Option<Issue> {
    if Kind::WELL_KNOWN.iter().any(|kind| kind.as_str() == name) {
        return None;
    }
    let near = value::nearest(name, Kind::WELL_KNOWN.iter().map(Kind::as_str))?;
    let remedy = format!("Write {near:?}, unless you mean a kind of your own.");
    Some(Issue::warning(
        format!("{name:?} is no well-known kind"),
        format!("did you mean {near:?}?"),
        remedy,
    ))
}

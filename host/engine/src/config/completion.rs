//! `[completion]`: how models are called, and how their streams are passed on.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use super::listen::absolute;
use super::reader::{Issue, Reader};
use super::targets::Model;
use super::text;
use super::units::DurationText;
use super::value::{self, POSITIVE};

/// The longest a stream can be held back: a client should not wait for what is there.
const LONGEST_HOLD: Duration = Duration::from_secs(30);

/// The most tokens that can be held back: more would be a whole answer.
const MOST_TOKENS: i64 = 10_000;

/// `[completion]`: calls of models.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Completion {
    /// The path below which the OpenAI-compatible API is served. Default: `/v1`.
    pub path: String,
    /// The time a whole call may take: attempts, waits, fallbacks and decisions; of a streamed answer,
    /// the time until it begins. Default: 5 m.
    #[serde(with = "DurationText")]
    #[schemars(with = "DurationText")]
    pub deadline: Duration,
    /// The time a model may be silent when the answer is not streamed. Default: 2 m.
    #[serde(with = "DurationText")]
    #[schemars(with = "DurationText")]
    pub answer: Duration,
    /// The time a model may take to the first token of a streamed answer. Default: 30 s.
    #[serde(with = "DurationText")]
    #[schemars(with = "DurationText")]
    pub first_token: Duration,
    /// The time that may pass between two tokens. Default: 30 s.
    #[serde(with = "DurationText")]
    #[schemars(with = "DurationText")]
    pub idle: Duration,
    /// How many tokens are held back before a streamed answer begins, 0 to 10000: what fails
    /// before, another model answers unseen. Default: 0, which passes the first token on at once.
    #[schemars(range(min = 0, max = MOST_TOKENS))]
    pub hold_back_tokens: u32,
    /// How long after its first token a streamed answer is held back, at most 30 s; it ends with `hold_back_tokens`
    /// where that comes first. Default: 0.
    #[serde(with = "DurationText")]
    #[schemars(with = "DurationText")]
    pub hold_back: Duration,
    /// Whether a stream that breaks off is continued by another model, one with `prefill = true`.
    /// Default: false, which ends it with an error the client can see.
    pub continuation: bool,
    /// The group of models that answers `sampling/createMessage` of servers for clients that cannot sample
    /// themselves. Servers then spend the models' tokens. Default: none, which refuses them.
    pub sampling: Option<String>,
}

impl Default for Completion {
    fn default() -> Self {
        Self {
            path: "/v1".into(),
            deadline: Duration::from_secs(300),
            answer: Duration::from_secs(120),
            first_token: Duration::from_secs(30),
            idle: Duration::from_secs(30),
            hold_back_tokens: 0,
            hold_back: Duration::ZERO,
            continuation: false,
            sampling: None,
        }
    }
}

impl Completion {
    /// `models` are those the configuration has.
    pub(super) fn read(r: &mut Reader<'_, '_>, models: &[Model]) -> Self {
        let base = Self::default();
        let path = r
            .read("path", value::text)
            .and_then(|path| absolute(r, path));
        let mut positive = |key, default| r.read(key, value::duration(POSITIVE)).unwrap_or(default);
        let deadline = positive("deadline", base.deadline);
        let answer = positive("answer", base.answer);
        let first_token = positive("first_token", base.first_token);
        let idle = positive("idle", base.idle);
        let completion = Self {
            path: path.unwrap_or(base.path),
            deadline,
            answer,
            first_token,
            idle,
            hold_back_tokens: r
                .read("hold_back_tokens", value::integer(0..=MOST_TOKENS))
                .unwrap_or(base.hold_back_tokens),
            hold_back: r
                .read("hold_back", value::duration(Duration::ZERO..=LONGEST_HOLD))
                .unwrap_or(base.hold_back),
            continuation: r
                .read("continuation", value::boolean)
                .unwrap_or(base.continuation),
            sampling: r
                .read("sampling", text::name)
                .filter(|group| known_group(r, group, models)),
        };
        for (key, limit) in [("answer", answer), ("first_token", first_token)] {
            if limit > deadline {
                let key = if r.has(key) { key } else { "deadline" };
                let reason = "the call ends before its first attempt may time out, so no fallback is ever tried";
                let remedy = "Make answer and first_token shorter than deadline.";
                r.issue(key, Issue::warning("attempt beyond call", reason, remedy));
                break;
            }
        }
        completion
    }
}

/// Whether there are models in a group; where not, that is noted.
fn known_group(r: &mut Reader<'_, '_>, group: &str, models: &[Model]) -> bool {
    let known = models.iter().map(|model| model.group.as_str());
    if known.clone().any(|known| known == group) {
        return true;
    }
    let reason = format!("no [[model]] is in a group {group:?}");
    let remedy = match value::nearest(group, known) {
        Some(near) => format!("Did you mean {near:?}?"),
        None => "Name the group of a [[model]].".to_owned(),
    };
    r.issue("sampling", Issue::error("unknown group", reason, remedy));
    false
}

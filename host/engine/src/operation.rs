//! What an operator says of operations: whether they may be repeated, how long they may take, how
//! much they matter.
//!
//! A server's own word on repeat safety counts only where the server is trusted; this is where an
//! operator who knows better says so.

use std::time::Duration;

use globset::{Glob, GlobMatcher};

use crate::call::{Call, RepeatSafety};
use crate::hedge::Hedge;

/// What holds for the operations whose names match.
#[derive(Debug, Clone)]
pub struct OperationRule {
    matches: GlobMatcher,
    /// Whether they may be sent again when it is not known if they were carried out.
    pub repeat: Option<RepeatSafety>,
    /// The time a whole call may take.
    pub deadline: Option<Duration>,
    /// The time one attempt may be silent.
    pub attempt_timeout: Option<Duration>,
    /// How much callers care, 0 to 100.
    pub importance: Option<u8>,
    /// When a second target is asked beside a slow one, for read-only operations.
    pub hedge: Option<Hedge>,
}

impl OperationRule {
    /// A rule for the operations that match a glob such as `search_*`; it says nothing yet.
    ///
    /// # Errors
    /// If the pattern is no glob.
    pub fn new(pattern: &str) -> Result<Self, globset::Error> {
        Ok(Self {
            matches: Glob::new(pattern)?.compile_matcher(),
            repeat: None,
            deadline: None,
            attempt_timeout: None,
            importance: None,
            hedge: None,
        })
    }
}

/// The rules, in order: the first that matches counts.
#[derive(Debug, Clone, Default)]
pub struct OperationRules(Vec<OperationRule>);

impl OperationRules {
    /// The rule of an operation.
    pub fn of(&self, operation: &str) -> Option<&OperationRule> {
        self.0.iter().find(|rule| rule.matches.is_match(operation))
    }

    /// What the rules say of an operation's repeat safety.
    pub fn repeat_safety(&self, operation: &str) -> Option<RepeatSafety> {
        self.of(operation)?.repeat
    }

    /// Puts what the rules say of its operation into a call.
    pub fn apply(&self, mut call: Call) -> Call {
        let Some(rule) = self.of(&call.facts.operation) else {
            return call;
        };
        call.deadline = call.deadline.or(rule.deadline);
        call.attempt_timeout = call.attempt_timeout.or(rule.attempt_timeout);
        call.safety = call.safety.or(rule.repeat);
        call.hedge = call.hedge.or(rule.hedge);
        if let Some(importance) = rule.importance {
            call = call.importance(importance);
        }
        call
    }
}

impl FromIterator<OperationRule> for OperationRules {
    fn from_iter<I: IntoIterator<Item = OperationRule>>(rules: I) -> Self {
        Self(rules.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_matches_counts() {
        let mut reads = OperationRule::new("get_*").unwrap();
        reads.repeat = Some(RepeatSafety::ReadOnly);
        reads.importance = Some(90);
        let mut all = OperationRule::new("*").unwrap();
        all.deadline = Some(Duration::from_secs(5));
        let rules: OperationRules = [reads, all].into_iter().collect();
        assert_eq!(
            rules.repeat_safety("get_user"),
            Some(RepeatSafety::ReadOnly)
        );
        assert_eq!(rules.repeat_safety("put_user"), None);
        let call = rules.apply(Call::new("g", "get_user"));
        assert_eq!((call.facts.importance, call.deadline), (90, None));
        assert_eq!(
            rules.apply(Call::new("g", "x")).deadline,
            Some(Duration::from_secs(5))
        );
    }

    #[test]
    fn what_the_call_says_itself_goes_first() {
        let mut rule = OperationRule::new("*").unwrap();
        rule.repeat = Some(RepeatSafety::ReadOnly);
        let rules: OperationRules = [rule].into_iter().collect();
        let call = rules.apply(Call::new("g", "x").repeat_safety(RepeatSafety::Unsafe));
        assert_eq!(call.safety, Some(RepeatSafety::Unsafe));
    }
}

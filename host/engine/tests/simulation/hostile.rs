//! Strategies: sensible ones, senseless ones, and ones that want what the guard must refuse.

use std::time::Duration;

use backstop::strategy::{
    Action, AnswerData, Decision, Entry, OnFault, Situation, Strategy, StrategyInfo,
};
use tokio::time::Instant;

use super::Chance;
use super::world::{ARGUMENTS, OPERATIONS, World};

/// What a strategy's panic says.
pub const BUG: &str = "a bug in a strategy";

/// What a strategy is like.
#[derive(Debug, Clone, Copy)]
enum Habit {
    /// Any action, any delay, any target.
    Senseless,
    /// Retries as the policy says, then switches, then gives data.
    Sensible,
    /// Sends the same again, at once, whatever has happened.
    Stubborn,
    /// Names the target that was just left, or one that was asked already.
    Returning,
    /// Goes round in a circle of operations and of ways to write the same arguments.
    Circling,
    /// Wants waits that no clock can hold.
    Sleepy,
    /// Switches for ever.
    Restless,
}

struct Simulated {
    name: String,
    habit: Habit,
    priority: i32,
    chance: Chance,
    world: World,
}

/// A random one.
pub fn strategy(chance: &Chance, name: String, world: &World) -> Entry {
    use Habit::*;
    let habits = [
        Senseless, Sensible, Sensible, Stubborn, Returning, Circling, Sleepy, Restless,
    ];
    let faults = [
        OnFault::Skip,
        OnFault::Skip,
        OnFault::Decline,
        OnFault::Fail,
    ];
    let strategy = Simulated {
        name,
        habit: *chance.one_of(&habits),
        priority: chance.below(100) as i32,
        chance: chance.fork(),
        world: world.clone(),
    };
    let entry = Entry::native(strategy).unwrap();
    entry.with_on_fault(*chance.one_of(&faults))
}

impl Strategy for Simulated {
    fn info(&self) -> StrategyInfo {
        StrategyInfo::new(self.name.clone(), "test").with_priority(self.priority)
    }

    fn condition(&self, situation: &Situation) -> bool {
        self.holds(situation);
        !self.chance.one_in(6)
    }

    fn action(&self, situation: &Situation) -> Decision {
        assert!(!self.chance.one_in(50), "{BUG}");
        self.wanted(situation).into()
    }
}

impl Simulated {
    /// What a strategy is told must be true.
    fn holds(&self, situation: &Situation) {
        let left = situation.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || situation.time_left() > left {
            self.world
                .broken("a strategy was asked without the time that is left");
        }
        if situation.next_delay.is_some_and(|delay| delay >= left) {
            self.world
                .broken("the policy prescribes a wait past the deadline");
        }
        if situation.fallbacks as usize > situation.attempts.len() {
            self.world
                .broken("a strategy was told of fallbacks that were not made");
        }
    }

    fn any_target(&self, situation: &Situation) -> Option<String> {
        let targets = situation.surroundings.targets();
        match self.chance.below(5) {
            0 => None,
            1 => Some("nowhere".to_owned()),
            2 => situation.target.as_deref().map(str::to_owned),
            // Perhaps one of another group.
            3 => Some(format!("t{}", self.chance.below(6))),
            _ if targets.is_empty() => None,
            _ => Some(self.chance.one_of(&targets).name.to_string()),
        }
    }

    fn switch(target: Option<String>) -> Action {
        Action::SwitchTarget {
            target,
            target_kind: None,
        }
    }

    fn wanted(&self, situation: &Situation) -> Action {
        let chance = &self.chance;
        match self.habit {
            Habit::Senseless => self.anything(situation),
            Habit::Sensible if situation.next_delay.is_some() => Action::Retry { delay: None },
            Habit::Sensible if situation.surroundings.best_target(None).is_some() => {
                Self::switch(None)
            }
            Habit::Sensible => Action::Answer(AnswerData::LastKnownGood),
            Habit::Stubborn => Action::Retry {
                delay: Some(Duration::ZERO),
            },
            Habit::Returning => {
                let asked = situation.attempts.first();
                let first = asked.map(|attempt| attempt.target.to_string());
                let present = situation.target.as_deref().map(str::to_owned);
                Self::switch(if chance.one_in(2) { present } else { first })
            }
            Habit::Circling => Action::CallOperation {
                operation: (*chance.one_of(&OPERATIONS)).into(),
                arguments: Some((*chance.one_of(&ARGUMENTS)).into()),
                target: situation.target.as_deref().map(str::to_owned),
            },
            Habit::Sleepy => Action::Retry {
                delay: Some(
                    *chance.one_of(&[
                        Duration::MAX,
                        situation.time_left(),
                        situation
                            .time_left()
                            .saturating_sub(Duration::from_millis(1)),
                    ]),
                ),
            },
            Habit::Restless => Self::switch(None),
        }
    }

    fn anything(&self, situation: &Situation) -> Action {
        let chance = &self.chance;
        match chance.below(10) {
            0..=2 => Action::Retry {
                delay: *chance.one_of(&[
                    None,
                    Some(Duration::ZERO),
                    Some(chance.millis(5000)),
                    Some(Duration::MAX),
                ]),
            },
            3..=5 => Action::SwitchTarget {
                target: self.any_target(situation),
                target_kind: chance
                    .one_of(&[None, None, Some("model"), Some("service"), Some("x")])
                    .map(str::to_owned),
            },
            6 => Action::CallOperation {
                operation: (*chance.one_of(&OPERATIONS)).into(),
                arguments: chance
                    .one_in(2)
                    .then(|| (*chance.one_of(&ARGUMENTS)).to_owned()),
                target: self.any_target(situation),
            },
            7 if chance.one_in(2) => Action::Answer(AnswerData::LastKnownGood),
            7 => Action::Answer(AnswerData::Static("[]".into())),
            8 if chance.one_in(4) => Action::Fail { message: None },
            8 => Action::Custom {
                name: "x.y".into(),
                payload: "{}".into(),
            },
            _ => Action::Decline,
        }
    }
}

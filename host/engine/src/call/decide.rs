//! Asking the strategies, and what the guard says to what they propose.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tracing::Instrument as _;

use super::recover::{Next, Plan, Recovery};
use super::surroundings::CallSurroundings;
use super::{AttemptKind, Degraded, Ending, Step, Verdict};
use crate::canonical::canonical;
use crate::event::EventKind;
use crate::exchange::{Exchange, targets_of};
use crate::failure::Failure;
use crate::guard::Refusal;
use crate::registry::{PickRequest, Target};
use crate::retry::RetryContext;
use crate::strategy::{
    Action, ActionKind, AnswerData, Decision, Entry, OnFault, Situation, StrategyFault,
};
use crate::trace;

/// A strategy's answer, on its way.
type Deciding<'a> =
    Pin<Box<dyn Future<Output = Result<Option<Decision>, StrategyFault>> + Send + 'a>>;

impl<X: Exchange> Recovery<'_, X> {
    /// Asks the strategies in order until the guard allows what one proposes.
    pub(super) async fn decide(&mut self, failure: &Arc<Failure>) -> Plan<X::Answer> {
        let strategies = self.in_force.strategies.active.clone();
        let mut situation = None;
        let request = self.redirected.as_ref().unwrap_or(self.original);
        self.unfit = self
            .exchange
            .unfit(request, &self.group, &self.trouble.attempts);
        for strategy in strategies.iter() {
            if Instant::now() >= self.timing.deadline {
                break;
            }
            // Built for the first strategy that wants to know.
            let situation = situation.get_or_insert_with(|| self.situation(failure));
            if !strategy.is_interested(situation) {
                continue;
            }
            let asked = Instant::now();
            let span = trace::decision(strategy);
            // The future of a component is deep: its type ends here, or the compiler would give up on the calls of
            // some embedders.
            let decided: Deciding<'_> = Box::pin(strategy.decide(situation));
            let decided = decided.instrument(span.clone());
            let decided = timeout_at(self.timing.deadline, decided).await;
            if let Ok(decided) = &decided {
                trace::decided(&span, decided);
            }
            // Where the condition says no, nothing else was asked.
            let phase = match &decided {
                Ok(Ok(None)) => "condition",
                _ => "decision",
            };
            let meter = self.engine.shared.meter;
            meter.decided(strategy.name(), phase, asked.elapsed());
            let decision = match decided {
                Ok(Ok(Some(decision))) if decision.action != Action::Decline => decision,
                Ok(Ok(_)) => {
                    self.step(strategy, Verdict::Declined);
                    continue;
                }
                Ok(Err(fault)) => {
                    self.faulted(strategy, &fault);
                    match strategy.on_fault() {
                        OnFault::Skip | OnFault::Decline => continue,
                        OnFault::Fail => {
                            let message = format!("strategy {} {fault}", strategy.name());
                            return Plan::End {
                                ending: Ending::FailedFast,
                                message: Some(message),
                            };
                        }
                    }
                }
                Err(_) => break,
            };
            let (action, reason) = (decision.action.kind(), decision.reason);
            match self.review(decision.action, situation, strategy, &reason) {
                Ok(plan) => {
                    self.step(strategy, Verdict::Taken { action, reason });
                    return plan;
                }
                Err(refusal) => {
                    let refusal = refusal.to_string();
                    self.engine.shared.emit(|| EventKind::ActionRefused {
                        call: self.facts.id,
                        strategy: strategy.name().clone(),
                        action,
                        reason: reason.clone(),
                        refusal: refusal.clone(),
                    });
                    self.step(
                        strategy,
                        Verdict::Refused {
                            action,
                            reason,
                            refusal,
                        },
                    );
                }
            }
        }
        Plan::End {
            ending: self.exhausted(),
            message: None,
        }
    }

    fn step(&mut self, strategy: &Entry, verdict: Verdict) {
        self.trouble.steps.push(Step {
            after_attempt: self.ledger.attempts,
            strategy: strategy.name().clone(),
            level: strategy.level().clone(),
            verdict,
        });
    }

    fn faulted(&mut self, strategy: &Entry, fault: &StrategyFault) {
        self.engine.shared.emit(|| EventKind::StrategyFaulted {
            call: self.facts.id,
            strategy: strategy.name().clone(),
            fault: fault.label(),
            message: fault.to_string(),
        });
        if let Some(faults) = strategy.take_quarantine() {
            self.engine.shared.emit(|| EventKind::StrategyQuarantined {
                strategy: strategy.name().clone(),
                faults,
            });
        }
        if strategy.on_fault() != OnFault::Decline {
            self.step(
                strategy,
                Verdict::Faulted {
                    fault: fault.to_string(),
                },
            );
        } else {
            self.step(strategy, Verdict::Declined);
        }
    }

    /// The failure and its circumstances, as a strategy sees them.
    fn situation(&self, failure: &Arc<Failure>) -> Situation {
        let shared = &self.engine.shared;
        let time_left = self
            .timing
            .deadline
            .saturating_duration_since(Instant::now());
        let context = RetryContext {
            attempts: self.ledger.attempts,
            importance: self.facts.importance,
            safety: self.safety,
            repeatable: self.is_repeatable(),
            ..RetryContext::new(failure, self.ledger.retries, time_left)
        };
        let next_delay = self
            .in_force
            .retry
            .next_delay(&context, self.previous_delay, &mut || (shared.random)());
        let present = self.present.as_ref().map(|target| target.name.clone());
        Situation {
            failure: failure.clone(),
            call: self.facts.clone(),
            operation: self.operation.clone(),
            arguments: self.arguments.clone(),
            target: present.clone(),
            attempts: self.trouble.attempts.as_slice().into(),
            retries: self.ledger.retries,
            fallbacks: self.ledger.fallbacks,
            deadline: self.timing.deadline,
            repeatable: self.is_repeatable(),
            next_delay,
            surroundings: Arc::new(CallSurroundings {
                shared: shared.clone(),
                group: self.group.clone(),
                call: self.facts.clone(),
                arguments: self.exchange.arguments(self.original),
                present,
                asked: {
                    let visited = &self.ledger.visited;
                    let mut asked = visited.targets_of(&self.operation, &self.canonical);
                    asked.extend_from_slice(&self.unfit);
                    asked
                },
                unsuited: self.exchange.unsuited(&self.group, &self.operation),
                known: OnceLock::new(),
            }),
        }
    }

    /// The guard: may this be done? If so, the books are changed for it.
    fn review(
        &mut self,
        action: Action,
        situation: &Situation,
        strategy: &Entry,
        reason: &str,
    ) -> Result<Plan<X::Answer>, Refusal> {
        match action {
            Action::Retry { delay } => self.review_retry(delay, situation, strategy, reason),
            Action::SwitchTarget {
                target,
                target_kind,
            } => self.review_switch(
                target.as_deref(),
                target_kind.as_deref(),
                situation,
                strategy,
                reason,
            ),
            Action::CallOperation {
                operation,
                arguments,
                target,
            } => self.review_operation(
                &operation,
                arguments.as_deref(),
                target.as_deref(),
                situation,
                strategy,
                reason,
            ),
            Action::Answer(data) => self.review_answer(&data, situation, strategy, reason),
            Action::Fail { message } => Ok(Plan::End {
                ending: Ending::FailedFast,
                message,
            }),
            Action::Decline => Err(Refusal::Unsupported("declining is no action".into())),
            Action::Custom { name, .. } => Err(Refusal::UnknownAction(name)),
        }
    }

    fn review_retry(
        &mut self,
        delay: Option<Duration>,
        situation: &Situation,
        strategy: &Entry,
        reason: &str,
    ) -> Result<Plan<X::Answer>, Refusal> {
        let failure = &situation.failure;
        // A delay of the retry policy says that its condition wants a retry all the same.
        if !failure.retryable && situation.next_delay.is_none() {
            return Err(Refusal::NotRetryable);
        }
        if !self.is_repeatable() {
            return Err(Refusal::NotRepeatable);
        }
        self.ledger.check_attempt()?;
        if failure.silent
            && self.pin.is_none()
            && situation.surroundings.best_target(None).is_some()
        {
            return Err(Refusal::Silent);
        }
        let delay = delay
            .or(situation.next_delay)
            .ok_or(Refusal::RetriesUsedUp)?;
        let wait = delay.max(failure.retry_after.unwrap_or_default());
        let left = situation.time_left();
        if wait >= left {
            return Err(Refusal::Deadline { wait, left });
        }
        if let Some(present) = &self.present {
            self.check_admitted(present)?;
        }
        self.withdraw()?;
        self.ledger.retries = self.ledger.retries.saturating_add(1);
        self.previous_delay = Some(wait);
        let target = self.present.as_ref().map(|target| target.name.clone());
        self.engine.shared.emit(|| EventKind::RetryScheduled {
            call: self.facts.id,
            strategy: strategy.name().clone(),
            target: target.clone().unwrap_or_else(|| self.group.clone()),
            delay: wait,
            reason: reason.to_owned(),
        });
        Ok(Plan::Attempt(Next {
            kind: AttemptKind::Retry,
            target,
            delay: wait,
        }))
    }

    fn review_switch(
        &mut self,
        target: Option<&str>,
        kind: Option<&str>,
        situation: &Situation,
        strategy: &Entry,
        reason: &str,
    ) -> Result<Plan<X::Answer>, Refusal> {
        self.check_may_move()?;
        let present = self
            .present
            .as_ref()
            .map(|present| present.spec.kind.as_str());
        let target = match target {
            Some(name) => self.named_target(name)?,
            None => {
                let name = situation
                    .surroundings
                    .best_target(kind.or(present))
                    .ok_or(Refusal::NoTarget)?;
                self.named_target(&name)?
            }
        };
        self.check_suited(&target, &self.operation)?;
        if self
            .ledger
            .visited
            .contains(&target.name, &self.operation, &self.canonical)
        {
            return Err(Refusal::Visited {
                target: target.name.clone(),
                operation: self.operation.clone(),
            });
        }
        if self.unfit.contains(&target.name) {
            return Err(Refusal::Unfit(target.name.clone()));
        }
        self.check_admitted(&target)?;
        self.withdraw()?;
        Ok(self.move_to(
            target,
            situation,
            strategy,
            ActionKind::SwitchTarget,
            reason,
        ))
    }

    fn review_operation(
        &mut self,
        operation: &str,
        arguments: Option<&str>,
        target: Option<&str>,
        situation: &Situation,
        strategy: &Entry,
        reason: &str,
    ) -> Result<Plan<X::Answer>, Refusal> {
        self.check_may_move()?;
        let request = self.redirected.as_ref().unwrap_or(self.original);
        let redirected = self
            .exchange
            .redirect(request, operation, arguments)
            .map_err(Refusal::Unsupported)?;
        let operation: Arc<str> = operation.into();
        let group = self
            .exchange
            .group_of(&operation)
            .unwrap_or_else(|| self.group.clone());
        let arguments = self.exchange.arguments(&redirected);
        let canonical = arguments.as_deref().map(canonical).unwrap_or_default();
        let target = match target {
            Some(name) => {
                let target = self.known_target(name)?;
                if target.spec.group != group {
                    return Err(Refusal::UnknownTarget(name.to_owned()));
                }
                if self.is_cooling(&situation.failure, &target) {
                    return Err(Refusal::NoTarget);
                }
                target
            }
            None => self.target_for(&group, &operation, &canonical, &situation.failure)?,
        };
        self.check_suited(&target, &operation)?;
        if self
            .ledger
            .visited
            .contains(&target.name, &operation, &canonical)
        {
            return Err(Refusal::Visited {
                target: target.name.clone(),
                operation,
            });
        }
        self.check_admitted(&target)?;
        self.withdraw()?;
        self.safety = self.exchange.repeat_safety(&operation);
        self.group = target.spec.group.clone();
        self.operation = operation;
        self.redirected = Some(redirected);
        self.arguments = arguments;
        self.canonical = canonical;
        Ok(self.move_to(
            target,
            situation,
            strategy,
            ActionKind::CallOperation,
            reason,
        ))
    }

    fn review_answer(
        &mut self,
        data: &AnswerData,
        situation: &Situation,
        strategy: &Entry,
        reason: &str,
    ) -> Result<Plan<X::Answer>, Refusal> {
        let (body, degraded) = match data {
            AnswerData::LastKnownGood => {
                let known = situation
                    .surroundings
                    .last_known_good()
                    .ok_or(Refusal::NothingKnown)?;
                (
                    known.body,
                    Degraded::Stale {
                        age: known.age,
                        target: known.target,
                    },
                )
            }
            AnswerData::Static(body) => (body.clone().into_bytes().into(), Degraded::Default),
        };
        let answer = self
            .exchange
            .compose(self.original, &body, &degraded)
            .map_err(Refusal::Unsupported)?;
        self.fallback_taken(strategy, ActionKind::Answer, situation, None, reason);
        Ok(Plan::Answer { answer, degraded })
    }

    fn check_may_move(&self) -> Result<(), Refusal> {
        if self.pin.is_some() {
            return Err(Refusal::Pinned);
        }
        if !self.is_repeatable() {
            return Err(Refusal::NotRepeatable);
        }
        self.ledger.check_fallback()
    }

    /// A target of any group.
    fn known_target(&self, name: &str) -> Result<Arc<Target>, Refusal> {
        self.engine
            .shared
            .registry
            .get(name)
            .ok_or_else(|| Refusal::UnknownTarget(name.to_owned()))
    }

    /// A target of the present group.
    fn named_target(&self, name: &str) -> Result<Arc<Target>, Refusal> {
        self.known_target(name)
            .ok()
            .filter(|target| target.spec.group == self.group)
            .ok_or_else(|| Refusal::UnknownTarget(name.to_owned()))
    }

    /// Whom to ask for another operation: the best target, and the one just left only if it is well.
    fn target_for(
        &self,
        group: &Arc<str>,
        operation: &str,
        canonical: &[u8],
        failure: &Failure,
    ) -> Result<Arc<Target>, Refusal> {
        let mut exclude = self.ledger.visited.targets_of(operation, canonical);
        if let Some(present) = &self.present
            && self.is_cooling(failure, present)
        {
            exclude.push(present.name.clone());
        }
        let unsuited = self.exchange.unsuited(group, operation);
        let request = PickRequest {
            exclude: &exclude,
            unsuited: targets_of(unsuited.as_ref()),
            ..PickRequest::default()
        };
        self.engine
            .shared
            .registry
            .peek_best(group, &request, Instant::now())
            .ok_or(Refusal::NoTarget)
    }

    /// Whether a target is the one that was just left, and not for another's sake.
    fn is_cooling(&self, failure: &Failure, target: &Arc<Target>) -> bool {
        let cooling = failure.ill_health || failure.retry_after.is_some();
        cooling
            && self
                .present
                .as_ref()
                .is_some_and(|present| present.name == target.name)
    }

    fn check_suited(&self, target: &Arc<Target>, operation: &Arc<str>) -> Result<(), Refusal> {
        let unsuited = self.exchange.unsuited(&target.spec.group, operation);
        match unsuited
            .as_ref()
            .and_then(|unsuited| unsuited.reason(&target.name))
        {
            None => Ok(()),
            Some(reason) => Err(Refusal::Unsuited {
                target: target.name.clone(),
                operation: operation.clone(),
                reason: reason.to_owned(),
            }),
        }
    }

    fn check_admitted(&self, target: &Arc<Target>) -> Result<(), Refusal> {
        if target.standing(Instant::now()).admitted {
            return Ok(());
        }
        Err(Refusal::NotAdmitted(target.name.clone()))
    }

    /// Takes one attempt out of the group's budget: the last check, since it costs something.
    fn withdraw(&self) -> Result<(), Refusal> {
        if self.budget.try_withdraw(Instant::now()) {
            return Ok(());
        }
        Err(Refusal::Budget(self.facts.group.clone()))
    }

    fn move_to(
        &mut self,
        target: Arc<Target>,
        situation: &Situation,
        strategy: &Entry,
        action: ActionKind,
        reason: &str,
    ) -> Plan<X::Answer> {
        self.ledger.fallbacks = self.ledger.fallbacks.saturating_add(1);
        self.ledger.retries = 0;
        self.previous_delay = None;
        self.fallback_taken(strategy, action, situation, Some(&target.name), reason);
        Plan::Attempt(Next {
            kind: AttemptKind::Fallback,
            target: Some(target.name.clone()),
            delay: Duration::ZERO,
        })
    }

    fn fallback_taken(
        &self,
        strategy: &Entry,
        action: ActionKind,
        situation: &Situation,
        to: Option<&Arc<str>>,
        reason: &str,
    ) {
        self.engine.shared.emit(|| EventKind::FallbackTaken {
            call: self.facts.id,
            strategy: strategy.name().clone(),
            level: strategy.level().clone(),
            action,
            kind: situation.failure.kind.clone(),
            from: situation.target.clone(),
            to: to.cloned(),
            operation: self.operation.clone(),
            reason: reason.to_owned(),
        });
    }
}

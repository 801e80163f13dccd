//! Targets that cannot serve a request: nobody gets them asked.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use backstop::Call;
use backstop::call::{Ending, Verdict};
use backstop::strategy::Action;
use common::{Reply, Script, engine, refused, request, rule, switch_always};

fn script() -> Script {
    Script {
        unfit: vec!["a", "c"],
        ..Script::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_starts_with_the_best_target_that_can_serve_it() {
    let script = script().on("b", [Reply::Good("served")]);
    let outcome = engine(&["a", "b", "c"], vec![switch_always(1)])
        .call(&script, Call::new("g", "op"), &request("op"))
        .await
        .unwrap();
    assert_eq!(outcome.served_by.as_deref(), Some("b"));
    assert_eq!(script.targets_sent(), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn a_strategy_cannot_have_one_asked_even_by_name() {
    let script = script().on("b", [Reply::Bad(refused())]);
    let by_name = rule("by-name", 2, |_| {
        Some(Action::SwitchTarget {
            target: Some("c".into()),
            target_kind: None,
        })
    });
    let failed = engine(&["a", "b", "c"], vec![by_name, switch_always(1)])
        .call(&script, Call::new("g", "op"), &request("op"))
        .await
        .unwrap_err();
    assert_eq!(failed.error.ending, Ending::Exhausted);
    assert_eq!(script.targets_sent(), ["b"]);
    let refusals: Vec<&str> = failed
        .error
        .trouble
        .steps
        .iter()
        .filter_map(|step| match &step.verdict {
            Verdict::Refused { refusal, .. } => Some(refusal.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(
        refusals,
        [
            "\"c\" cannot serve this request",
            "no other target that can be asked is left"
        ]
    );
}

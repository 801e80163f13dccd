//! The state of strategies, from the configuration to the folder it is kept in: it survives what ends
//! a strategy, and belongs to one.

use std::path::Path;

use backstop::strategy::Situation;
use backstop::strategy::component::{ComponentStrategy, StateStore};
use backstop::{Failure, Kind};
use backstop_tests::engines::{Started, services, start_in};
use backstop_tests::plugins::{fixture, patched};

/// A strategy that adds 41 to a number in its state each time it decides, and says the sum.
fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    for folder in ["plugins", "state", "granted"] {
        std::fs::create_dir(home.path().join(folder)).unwrap();
    }
    std::fs::write(home.path().join("plugins/witness.wasm"), fixture("witness")).unwrap();
    home
}

const WITNESS: &str = "[[strategy]]\nplugin = \"witness\"\nconfig = { action = \"retry\" }\ngrants = { state = true, folder = \"granted\" }\n";

fn text(more: &str) -> String {
    format!(
        "plugins = \"plugins\"\nstock = false\n{more}\n{}{WITNESS}",
        services(&["a"])
    )
}

async fn start(home: &Path, text: &str) -> Started {
    let started = start_in(home, text).await;
    assert_eq!(started.diagnostics, []);
    started
}

fn component<'a>(started: &'a Started, name: &str) -> impl AsRef<ComponentStrategy> + use<'a> {
    struct Held(std::sync::Arc<backstop::strategy::Entry>);
    impl AsRef<ComponentStrategy> for Held {
        fn as_ref(&self) -> &ComponentStrategy {
            self.0.as_component().unwrap()
        }
    }
    Held(started.engine.strategies().get(name).unwrap())
}

/// What the strategy's sum is, after one more decision.
async fn sum(started: &Started, name: &str) -> i64 {
    let strategy = component(started, name);
    let situation = Situation::of(Failure::new(Kind::TIMEOUT_ERROR, "no answer"));
    let decision = strategy.as_ref().decide(&situation).await.unwrap().unwrap();
    let mut lines = decision.reason.lines();
    let line = lines
        .find_map(|line| line.strip_prefix("increment Ok("))
        .unwrap();
    line.trim_end_matches(')').parse().unwrap()
}

fn is_kept(started: &Started, name: &str) -> bool {
    component(started, name).as_ref().inspection().state_is_kept
}

#[tokio::test]
async fn state_survives_a_new_version_of_the_plugin_and_a_restart_of_the_program() {
    let home = home();
    let text = text("state = \"state\"");
    {
        let started = start(home.path(), &text).await;
        assert!(is_kept(&started, "witness"));
        assert_eq!(sum(&started, "witness").await, 41);
        let other = patched(&fixture("witness"), "Says what", "Told what");
        std::fs::write(home.path().join("plugins/witness.wasm"), other).unwrap();
        let changes = started.set.refresh().await;
        assert_eq!(changes.events.len(), 1, "{changes:?}");
        assert_eq!(sum(&started, "witness").await, 82);
        assert!(started.set.keep_state().await);
    }
    let started = start(home.path(), &text).await;
    assert_eq!(sum(&started, "witness").await, 123);
}

#[tokio::test]
async fn state_for_which_no_folder_is_named_ends_with_its_strategy() {
    let home = home();
    let text = text("");
    let started = start(home.path(), &text).await;
    assert!(!is_kept(&started, "witness"));
    assert_eq!(sum(&started, "witness").await, 41);
    assert_eq!(sum(&started, "witness").await, 82);
    assert!(started.set.keep_state().await, "there is nothing to keep");
    drop(started);
    let started = start(home.path(), &text).await;
    assert_eq!(sum(&started, "witness").await, 41);
    let files = std::fs::read_dir(home.path().join("state")).unwrap();
    assert_eq!(files.count(), 0);
}

#[tokio::test]
async fn each_use_of_a_plugin_has_a_state_of_its_own() {
    let home = home();
    let text = format!(
        "{}{}name = \"second\"\n",
        text("state = \"state\""),
        WITNESS
    );
    for round in 1..=2 {
        let started = start(home.path(), &text).await;
        assert_eq!(sum(&started, "witness").await, round * 41);
        assert_eq!(sum(&started, "second").await, round * 41);
        assert!(started.set.keep_state().await);
    }
}

#[tokio::test]
async fn a_folder_that_is_in_use_is_said_and_state_is_kept_as_soon_as_it_is_free() {
    let home = home();
    let other = StateStore::open(&home.path().join("state")).unwrap();
    let started = start_in(home.path(), &text("state = \"state\"")).await;
    let said: Vec<_> = started
        .diagnostics
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].contains("state.redb is in use by another program"),
        "{said:?}"
    );
    assert!(!is_kept(&started, "witness"));
    assert_eq!(
        sum(&started, "witness").await,
        41,
        "it decides all the same"
    );
    drop(other);
    let _ = started.set.refresh().await;
    assert_eq!(started.set.diagnostics().await, []);
    assert!(is_kept(&started, "witness"));
}

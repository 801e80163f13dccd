//! A component put into the plugin folder takes part in the next decision: that is the product's
//! promise to whoever writes a strategy.

use std::path::Path;

use backstop::call::{Call, RepeatSafety};
use backstop::{Kind, Outcome};
use backstop_tests::engines::{Started, services, start_in, steps_of, taken};
use backstop_tests::plugins::fixture;
use backstop_tests::script::{Request, Script, bad, good};

/// A folder with an empty plugin folder in it.
fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("plugins")).unwrap();
    home
}

fn drop_in(home: &Path, name: &str) {
    let file = home.join("plugins").join(name);
    std::fs::write(file, fixture("prefer-named")).unwrap();
}

fn text(more: &str) -> String {
    format!(
        "plugins = \"plugins\"\n{}{more}",
        services(&["a", "b", "c"])
    )
}

/// A call whose best target, `a`, refuses the connection.
async fn save(started: &Started) -> Outcome<String> {
    let script = Script::default()
        .on("a", bad(Kind::CONNECTION_ERROR))
        .on("b", good("b's"))
        .on("c", good("c's"));
    let call = Call::new("g", "search").repeat_safety(RepeatSafety::ReadOnly);
    let request = Request::new("search", "{}");
    started.engine.call(&script, call, &request).await.unwrap()
}

fn served_by(outcome: &Outcome<String>) -> &str {
    outcome.served_by.as_deref().unwrap()
}

const PREFER_C: &str = "[[strategy]]\nplugin = \"prefer-named\"\nconfig = { target = \"c\" }\n";

#[tokio::test]
async fn a_component_dropped_into_the_folder_changes_the_decision() {
    let home = home();
    let before = start_in(home.path(), &text(PREFER_C)).await;
    // The file is not there yet: one plain word about it, and everything else works.
    assert_eq!(before.diagnostics.len(), 1, "{:#?}", before.diagnostics);
    let said = before.diagnostics[0].to_string();
    assert!(
        said.contains("prefer-named.wasm") && said.contains("plugins"),
        "{said}"
    );
    assert_eq!(before.strategies().len(), 6);
    let outcome = save(&before).await;
    assert_eq!(served_by(&outcome), "b");
    assert_eq!(outcome.attempts(), 5);

    drop_in(home.path(), "prefer-named.wasm");
    let after = start_in(home.path(), &text(PREFER_C)).await;
    assert!(after.diagnostics.is_empty(), "{:#?}", after.diagnostics);
    // Its own priority, 110, puts it before `retry`.
    assert_eq!(after.strategies()[..2], ["prefer-named", "retry"]);
    let outcome = save(&after).await;
    assert_eq!(served_by(&outcome), "c");
    assert_eq!(outcome.attempts(), 2);
    let steps = steps_of(&outcome);
    assert_eq!(taken(&steps), ["prefer-named"]);
    assert_eq!(steps[0].2, "c is preferred");

    std::fs::remove_file(home.path().join("plugins/prefer-named.wasm")).unwrap();
    let gone = start_in(home.path(), &text(PREFER_C)).await;
    assert_eq!(served_by(&save(&gone).await), "b");
}

#[tokio::test]
async fn one_component_is_used_twice_under_two_names_with_two_configurations() {
    let home = home();
    drop_in(home.path(), "prefer-named.wasm");
    let entry = |name: &str, target: &str, priority: i32| {
        format!(
            "[[strategy]]\nplugin = \"prefer-named\"\nname = {name:?}\npriority = {priority}\nconfig = {{ target = {target:?} }}\n"
        )
    };
    for (b, c, first, target) in [(300, 200, "to-b", "b"), (200, 300, "to-c", "c")] {
        let both = entry("to-b", "b", b) + &entry("to-c", "c", c);
        let started = start_in(home.path(), &text(&both)).await;
        assert!(started.diagnostics.is_empty(), "{:#?}", started.diagnostics);
        let names = started.strategies();
        assert_eq!(names.len(), 8, "{names:?}");
        assert_eq!(names[0], first);
        // The plugin has entries, so it is not used a third time under its own name.
        assert!(!names.contains(&"prefer-named".to_owned()));
        assert_eq!(
            started.engine.strategies().get("to-c").unwrap().priority(),
            c
        );
        let outcome = save(&started).await;
        assert_eq!(served_by(&outcome), target);
        assert_eq!(taken(&steps_of(&outcome)), [first]);
    }
}

#[tokio::test]
async fn a_strategy_that_is_not_enabled_takes_no_part() {
    let home = home();
    drop_in(home.path(), "prefer-named.wasm");
    let off =
        format!("{PREFER_C}enabled = false\n[[strategy]]\nplugin = \"retry\"\nenabled = false\n");
    let started = start_in(home.path(), &text(&off)).await;
    assert!(started.diagnostics.is_empty(), "{:#?}", started.diagnostics);
    let names = started.strategies();
    assert_eq!(names.len(), 5, "{names:?}");
    let outcome = save(&started).await;
    assert_eq!(served_by(&outcome), "b");
    // Without `retry` there is one request to each.
    assert_eq!(outcome.attempts(), 2);
}

#[tokio::test]
async fn a_component_named_like_a_stock_strategy_replaces_it() {
    let home = home();
    drop_in(home.path(), "retry.wasm");
    let instead = PREFER_C.replace("prefer-named", "retry");
    let started = start_in(home.path(), &text(&instead)).await;
    assert!(started.diagnostics.is_empty(), "{:#?}", started.diagnostics);
    assert_eq!(started.strategies().len(), 6);
    let retry = started.engine.strategies().get("retry").unwrap();
    assert_eq!(retry.info().name, "prefer-named");
    let outcome = save(&started).await;
    assert_eq!((served_by(&outcome), outcome.attempts()), ("c", 2));
}

#[tokio::test]
async fn without_the_stock_only_the_folder_decides() {
    let home = home();
    drop_in(home.path(), "prefer-named.wasm");
    let text = format!("stock = false\n{}", text(PREFER_C));
    let started = start_in(home.path(), &text).await;
    assert_eq!(started.strategies(), ["prefer-named"]);
    assert_eq!(served_by(&save(&started).await), "c");
}

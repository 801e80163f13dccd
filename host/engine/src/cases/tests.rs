//! What a file of cases may say, and what comes of it.

use std::path::Path;

use super::*;
use crate::strategy::component::RuntimeOptions;

fn parse(text: &str) -> Result<Suite, SuiteError> {
    Suite::parse(text, Path::new("cases.toml"))
}

fn complaint(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[cfg(feature = "stock")]
async fn reports(plugin: &str, text: &str) -> Vec<Report> {
    use crate::strategy::component::stock;

    let (_, bytes) = stock().iter().find(|(name, _)| *name == plugin).unwrap();
    let runtime = Runtime::new(RuntimeOptions::default()).unwrap();
    // Generous: other tests run at the same time.
    let mut defaults = StrategyOptions::default();
    defaults.limits.decision_deadline_ms = 5000;
    defaults.limits.configure_deadline_ms = 5000;
    let bytes = Bytes::from_static(bytes);
    parse(text)
        .unwrap()
        .run(&runtime, plugin, &bytes, &defaults)
        .await
}

#[cfg(feature = "stock")]
fn shown(report: &Report) -> Vec<String> {
    report.differences.iter().map(ToString::to_string).collect()
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_the_case_and_the_key() {
    assert!(complaint("").contains("has no cases"));
    assert!(complaint("case = []").contains("has no cases"));
    assert!(complaint("= 1").contains("is not TOML"));
    assert!(complaint("other = 1\n[[case]]\nname = \"a\"").contains("unknown key `other`"));
    let in_case = |text: &str| complaint(&format!("[[case]]\nname = \"a\"\n{text}"));
    assert!(in_case("").contains("case \"a\": it expects nothing"));
    assert!(in_case("expect = {}").contains("it expects nothing"));
    let expecting = |text: &str| in_case(&format!("expect = {{ condition = true }}\n{text}"));
    assert!(expecting("fialure = {}").contains("unknown field `fialure`"));
    assert!(expecting("failure = { kid = \"x\" }").contains("unknown field `kid`"));
    let unit = expecting("next_delay = \"5\"");
    assert!(
        unit.contains("\"5\" is not a duration") && unit.contains("250ms"),
        "{unit}"
    );
    assert!(expecting("attempts = \"many\"").contains("a number of attempts, or a list"));
    assert!(expecting("limits = { memory = 1 }").contains("unknown field `memory`"));
    assert!(expecting("steps = []").contains("`steps` is not a list"));
    assert!(expecting("steps = [{ failure = 3 }]").contains("step 1: "));
    assert!(in_case("expect = { action = \"retri\" }").contains("the name of an action"));
    assert!(
        complaint("[[case]]\nexpect = { condition = true }").contains("case 1: it has no `name`")
    );
    let json = Suite::parse("{", Path::new("cases.json")).unwrap_err();
    assert!(json.to_string().contains("is not JSON"));
    let missing = Suite::load(Path::new("no/such.toml")).unwrap_err();
    assert!(missing.to_string().contains("no/such.toml"));
}

#[test]
fn the_present_target_and_the_tried_ones_follow_from_the_attempts() {
    let context: Context = serde_json::from_value(serde_json::json!({
        "call": { "operation": "find" },
        "attempts": [{ "target": "a" }, { "target": "b", "operation": "other" }, { "target": "c" }],
        "targets": [{ "name": "a" }, { "name": "b" }, { "name": "c" }, { "name": "d", "tried": true }],
    }))
    .unwrap();
    let (situation, frozen) = context.situation();
    assert_eq!(situation.target.as_deref(), Some("c"));
    let views = situation.surroundings.targets();
    let about: Vec<_> = views
        .iter()
        .map(|view| (view.tried, view.present))
        .collect();
    assert_eq!(
        about,
        [(true, false), (false, false), (true, true), (true, false)]
    );
    assert_eq!(
        situation.surroundings.best_target(None).as_deref(),
        Some("b")
    );
    assert_eq!(frozen.time_left, Duration::from_secs(60));
    assert_eq!(situation.attempts.len(), 3);
}

#[cfg(feature = "stock")]
#[tokio::test]
async fn a_case_is_laid_over_the_defaults_and_a_step_over_its_case() {
    let text = r#"
        [defaults]
        failure = { kind = "ConnectionError", message = "refused" }
        next_delay = "200ms"

        [[case]]
        name = "as the policy says"
        expect = { condition = true, action = { retry = {} } }

        [[case]]
        name = "a hint that does not fit"
        failure = { retry_after = "2m" }
        expect = { action = "decline" }

        [[case]]
        name = "in steps"
        steps = [
            { expect = { action = "retry" } },
            { time_left = "100ms", expect = { action = "decline" } },
            { repeatable = false, expect = { condition = false } },
        ]
    "#;
    for report in reports("retry", text).await {
        assert!(report.passed, "{}: {:?}", report.name, shown(&report));
    }
}

#[cfg(feature = "stock")]
#[tokio::test]
async fn a_difference_is_named_where_it_is() {
    let text = r#"
        [defaults]
        failure = { kind = "ConnectionError" }
        next_delay = "200ms"

        [[case]]
        name = "leaf"
        expect = { action = { retry = { delay = "300ms" } }, reason = "because" }

        [[case]]
        name = "another action"
        expect = { action = { switch_target = { target = "b" } } }

        [[case]]
        name = "by name"
        expect = { action = "fail" }

        [[case]]
        name = "condition"
        repeatable = false
        expect = { condition = true, action = "retry" }

        [[case]]
        name = "fault"
        expect = { fault = "trap" }

        [[case]]
        name = "refused though it was not to be"
        config = { no_such_key = 1 }
        expect = { condition = true }

        [[case]]
        name = "not refused though it was to be"
        expect = { refused = "anything" }

        [[case]]
        name = "log and state"
        steps = [{ expect = { log = ["hello"] } }, { expect = { state = { a = "1" } } }]
    "#;
    let reports = reports("retry", text).await;
    assert!(reports.iter().all(|report| !report.passed));
    let shown: Vec<String> = reports
        .iter()
        .map(|report| shown(report).join("; "))
        .collect();
    assert!(
        shown[0].contains(r#"action.retry.delay: expected "300ms", got nothing"#),
        "{}",
        shown[0]
    );
    assert!(shown[0].contains(r#"reason: expected "because", got "ConnectionError: "#));
    assert!(
        shown[1].contains(r#"action: expected {"switch_target":{"target":"b"}}, got {"retry":"#)
    );
    assert!(shown[2].contains(r#"action: expected "fail", got {"retry":"#));
    assert!(shown[3].contains("condition: expected true, got false"));
    assert!(shown[3].contains(r#"action: expected "retry", got nothing"#));
    assert!(shown[4].contains(r#"fault: expected "trap", got nothing"#));
    assert!(
        shown[5].contains("refused: expected nothing, got ") && shown[5].contains("no_such_key")
    );
    assert!(shown[6].contains(r#"refused: expected "anything", got nothing"#));
    assert!(
        shown[7].contains(r#"step 1, log: expected "hello", got "#),
        "{}",
        shown[7]
    );
    assert!(shown[7].contains(r#"step 2, state.a: expected "1", got nothing"#));
}

#[cfg(feature = "stock")]
#[tokio::test]
async fn a_strategy_is_not_asked_about_what_it_has_no_interest_in_and_that_can_be_expected() {
    let text = r#"
        [[case]]
        name = "not asked"
        failure = { kind = "vendor.Unheard" }
        expect = { asked = false }

        [[case]]
        name = "asked"
        failure = { kind = "ConnectionError" }
        expect = { asked = false }
    "#;
    // It names the kinds it can do something about.
    let reports = reports("data-fallback", text).await;
    let interested = |report: &Report| shown(report).join("");
    assert!(
        reports[0].passed || interested(&reports[0]).contains("asked: expected false, got true")
    );
    assert_eq!(shown(&reports[1]), ["asked: expected false, got true"]);
}

//! Bad plugins in a folder: each is one message that names plugin, place, reason and remedy, and
//! everything else loads and decides.

use std::path::Path;

use backstop::call::{Call, RepeatSafety};
use backstop::{Kind, Outcome};
use backstop_tests::engines::{Started, services, start_in};
use backstop_tests::plugins::{fixture, patched};
use backstop_tests::script::{Request, Script, bad, good};

const CORE_MODULE: &[u8] = b"\0asm\x01\0\0\0";
const STOCK: [&str; 6] = [
    "retry",
    "service-failover",
    "model-failover",
    "operation-fallback",
    "data-fallback",
    "fail-fast",
];

/// One mistake: the file it lies in, if it is one of a file, and what else the configuration says.
struct Mistake {
    file: Option<(&'static str, Vec<u8>)>,
    text: &'static str,
    /// What the one message must hold.
    says: &'static [&'static str],
    /// The strategies that load beside the stock and the good plugin.
    also: &'static [&'static str],
}

fn mistakes() -> Vec<(&'static str, Mistake)> {
    let file = |name, bytes: Vec<u8>| Some((name, bytes));
    let strategy = fixture("prefer-named");
    let misbehave = fixture("misbehave");
    vec![
        (
            "not wasm",
            Mistake {
                file: file("notes.wasm", b"# notes".to_vec()),
                text: "",
                says: &["notes", "not a WebAssembly file", "--target wasm32-wasip2"],
                also: &[],
            },
        ),
        (
            "a core module",
            Mistake {
                file: file("core.wasm", CORE_MODULE.to_vec()),
                text: "",
                says: &[
                    "core",
                    "a core WebAssembly module",
                    "wasm-tools component new",
                ],
                also: &[],
            },
        ),
        (
            "half a component",
            Mistake {
                file: file("half.wasm", strategy[..strategy.len() / 2].to_vec()),
                text: "",
                says: &["half", "damaged", "copy or build it again"],
                also: &[],
            },
        ),
        (
            "another world",
            Mistake {
                file: file(
                    "other.wasm",
                    patched(
                        &strategy,
                        "backstop:strategy/policy@",
                        "acmecorp:strategy/policy@",
                    ),
                ),
                text: "",
                says: &[
                    "other",
                    "`backstop:strategy/policy@0.1.0`",
                    "`acmecorp:strategy/policy@0.1.0`",
                    "build it for the world",
                ],
                also: &[],
            },
        ),
        (
            "a newer contract",
            Mistake {
                file: file("newer.wasm", patched(&strategy, "@0.1.0", "@0.9.0")),
                text: "",
                says: &["newer", "@0.9.0`", "@0.1.0`", "use a host that offers it"],
                also: &[],
            },
        ),
        (
            "a trap in configure",
            Mistake {
                file: file("trapper.wasm", misbehave.clone()),
                text: "[[strategy]]\nplugin = \"trapper\"\nconfig = { when = \"configure\", how = \"trap\" }\n",
                says: &[
                    "trapper",
                    "`configure` failed",
                    "trapped",
                    "change its `config`",
                ],
                also: &[],
            },
        ),
        (
            "a loop in configure",
            Mistake {
                file: file("looper.wasm", misbehave.clone()),
                text: "[[strategy]]\nplugin = \"looper\"\nconfig = { when = \"configure\", how = \"loop\" }\n",
                says: &[
                    "looper",
                    "`configure` failed",
                    "within 500ms",
                    "change its `config`",
                ],
                also: &[],
            },
        ),
        (
            "a memory bomb in configure",
            Mistake {
                file: file("hoarder.wasm", misbehave.clone()),
                text: "[[strategy]]\nplugin = \"hoarder\"\nconfig = { when = \"configure\", how = \"hoard\" }\n",
                says: &[
                    "hoarder",
                    "`configure` failed",
                    "more memory than its limit",
                    "change its `config`",
                ],
                also: &[],
            },
        ),
        (
            "a limit no sandbox can keep",
            Mistake {
                file: None,
                text: "[[strategy]]\nplugin = \"retry\"\nlimits = { decision_deadline = \"5ms\" }\n",
                says: &["strategy[1].limits.decision_deadline", "5ms", "10ms"],
                also: &[],
            },
        ),
        (
            "a configuration that breaks the schema",
            Mistake {
                file: file("named.wasm", strategy.clone()),
                text: "[[strategy]]\nplugin = \"named\"\nconfig = { target = 5 }\n",
                says: &["named", "`config.target`", "string", "correct it"],
                also: &[],
            },
        ),
        (
            "a configuration that is missing",
            Mistake {
                file: file("named.wasm", strategy),
                text: "",
                says: &["named", "`config.target`", "required", "write it"],
                also: &[],
            },
        ),
        (
            "two strategies of one name",
            Mistake {
                file: None,
                text: "[[strategy]]\nplugin = \"retry\"\nname = \"mine\"\n[[strategy]]\nplugin = \"fail-fast\"\nname = \"mine\"\n[[strategy]]\nplugin = \"retry\"\n[[strategy]]\nplugin = \"fail-fast\"\n",
                says: &[
                    "strategy[2].name",
                    "\"mine\"",
                    "Give this strategy a name of its own",
                ],
                also: &["mine"],
            },
        ),
        (
            "a cycle over two strategies",
            Mistake {
                file: None,
                text: r#"
[[strategy]]
plugin = "operation-fallback"
config = { routes = [{ from = "x", to = "y" }] }
[[strategy]]
plugin = "operation-fallback"
name = "back"
config = { routes = [{ from = "y", to = "x" }] }
"#,
                says: &[
                    "\"back\"",
                    "x -> y -> x (strategies: operation-fallback, back)",
                    "remove one of these routes",
                ],
                also: &[],
            },
        ),
        (
            "a plugin nobody has",
            Mistake {
                file: None,
                text: "[[strategy]]\nplugin = \"service-failovr\"\n",
                says: &[
                    "\"service-failovr\"",
                    "did you mean \"service-failover\"?",
                    "service-failovr.wasm into",
                ],
                also: &[],
            },
        ),
    ]
}

/// A plugin folder with a good plugin in it, and what the configuration says of that.
const GOOD: &str = "[[strategy]]\nplugin = \"prefer-named\"\nconfig = { target = \"c\" }\n";

fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("plugins")).unwrap();
    put(home.path(), "prefer-named.wasm", &fixture("prefer-named"));
    home
}

fn put(home: &Path, name: &str, bytes: &[u8]) {
    std::fs::write(home.join("plugins").join(name), bytes).unwrap();
}

async fn start(home: &Path, more: &str) -> Started {
    let text = format!(
        "plugins = \"plugins\"\n{}{GOOD}{more}",
        services(&["a", "b", "c"])
    );
    start_in(home, &text).await
}

async fn call(started: &Started, kind: Kind) -> Outcome<String> {
    let script = Script::default()
        .on("a", bad(kind))
        .on("b", good("b's"))
        .on("c", good("c's"));
    let call = Call::new("g", "search").repeat_safety(RepeatSafety::ReadOnly);
    let request = Request::new("search", "{}");
    started.engine.call(&script, call, &request).await.unwrap()
}

/// The good plugin decides, and so do the stock strategies.
async fn assert_all_else_decides(started: &Started, what: &str) {
    let named = call(started, Kind::CONNECTION_ERROR).await;
    assert_eq!(named.served_by.as_deref(), Some("c"), "{what}");
    let stock = call(started, Kind::SERVICE_UNAVAILABLE).await;
    assert_eq!(stock.served_by.as_deref(), Some("b"), "{what}");
    assert_eq!(stock.attempts(), 3, "{what}");
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

#[tokio::test]
async fn each_mistake_is_one_message_and_all_else_loads_and_decides() {
    for (what, mistake) in mistakes() {
        let home = home();
        if let Some((name, bytes)) = &mistake.file {
            put(home.path(), name, bytes);
        }
        let started = start(home.path(), mistake.text).await;
        assert_eq!(
            started.diagnostics.len(),
            1,
            "{what}: {:#?}",
            started.diagnostics
        );
        let diagnostic = &started.diagnostics[0];
        assert!(diagnostic.is_error(), "{what}");
        assert!(diagnostic.file.ends_with("backstop.toml"), "{what}");
        let said = diagnostic.to_string();
        for part in mistake.says {
            assert!(said.contains(part), "{what}: no {part:?} in: {said}");
        }
        assert!(!said.contains('\n'), "{what}: more than a line: {said}");

        let expected = STOCK.iter().chain(&["prefer-named"]).chain(mistake.also);
        let expected = expected.map(|name| (*name).to_owned()).collect();
        assert_eq!(sorted(started.strategies()), sorted(expected), "{what}");
        assert_all_else_decides(&started, what).await;
    }
}

#[tokio::test]
async fn many_mistakes_at_once_are_as_many_messages() {
    let home = home();
    let (mut text, mut count, mut seen) = (String::new(), 0, Vec::new());
    for (_, mistake) in mistakes() {
        let Some((name, bytes)) = mistake.file else {
            continue;
        };
        if !seen.contains(&name) {
            seen.push(name);
            put(home.path(), name, &bytes);
            text.push_str(mistake.text);
            count += 1;
        }
    }
    let started = start(home.path(), &text).await;
    assert_eq!(
        started.diagnostics.len(),
        count,
        "{:#?}",
        started.diagnostics
    );
    for name in seen {
        let stem = name.trim_end_matches(".wasm");
        let about = started
            .diagnostics
            .iter()
            .filter(|said| said.field.contains(&format!("{stem:?}")));
        assert_eq!(about.count(), 1, "{name}");
    }
    assert_all_else_decides(&started, "many mistakes").await;
}

#[tokio::test]
async fn a_missing_folder_is_one_message_and_the_stock_decides() {
    let home = tempfile::tempdir().unwrap();
    let text = format!("plugins = \"plugins\"\n{}", services(&["a", "b", "c"]));
    let started = start_in(home.path(), &text).await;
    assert_eq!(started.diagnostics.len(), 1, "{:#?}", started.diagnostics);
    let said = started.diagnostics[0].to_string();
    assert!(said.contains("plugins") && said.contains("reate"), "{said}");
    assert_eq!(started.strategies().len(), STOCK.len());
    let outcome = call(&started, Kind::SERVICE_UNAVAILABLE).await;
    assert_eq!(outcome.served_by.as_deref(), Some("b"));
}

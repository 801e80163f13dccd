//! The configuration of a gateway that runs: every version is applied as a whole or not at all, and no
//! call is lost over it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    missing_docs
)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use backstop::Engine;
use backstop::config::Config;
use backstop::event::{Event, EventKind};
use backstop::strategy::component::{Runtime, RuntimeOptions};
use backstop_gateway::live::{Behind, LiveConfig, LiveError, Origin};
use backstop_gateway::{Gateway, HttpOptions};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio::time::{Instant, sleep, timeout};

/// Generous: the machine may be busy.
const SOON: Duration = Duration::from_secs(20);

/// A server of the newest revision; its tool `who` answers with the server's name and the number it was
/// given, after the milliseconds it was given.
async fn server(name: &'static str) -> String {
    async fn answer(
        State(name): State<&'static str>,
        asked: Bytes,
    ) -> ([(&'static str, &'static str); 1], String) {
        let asked: Value = serde_json::from_slice(&asked).unwrap();
        let arguments = &asked["params"]["arguments"];
        let result = match asked["method"].as_str().unwrap() {
            "server/discover" => json!({ "supportedVersions": ["2026-07-28"],
                "capabilities": { "tools": {} } }),
            "tools/list" => json!({ "tools": [{ "name": "who", "inputSchema": { "type": "object" },
                "annotations": { "readOnlyHint": true } }] }),
            _ => {
                let wait = arguments["wait"].as_u64().unwrap_or(0);
                sleep(Duration::from_millis(wait)).await;
                let text = format!("{name} {}", arguments["n"]);
                json!({ "content": [{ "type": "text", "text": text }] })
            }
        };
        let mut answer = json!({ "jsonrpc": "2.0", "id": asked["id"], "result": result });
        answer["result"]["resultType"] = "complete".into();
        ([("content-type", "application/json")], answer.to_string())
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    let app = Router::new().route("/mcp", post(answer)).with_state(name);
    tokio::spawn(async move { axum::serve(listener, app).await });
    url
}

fn service(name: &str, url: &str, rest: &str) -> String {
    format!(
        "[[service]]\nname = '{name}'\ngroup = 'g'\nurl = '{url}'\ntrusted = true\n\
         health = {{ enabled = false }}\n{rest}\n"
    )
}

/// No strategy, so that whatever goes wrong is seen.
fn bare(rest: &str) -> String {
    format!("stock = false\n{rest}")
}

/// A gateway made of a file, as the program makes it.
struct Running {
    folder: tempfile::TempDir,
    gateway: Gateway,
    live: LiveConfig,
    events: broadcast::Receiver<Arc<Event>>,
}

impl Running {
    async fn start(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("backstop.toml");
        std::fs::write(&file, text).unwrap();
        let loaded = Config::parse(text, &file, &|_| None);
        assert!(!loaded.has_errors(), "{:?}", loaded.diagnostics);
        let config = loaded.config;
        let runtime = Runtime::new(RuntimeOptions::default()).unwrap();
        let made = backstop::assemble(&config, &file, &runtime).await.unwrap();
        let behind = Behind::of(&config, &file);
        let events = made.engine.subscribe();
        let gateway = Gateway::new(made.engine, made.operations, behind.services)
            .unwrap()
            .with_models(behind.models, config.completion.clone())
            .unwrap();
        let live = LiveConfig::new(file, (text, config), gateway.clone(), made.strategies);
        Self {
            folder,
            gateway,
            live,
            events,
        }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("backstop.toml")
    }

    fn engine(&self) -> &Engine {
        self.gateway.engine()
    }

    fn targets(&self) -> Vec<String> {
        let targets = self.engine().registry().list();
        targets.iter().map(|t| t.name.to_string()).collect()
    }

    async fn version(&self) -> u64 {
        self.live.versions().await.last().unwrap().number
    }

    /// The next thing that is told of the configuration.
    async fn told(&mut self) -> EventKind {
        let wait = async {
            loop {
                let event = self.events.recv().await.unwrap();
                if let EventKind::ConfigApplied { .. } | EventKind::ConfigRejected { .. } =
                    event.what
                {
                    return event.what.clone();
                }
            }
        };
        timeout(SOON, wait).await.expect("nothing was told")
    }

    async fn applied(&mut self) -> (u64, Vec<String>) {
        match self.told().await {
            EventKind::ConfigApplied {
                version: Some(version),
                ..
            } => (version.version, version.changes.clone()),
            other => panic!("{other:?}"),
        }
    }

    async fn rejected(&mut self) -> String {
        match self.told().await {
            EventKind::ConfigRejected { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    }
}

async fn ask(gateway: &Gateway, n: u64, wait: u64) -> Result<(String, String), String> {
    let arguments = json!({ "n": n, "wait": wait });
    let called = gateway.call_tool("who", arguments.as_object().unwrap());
    let outcome = called.await.map_err(|error| format!("{error:?}"))?;
    let answer: Value = serde_json::from_slice(outcome.answer.payload.as_bytes()).unwrap();
    let text = answer["content"][0]["text"].as_str().unwrap_or_default();
    if let Some(trouble) = &outcome.trouble {
        return Err(format!("{trouble:?}"));
    }
    Ok((outcome.served_by.unwrap().to_string(), text.to_owned()))
}

#[tokio::test]
async fn services_come_change_and_go_and_what_is_under_way_at_one_that_goes_is_finished() {
    let (a, b) = (server("a").await, server("b").await);
    let mut running = Running::start(&bare(&service("one", &a, ""))).await;
    assert_eq!(ask(&running.gateway, 1, 0).await.unwrap().1, "a 1");

    let gateway = running.gateway.clone();
    let slow = tokio::spawn(async move { ask(&gateway, 2, 500).await });
    let engine = running.engine().clone();
    let one = engine.registry().get("one").unwrap();
    let is_busy = async {
        while one.in_flight() == 0 {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(SOON, is_busy).await.unwrap();

    let text = bare(&service("two", &b, "priority = 3"));
    let version = running.live.apply(&text).await.unwrap();
    assert_eq!((version.number, version.origin), (2, Origin::Operator));
    assert_eq!(
        version.changes,
        ["service \"two\" added", "service \"one\" removed"]
    );
    assert_eq!(running.applied().await, (2, version.changes.clone()));
    assert_eq!(running.targets(), ["two"]);
    assert_eq!(ask(&running.gateway, 3, 0).await.unwrap().1, "b 3");
    assert_eq!(slow.await.unwrap().unwrap(), ("one".into(), "a 2".into()));

    let text = bare(&service("two", &b, "weight = 9"));
    let version = running.live.apply(&text).await.unwrap();
    assert_eq!(version.changes, ["service \"two\" changed"]);
    let spec = &running.engine().registry().get("two").unwrap().spec;
    assert_eq!((spec.priority, spec.weight.get()), (0, 9));
    // The same text again is no other version.
    assert_eq!(running.live.apply(&text).await.unwrap().number, 3);
}

#[tokio::test]
async fn every_policy_holds_from_the_next_call_on() {
    let a = service("one", &server("a").await, "");
    let mut running = Running::start(&bare(&a)).await;
    let rest = "[deadline]\ncall = '7s'\n[budget]\nratio = 0.5\n[cache]\nmax_age = '1h'\n\
        [circuit]\nconsecutive_failures = 77\n[health]\ninterval = '9s'\n\
        [retry.TeamQuota]\nmax_retries = 2\n\
        [[pattern]]\nname = 'quota'\nmessage = 'quota'\nkind = 'TeamQuota'\n\
        [[operation]]\nmatch = 'who'\nattempt_timeout = '20ms'\n\
        [[model]]\nname = 'm'\nbase_url = 'http://localhost:1/v1'\nmodel = 'm'\n";
    let version = running.live.apply(&bare(&format!("{a}{rest}"))).await;
    let changes = version.unwrap().changes.clone();
    assert_eq!(changes.len(), 9, "{changes:?}");
    assert_eq!(running.applied().await, (2, changes));
    let policies = running.engine().policies();
    assert_eq!(policies.settings.deadlines.call, Duration::from_secs(7));
    assert_eq!(policies.patterns[0].name, "quota");
    assert_eq!(policies.retry.of(&"TeamQuota".into()).max_retries, 2);
    assert_eq!(policies.cache.unwrap().max_age, Duration::from_secs(3600));
    assert_eq!(policies.registry.circuit.consecutive_failures, 77);
    assert_eq!(policies.registry.health.interval, Duration::from_secs(9));
    assert!(format!("{:?}", policies.budget).contains("ratio: 0.5"));
    assert_eq!(running.targets(), ["m", "one"]);
    let error = ask(&running.gateway, 1, 2000).await.unwrap_err();
    assert!(error.contains("20ms"), "the operation's limit: {error}");
    // And everything is taken back with the version before.
    running.live.rollback(1).await.unwrap();
    assert_eq!(running.targets(), ["one"]);
    assert!(running.engine().policies().patterns.is_empty());
    assert_eq!(ask(&running.gateway, 2, 100).await.unwrap().1, "a 2");
}

#[tokio::test]
async fn what_is_wrong_is_refused_with_its_place_and_the_nearest_name_and_changes_nothing() {
    let a = service("one", &server("a").await, "");
    let mut running = Running::start(&a).await;
    let before = (
        running.targets(),
        format!("{:?}", running.engine().policies()),
        running.engine().strategies().list().len(),
    );
    assert_eq!(before.2, 6, "the stock");
    let wrong = |rest: &str| format!("[deadline]\ncall = '3s'\n{a}{rest}");
    for (text, says) in [
        (
            wrong("wieght = 2\n"),
            "backstop.toml:10:1: service[0].wieght: unknown key \"wieght\": did you mean \"weight\"?",
        ),
        (wrong("[[service]\n"), "backstop.toml:10:"),
        (wrong("[[strategy]]\nplugin = 'retri'\n"), "retri"),
        (
            wrong("[[strategy]]\nplugin = 'retry'\nconfig = { nonsense = 1 }\n"),
            "nonsense",
        ),
        (
            wrong("[[service]]\nname = 'gone'\ncommand = 'no-such-program'\n"),
            "the command \"no-such-program\" does not exist",
        ),
        (
            wrong("[[service]]\nname = 'two'\nurl = 'http://x/'\nheaders = { 'a b' = 'c' }\n"),
            "\"a b\"",
        ),
        (
            String::new(),
            "it has no service, no model and no discovery",
        ),
    ] {
        let error = running.live.apply(&text).await.unwrap_err();
        let LiveError::Refused(diagnostics) = &error else {
            panic!("{error:?}");
        };
        assert!(diagnostics.iter().any(|found| found.is_error()));
        let said = error.to_string();
        assert!(
            !said.contains("warning"),
            "only what must be mended: {said}"
        );
        assert!(said.contains(says), "{says}: {said}");
        assert_eq!(running.rejected().await, said);
    }
    let after = (
        running.targets(),
        format!("{:?}", running.engine().policies()),
        running.engine().strategies().list().len(),
    );
    assert_eq!(after, before);
    assert_eq!(running.version().await, 1);
    // A good one is taken as if nothing had been.
    let version = running.live.apply(&wrong("")).await.unwrap();
    assert_eq!(version.changes, ["[deadline] changed"]);
}

#[tokio::test]
async fn strategies_are_configured_left_out_and_put_back_with_the_version() {
    let a = service("one", &server("a").await, "");
    let running = Running::start(&a).await;
    let names = || {
        let list = running.engine().strategies().list();
        let names = list.iter().map(|s| (s.name().to_string(), s.priority()));
        names.collect::<std::collections::BTreeMap<_, _>>()
    };
    let first = names();
    let text = format!(
        "{a}[[strategy]]\nplugin = 'retry'\npriority = 999\n\
         [[strategy]]\nplugin = 'fail-fast'\nenabled = false\n"
    );
    running.live.apply(&text).await.unwrap();
    let second = names();
    assert_eq!((second["retry"], second.len()), (999, 5));
    assert!(!second.contains_key("fail-fast"));
    running.live.rollback(1).await.unwrap();
    assert_eq!(names(), first);
}

#[tokio::test]
async fn what_cannot_change_is_told_and_the_rest_is_applied() {
    let a = service("one", &server("a").await, "");
    let running = Running::start(&bare(&a)).await;
    let text = bare(&format!(
        "{a}[gateway]\nlisten = '127.0.0.1:1'\nmixed_schemas = true\n[deadline]\ncall = '2s'\n"
    ));
    let version = running.live.apply(&text).await.unwrap();
    assert_eq!(version.needs_restart, ["[gateway] listen"]);
    let policies = running.engine().policies();
    assert_eq!(policies.settings.deadlines.call, Duration::from_secs(2));
}

#[tokio::test]
async fn who_is_let_in_over_http_changes_while_it_is_served() {
    let a = service("one", &server("a").await, "");
    let running = Running::start(&bare(&a)).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    let gateway = running.gateway.clone();
    tokio::spawn(async move { gateway.serve_http(listener, HttpOptions::default()).await });
    let client = reqwest::Client::new();
    let status = async |body: String| {
        let asked = client.post(&url).header("host", "team.example").body(body);
        asked.send().await.unwrap().status().as_u16()
    };
    let ping = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#.to_owned();
    assert_eq!(status(ping.clone()).await, 403);
    let text = bare(&format!(
        "{a}[gateway]\nallowed_hosts = ['team.example']\nmax_body = '1KiB'\n"
    ));
    running.live.apply(&text).await.unwrap();
    assert_eq!(status(ping.clone()).await, 200);
    assert_eq!(status(ping + &" ".repeat(2000)).await, 413);
    // Never open because a variable was forgotten.
    let text = bare(&format!(
        "{a}[gateway]\nbearer_token_env = 'BACKSTOP_TEST_NOT_SET'\n"
    ));
    let refused = running.live.apply(&text).await.unwrap_err().to_string();
    assert!(refused.contains("BACKSTOP_TEST_NOT_SET"), "{refused}");
}

#[tokio::test]
async fn versions_are_remembered_had_back_and_written() {
    let a = server("a").await;
    let mut running = Running::start(&bare(&service("v1", &a, ""))).await;
    for number in 2..=3 {
        let text = bare(&service(&format!("v{number}"), &a, ""));
        running.live.apply(&text).await.unwrap();
        running.applied().await;
    }
    let versions = running.live.versions().await;
    let facts: Vec<_> = versions.iter().map(|v| (v.number, v.origin)).collect();
    assert_eq!(
        facts,
        [
            (1, Origin::File),
            (2, Origin::Operator),
            (3, Origin::Operator)
        ]
    );
    let digests: BTreeSet<_> = versions.iter().map(|v| v.digest.clone()).collect();
    assert_eq!(digests.len(), 3);

    let back = running.live.rollback(2).await.unwrap();
    assert_eq!((back.number, back.origin), (4, Origin::Rollback(2)));
    assert_eq!(back.digest, versions[1].digest);
    assert_eq!(running.targets(), ["v2"]);
    let unknown = running.live.rollback(9).await.unwrap_err().to_string();
    assert_eq!(unknown, "there is no version 9: 1 to 4 are remembered");

    assert!(
        std::fs::read_to_string(running.file())
            .unwrap()
            .contains("v1")
    );
    running.live.write_back().await.unwrap();
    assert_eq!(
        std::fs::read_to_string(running.file()).unwrap(),
        *versions[1].text
    );
    assert_eq!(
        std::fs::read_dir(running.folder.path()).unwrap().count(),
        1,
        "nothing is left over"
    );
    // What was written is what is in force: reading it changes nothing.
    assert_eq!(running.live.reload().await.unwrap().number, 4);
    std::fs::remove_file(running.file()).unwrap();
    let unreadable = running.live.reload().await.unwrap_err();
    assert!(matches!(unreadable, LiveError::Unreadable { .. }));
    assert!(running.live.write_back().await.is_err(), "there is no file");
}

/// Writes as editors and configuration managers do.
fn replace(file: &Path, text: &str) {
    let other = file.with_extension("toml.new");
    std::fs::write(&other, text).unwrap();
    std::fs::rename(&other, file).unwrap();
}

#[tokio::test]
async fn the_file_is_followed_through_torn_writes_renames_and_its_absence() {
    let a = server("a").await;
    let mut running = Running::start(&bare(&service("v1", &a, ""))).await;
    let file = running.file();
    let _follow = running.live.follow().await.unwrap();
    replace(&file, &bare(&service("v2", &a, "")));
    assert_eq!(running.applied().await.0, 2);

    // Written in pieces, each of them wrong by itself or right and not what is meant.
    let whole = bare(&format!(
        "{}{}",
        service("v3", &a, ""),
        service("v3b", &a, "")
    ));
    let mut torn = std::fs::File::create(&file).unwrap();
    for piece in whole.as_bytes().chunks(40) {
        std::io::Write::write_all(&mut torn, piece).unwrap();
        sleep(Duration::from_millis(5)).await;
    }
    drop(torn);
    let (version, changes) = running.applied().await;
    assert_eq!(version, 3, "{changes:?}");
    assert_eq!(running.targets(), ["v3", "v3b"]);

    std::fs::remove_file(&file).unwrap();
    let gone = running.rejected().await;
    assert!(gone.contains("cannot be read"), "{gone}");
    assert_eq!(ask(&running.gateway, 1, 0).await.unwrap().1, "a 1");
    std::fs::write(&file, bare(&service("v4", &a, "bad = 1"))).unwrap();
    let wrong = running.rejected().await;
    assert!(
        wrong.contains("backstop.toml:8:1: service[0].bad"),
        "{wrong}"
    );
    std::fs::write(&file, bare(&service("v4", &a, ""))).unwrap();
    assert_eq!(running.applied().await.0, 4);
    assert_eq!(running.targets(), ["v4"]);
}

#[tokio::test]
async fn targets_that_a_source_found_outlive_a_version_that_keeps_the_source() {
    let (a, b) = (server("a").await, server("b").await);
    let source = "[[discovery]]\nname = 'more'\nfile = 'more.toml'\n";
    let text = |name: &str| bare(&format!("{}{source}", service(name, &a, "")));
    let running = Running::start(&text("v1")).await;
    let more = running.folder.path().join("more.toml");
    std::fs::write(more, service("found", &b, "")).unwrap();
    let is_found = async {
        while running.targets() != ["found", "v1"] {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(SOON, is_found).await.unwrap();
    running.live.apply(&text("v2")).await.unwrap();
    assert_eq!(running.targets(), ["found", "v2"]);
    let clash = running.live.apply(&text("found")).await.unwrap_err();
    assert!(
        clash
            .to_string()
            .contains("has a target named \"found\" already"),
        "{clash}"
    );
    let without = bare(&service("v3", &a, ""));
    running.live.apply(&without).await.unwrap();
    assert_eq!(running.targets(), ["v3"]);
}

/// Twenty versions a second under load, every tenth of them wrong. For 3 s; `BACKSTOP_RELOAD_SECONDS`
/// says otherwise.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_lost_or_mixed_up_over_twenty_versions_a_second() {
    let seconds = std::env::var("BACKSTOP_RELOAD_SECONDS").ok();
    let seconds = seconds.map_or(3, |text| text.parse().expect("a number of seconds"));
    let urls = [server("a").await, server("b").await, server("c").await];
    let names = ["a", "b", "c"];
    // Who is there, who is preferred and how long a call may take differ from version to version.
    let text = |version: u64| {
        let (first, second) = (version as usize % 3, (version as usize + 1) % 3);
        bare(&format!(
            "[deadline]\ncall = '{}s'\n{}{}",
            30 + version % 7,
            service(names[first], &urls[first], "priority = 1"),
            service(names[second], &urls[second], "")
        ))
    };
    let running = Running::start(&text(0)).await;
    ask(&running.gateway, 0, 0).await.unwrap();
    let is_over = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicU64::new(0));
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (gateway, is_over, asked) =
                (running.gateway.clone(), is_over.clone(), asked.clone());
            tokio::spawn(async move {
                let mut by = BTreeSet::new();
                while !is_over.load(Ordering::Relaxed) {
                    let n = asked.fetch_add(1, Ordering::Relaxed);
                    let (served_by, text) = ask(&gateway, n, n % 5 * 20).await?;
                    if text != format!("{served_by} {n}") {
                        return Err(format!("call {n} of {served_by} was answered {text:?}"));
                    }
                    by.insert(served_by);
                }
                Ok::<_, String>(by)
            })
        })
        .collect();
    let mut pace = tokio::time::interval(Duration::from_millis(50));
    let until = Instant::now() + Duration::from_secs(seconds);
    let (mut version, mut good, mut refused) = (0, 1, 0);
    while Instant::now() < until {
        pace.tick().await;
        version += 1;
        if version % 10 == 0 {
            let wrong = format!("{}wieght = 2\n", text(version));
            let said = running.live.apply(&wrong).await.unwrap_err().to_string();
            let place = "backstop.toml:18:1: service[1].wieght: unknown key \"wieght\": did you mean \"weight\"?";
            assert!(said.contains(place), "{said}");
            refused += 1;
        } else {
            good += 1;
            let applied = running.live.apply(&text(version)).await.unwrap();
            assert_eq!(applied.number, good);
        }
    }
    is_over.store(true, Ordering::Relaxed);
    for caller in callers {
        let by = caller.await.unwrap().unwrap();
        assert_eq!(by, BTreeSet::from(names.map(String::from)));
    }
    let asked = asked.load(Ordering::Relaxed);
    println!("{asked} calls, {good} versions applied, {refused} refused");
    assert!(refused >= 1 && asked > good, "{asked} {good} {refused}");
}

//! The configuration, told and changed through the administration endpoint.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::PathBuf;

use backstop::Kind;
use backstop::config::Config;
use backstop::strategy::component::{Runtime, RuntimeOptions};
use backstop_gateway::Gateway;
use backstop_gateway::admin::{Admin, Metrics};
use backstop_gateway::live::{Behind, LiveConfig};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use std::sync::OnceLock;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The recorder of the process, which all tests of this file share.
fn metrics() -> Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(|| Metrics::install().unwrap()).clone()
}

const TEXT: &str = "# mine\nstock = false\n\n[[service]]\nname = 'a'\nurl = 'http://127.0.0.1:9/mcp'\n\
                    \n[retry.TimeoutError]\nmax_retries = 1 # enough\n";

/// A gateway of a file, and its endpoint.
struct World {
    folder: tempfile::TempDir,
    gateway: Gateway,
    base: String,
    token: Option<&'static str>,
    _stop: DropGuard,
}

impl World {
    async fn new(token: Option<&'static str>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("backstop.toml");
        std::fs::write(&file, TEXT).unwrap();
        let config = Config::parse(TEXT, &file, &|_| None).config;
        let runtime = Runtime::new(RuntimeOptions::default()).unwrap();
        let made = backstop::assemble(&config, &file, &runtime).await.unwrap();
        let services = Behind::of(&config, &file).services;
        let gateway = Gateway::new(made.engine, made.operations, services).unwrap();
        let live = LiveConfig::new(file, (TEXT, config), gateway.clone(), made.strategies);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let admin = Admin::new(gateway.engine(), metrics(), address, token).unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(admin.with_config(live).serve(listener, stop.clone()));
        Self {
            folder,
            gateway,
            base: format!("http://{address}"),
            token,
            _stop: stop.drop_guard(),
        }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("backstop.toml")
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.file()).unwrap()
    }

    /// Asks, and holds the answer against the document.
    async fn ask(&self, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let url = format!("{}{path}", self.base);
        let mut request = match &body {
            None => Client::new().get(url),
            Some(body) => Client::new().post(url).json(body),
        };
        if let Some(token) = self.token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.unwrap();
        let (status, told) = (answer.status(), answer.json().await.unwrap());
        let method = if body.is_some() { "post" } else { "get" };
        conforms(path, method, status, &told);
        (status, told)
    }

    async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.ask(path, Some(body)).await
    }

    async fn policy(&self, kind: &str) -> Value {
        let (_, policies) = self.ask("/api/config/retry", None).await;
        let mut policies = policies.as_array().unwrap().iter();
        policies.find(|it| it["kind"] == kind).unwrap().clone()
    }
}

fn conforms(path: &str, method: &str, status: StatusCode, told: &Value) {
    let document: Value = serde_json::from_str(include_str!("../src/admin/openapi.json")).unwrap();
    let path = path.split('?').next().unwrap();
    let mut response = &document["paths"][path][method]["responses"][status.as_str()];
    if let Some(reference) = response["$ref"].as_str() {
        response = document.pointer(reference.trim_start_matches('#')).unwrap();
    }
    let mut schema = response["content"]["application/json"]["schema"].clone();
    assert!(
        schema.is_object(),
        "{method} {path} {status} is not documented"
    );
    schema["components"] = document["components"].clone();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<String> = validator
        .iter_errors(told)
        .map(|it| it.to_string())
        .collect();
    assert!(errors.is_empty(), "{method} {path}: {errors:?} in {told}");
}

#[tokio::test]
async fn a_retry_policy_is_changed_in_force_and_the_file_only_where_that_is_asked() {
    let world = World::new(None).await;
    assert_eq!(
        world.policy("TimeoutError").await,
        json!({ "kind": "TimeoutError", "set": { "max_retries": 1 },
            "in_force": { "max_retries": 1, "delays_ms": [500], "jitter": "equal" } })
    );
    let change = json!({ "kind": "TimeoutError", "set": { "max_retries": 2, "jitter": "none" } });
    let (status, version) = world.post("/api/config/retry", change).await;
    assert_eq!(status, StatusCode::OK, "{version}");
    assert_eq!(
        (&version["number"], &version["origin"]),
        (&json!(2), &json!("operator"))
    );
    assert_eq!(version["changes"], json!(["[retry.TimeoutError] changed"]));
    let in_force = world.gateway.engine().policies().retry;
    assert_eq!(in_force.of(&Kind::TIMEOUT_ERROR).max_retries, 2);
    assert_eq!(world.text(), TEXT);

    let (status, _) = world.post("/api/config/save", json!({})).await;
    assert_eq!(status, StatusCode::OK);
    let expected = TEXT.replace(
        "max_retries = 1 # enough",
        "max_retries = 2 # enough\njitter = \"none\"",
    );
    assert_eq!(world.text(), expected);

    // Taken out again, and written down in one step; what was not there before is as it was.
    let change = json!({ "kind": "TimeoutError", "set": { "max_retries": null, "jitter": null }, "save": true });
    let (status, _) = world.post("/api/config/retry", change).await;
    assert_eq!(status, StatusCode::OK);
    assert!(!world.text().contains("retry"), "{}", world.text());
    assert_eq!(
        world.policy("TimeoutError").await["in_force"]["max_retries"],
        2
    );
}

#[tokio::test]
async fn each_value_that_is_wrong_is_told_by_its_key_and_nothing_changes() {
    let world = World::new(None).await;
    let set = json!({ "max_retries": 101, "jitter": "ful", "delays": ["1s", "soon"], "facter": 2 });
    let change = json!({ "kind": "BadGateway", "set": set });
    let (status, told) = world.post("/api/config/retry", change).await;
    assert_eq!(status, StatusCode::CONFLICT);
    let fields = told["fields"].as_array().unwrap();
    let of = |field: &str| {
        let found = fields.iter().find(|it| it["field"] == field);
        found.unwrap_or_else(|| panic!("{field}: {told}"))["message"]
            .as_str()
            .unwrap()
    };
    assert!(of("max_retries").contains("101 is not from 0 to 100"));
    assert!(of("jitter").contains("did you mean \"full\"?"));
    assert!(of("delays").contains("not a duration"));
    assert!(of("facter").contains("did you mean \"factor\"?"));
    assert!(told["error"].as_str().unwrap().contains("stays in force"));
    assert_eq!(world.policy("BadGateway").await["set"], json!({}));
    for (wrong, said) in [
        (json!({ "set": {} }), "`kind` is missing"),
        (
            json!({ "kind": "BadGatewy", "set": {} }),
            "did you mean \"BadGateway\"?",
        ),
        (
            json!({ "kind": "BadGateway", "set": { "factor": {} } }),
            "no such value",
        ),
        (json!({ "kind": "BadGateway", "sat": {} }), "unknown field"),
    ] {
        let (status, told) = world.post("/api/config/retry", wrong).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{told}");
        assert!(told["error"].as_str().unwrap().contains(said), "{told}");
    }
    let (_, versions) = world.ask("/api/config", None).await;
    assert_eq!(versions.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_whole_configuration_is_taken_only_from_who_holds_a_token() {
    let other = TEXT.replace("name = 'a'", "name = 'b'");
    let open = World::new(None).await;
    let (status, told) = open
        .post("/api/config/apply", json!({ "text": other }))
        .await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(
        told["error"].as_str().unwrap().contains("token_env"),
        "{told}"
    );
    assert!(open.gateway.engine().registry().get("b").is_none());

    let world = World::new(Some("secret")).await;
    let (status, version) = world
        .post("/api/config/apply", json!({ "text": other }))
        .await;
    assert_eq!(status, StatusCode::OK, "{version}");
    assert!(world.gateway.engine().registry().get("b").is_some());
    assert_eq!(world.text(), TEXT);
    let body = json!({ "text": format!("{other}# kept\n"), "save": true });
    assert_eq!(
        world.post("/api/config/apply", body).await.0,
        StatusCode::OK
    );
    assert!(world.text().ends_with("# kept\n"));
    let body = json!({ "text": format!("{other}[helth]\n"), "save": true });
    let (status, told) = world.post("/api/config/apply", body).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(
        told["error"]
            .as_str()
            .unwrap()
            .contains("did you mean \"health\"?"),
        "{told}"
    );
    assert!(
        world.text().ends_with("# kept\n"),
        "what is refused is not written"
    );
    let (status, _) = world.post("/api/config/apply", json!({})).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);

    // A file that cannot be written: it is in force all the same, and that is said.
    std::fs::remove_file(world.file()).unwrap();
    let (status, told) = world.post("/api/config/save", json!({})).await;
    assert_eq!(status, StatusCode::CONFLICT, "{told}");
}

#[tokio::test]
async fn an_event_nobody_knows_is_refused_with_the_nearest_name() {
    let world = World::new(None).await;
    for (only, said) in [
        (
            "call_savd",
            "there is no event \"call_savd\": did you mean \"call_saved\"?",
        ),
        (
            "call_saved,circuit_open",
            "did you mean \"circuit_opened\"?",
        ),
        ("nonsense", "there are attempt_failed, retry_scheduled"),
        ("", "there is no event \"\""),
    ] {
        let (status, told) = world.ask(&format!("/api/events?only={only}"), None).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(told["error"].as_str().unwrap().contains(said), "{told}");
    }
    let path = format!(
        "{}/api/events?only=call_saved,%20circuit_opened",
        world.base
    );
    let listening = Client::new().get(path).send().await.unwrap();
    assert_eq!(listening.status(), StatusCode::OK);
}

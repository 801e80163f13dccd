//! An rmcp client with fallback, against real rmcp servers on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../examples/support/mod.rs"]
mod support;

use std::error::Error;
use std::future::Future;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use backstop::call::{Ending, RepeatSafety};
use backstop::config::Config;
use backstop::registry::{RegistryError, TargetSpec};
use backstop::rmcp::FallbackClient;
use backstop::strategy::component::{Runtime, RuntimeOptions};
use backstop::{Call, Engine, Kind, mcp};
use rmcp::model::{CallToolRequestParams, CallToolResponse, CallToolResult};
use rmcp::service::{RoleClient, RunningService, ServiceError};
use rmcp::transport::StreamableHttpClientTransport;
use rmcp::{RoleServer, ServiceExt};
use support::{Seen, Tools, WeatherServer};

const SILENCE: Duration = Duration::from_millis(400);

async fn engine_with(config: &str) -> Engine {
    let loaded = Config::parse(config, Path::new("test.toml"), &|_| None);
    assert!(!loaded.has_errors(), "{:?}", loaded.diagnostics);
    // Compiled once for all tests, and kept: a strategy takes longer to compile than to be tested.
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compiled-strategies");
        std::fs::create_dir_all(&folder).unwrap();
        Runtime::new(RuntimeOptions::default().with_cache(folder)).unwrap()
    });
    let assembled = backstop::assemble(&loaded.config, Path::new("test.toml"), &RUNTIME);
    let assembled = assembled.await.unwrap();
    assert!(assembled.diagnostics.is_empty());
    assembled.engine
}

async fn connect(server: &WeatherServer) -> RunningService<RoleClient, ()> {
    let transport = StreamableHttpClientTransport::from_uri(server.url());
    ().serve(transport).await.unwrap()
}

/// A primary and a backup over HTTP, and a client in front of them.
struct Pair {
    primary: WeatherServer,
    backup: WeatherServer,
    client: FallbackClient,
    _services: [RunningService<RoleClient, ()>; 2],
}

async fn pair_of(engine: Engine, trusted: bool) -> Pair {
    let (primary, backup) = WeatherServer::pair().unwrap();
    let services = [connect(&primary).await, connect(&backup).await];
    let spec = |name: &str, priority| {
        let spec = TargetSpec::service(name, "weather").priority(priority);
        if trusted { spec.trusted() } else { spec }
    };
    let client = FallbackClient::builder(engine, "weather")
        .target(spec("primary", 1), &services[0])
        .target(spec("backup", 0), &services[1])
        .build()
        .unwrap();
    Pair {
        primary,
        backup,
        client,
        _services: services,
    }
}

async fn pair() -> Pair {
    pair_of(engine_with("").await, false).await
}

fn weather(city: &str) -> CallToolRequestParams {
    let arguments = serde_json::Map::from_iter([("city".to_owned(), city.into())]);
    CallToolRequestParams::new("weather").with_arguments(arguments)
}

fn call(tool: &'static str) -> Call {
    Call::new("weather", tool).attempt_timeout(SILENCE)
}

fn text(result: &CallToolResult) -> &str {
    &result.content[0].as_text().unwrap().text
}

fn complete(response: CallToolResponse) -> CallToolResult {
    match response {
        CallToolResponse::Complete(result) => result,
        other => panic!("{other:?}"),
    }
}

async fn eventually(what: impl Fn() -> bool) {
    for _ in 0..200 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it did not come about");
}

#[tokio::test]
async fn a_healthy_call_is_answered_as_rmcp_answers_it() {
    let pair = pair().await;
    let result = pair.client.call_tool(weather("Oslo")).await.unwrap();
    assert_eq!(text(&result), "21 degrees in Oslo, says primary");
    assert!(
        result
            .meta
            .is_none_or(|meta| !meta.contains_key("backstop"))
    );
    assert_eq!(pair.primary.seen.count(|s| &s.calls), 1);
    assert_eq!(pair.backup.seen.count(|s| &s.calls), 0);
}

#[tokio::test]
async fn the_backup_answers_for_a_primary_that_is_gone_and_the_answer_says_so() {
    let Pair {
        primary,
        client,
        _services,
        backup: _backup,
    } = pair().await;
    primary.stop().await;
    let result = client.call_tool(weather("Oslo")).await.unwrap();
    assert_eq!(text(&result), "21 degrees in Oslo, says backup");
    let label = &result.meta.unwrap()["backstop"];
    assert_eq!(label["served_by"], "backup");

    let outcome = client.outcome(call("weather"), weather("Bergen")).await;
    let outcome = outcome.unwrap();
    assert_eq!(outcome.served_by.as_deref(), Some("backup"));
    let trouble = outcome.trouble.expect("the primary is still gone");
    assert_eq!(trouble.attempts[0].failure.kind, Kind::CONNECTION_ERROR);
    assert!(!trouble.attempts[0].failure.ambiguous);
}

#[tokio::test]
async fn a_tools_own_error_is_its_answer_and_no_other_server_is_asked() {
    let pair = pair().await;
    let result = pair.client.call_tool(CallToolRequestParams::new("fail"));
    let result = result.await.unwrap();
    assert_eq!(result.is_error, Some(true));
    assert_eq!(text(&result), "no such station");
    assert_eq!(pair.backup.seen.count(|s| &s.calls), 0);

    let failed = pair
        .client
        .outcome(call("fail"), CallToolRequestParams::new("fail"));
    let failed = failed.await.unwrap_err();
    assert_eq!(*failed.error.kind(), Kind::TOOL_ERROR);
}

#[tokio::test]
async fn a_tools_own_error_from_the_backup_says_who_gave_it() {
    let Pair {
        primary,
        client,
        _services,
        backup: _backup,
    } = pair().await;
    primary.stop().await;
    let result = client.call_tool(CallToolRequestParams::new("fail")).await;
    let result = result.unwrap();
    assert_eq!(result.is_error, Some(true));
    assert_eq!(result.meta.unwrap()["backstop"]["served_by"], "backup");
}

#[tokio::test]
async fn an_error_of_the_server_keeps_its_code_and_data_and_is_not_retried() {
    let pair = pair().await;
    let error = pair.client.call_tool(weather("")).await.unwrap_err();
    assert_eq!(error.call.as_ref().unwrap().ending, Ending::FailedFast);
    let source = error.source().unwrap().downcast_ref::<ServiceError>();
    assert!(matches!(source, Some(ServiceError::McpError(error))
        if error.code.0 == -32602 && error.data == Some(serde_json::json!({"field": "city"}))));
    assert!(
        matches!(ServiceError::from(error), ServiceError::McpError(error)
        if error.code.0 == -32602 && error.message == "the city is empty")
    );
    assert_eq!(pair.primary.seen.count(|s| &s.calls), 1);
    assert_eq!(pair.backup.seen.count(|s| &s.calls), 0);
}

#[tokio::test]
async fn an_unsafe_tool_of_a_silent_server_is_sent_once_and_its_outcome_is_unknown() {
    let pair = pair_of(engine_with("").await, true).await;
    pair.primary.seen.silent.store(true, Ordering::SeqCst);
    let params = CallToolRequestParams::new("create_ticket");
    let failed = pair.client.outcome(call("create_ticket"), params).await;
    let failed = failed.unwrap_err();
    assert_eq!(failed.error.ending, Ending::OutcomeUnknown);
    assert!(failed.error.last().silent);
    assert_eq!(pair.primary.seen.count(|s| &s.tickets), 1);
    assert_eq!(pair.backup.seen.count(|s| &s.tickets), 0);
    // The server is told that nobody waits any more.
    eventually(|| pair.primary.seen.count(|s| &s.cancelled) == 1).await;
}

#[tokio::test]
async fn a_read_only_tool_of_a_silent_trusted_server_is_asked_of_the_next() {
    let pair = pair_of(engine_with("").await, true).await;
    pair.primary.seen.silent.store(true, Ordering::SeqCst);
    let outcome = pair.client.outcome(call("weather"), weather("Oslo")).await;
    let outcome = outcome.unwrap();
    assert_eq!(outcome.served_by.as_deref(), Some("backup"));
    let result = complete(outcome.answer);
    assert_eq!(text(&result), "21 degrees in Oslo, says backup");
}

#[tokio::test]
async fn the_word_of_an_untrusted_server_counts_for_nothing() {
    let pair = pair().await;
    pair.primary.seen.silent.store(true, Ordering::SeqCst);
    let failed = pair.client.outcome(call("weather"), weather("Oslo")).await;
    assert_eq!(failed.unwrap_err().error.ending, Ending::OutcomeUnknown);
    // The caller's own word does.
    let known = call("weather").repeat_safety(RepeatSafety::ReadOnly);
    let outcome = pair.client.outcome(known, weather("Oslo")).await.unwrap();
    assert_eq!(outcome.served_by.as_deref(), Some("backup"));
}

#[tokio::test]
async fn a_throttled_call_waits_as_long_as_the_server_asks_and_is_sent_again() {
    let server = WeatherServer::start("only").unwrap();
    let service = connect(&server).await;
    let client = FallbackClient::builder(engine_with("").await, "weather")
        .server("only", &service)
        .build()
        .unwrap();
    *server.seen.refuse_once.lock().unwrap() = Some((429, "1"));
    let started = Instant::now();
    let outcome = client.outcome(call("weather"), weather("Oslo")).await;
    let outcome = outcome.unwrap();
    let failure = outcome.trouble.as_ref().unwrap().attempts[0]
        .failure
        .clone();
    assert_eq!(
        (failure.kind.clone(), failure.http_status),
        (Kind::TOO_MANY_REQUESTS, Some(429))
    );
    assert_eq!(failure.retry_after, Some(Duration::from_secs(1)));
    assert!(started.elapsed() >= Duration::from_secs(1));
    assert_eq!(
        text(&complete(outcome.answer)),
        "21 degrees in Oslo, says only"
    );
    assert_eq!(server.seen.count(|s| &s.calls), 2);
}

#[tokio::test]
async fn http_statuses_that_rmcp_tells_in_words_are_understood() {
    let pair = pair().await;
    for (status, kind) in [
        (401, Kind::UNAUTHORIZED),
        (403, Kind::FORBIDDEN),
        (503, Kind::SERVICE_UNAVAILABLE),
        (418, Kind::INVALID_PARAMETER),
    ] {
        *pair.primary.seen.refuse_once.lock().unwrap() = Some((status, "0"));
        let once = call("weather").without_fallback();
        let failed = pair
            .client
            .outcome(once, weather("Oslo"))
            .await
            .unwrap_err();
        assert_eq!(*failed.error.kind(), kind, "{status}");
        assert_eq!(failed.error.last().http_status, Some(status));
    }
}

#[tokio::test]
async fn data_answers_for_servers_that_are_gone_and_is_labelled() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("weather.json"), r#"{"degrees":0}"#).unwrap();
    let config = format!(
        "[[strategy]]\nplugin = 'data-fallback'\ngrants.folder = '{}'\n",
        folder.path().display()
    );
    let Pair {
        primary,
        backup,
        client,
        _services,
    } = pair_of(engine_with(&config).await, false).await;
    primary.stop().await;
    backup.stop().await;
    let result = client.call_tool(weather("Oslo")).await.unwrap();
    assert_eq!(
        result.structured_content,
        Some(serde_json::json!({"degrees": 0}))
    );
    let meta = result.meta.unwrap();
    assert_eq!(meta["backstop/degraded"]["degraded"], "default");
    assert_eq!(meta["backstop"]["served_by"], serde_json::Value::Null);
}

#[tokio::test]
async fn an_error_after_several_attempts_tells_the_first_cause_and_keeps_the_last_error() {
    let Pair {
        primary,
        backup,
        client,
        _services,
    } = pair().await;
    primary.stop().await;
    backup.stop().await;
    let error = client.call_tool(weather("Oslo")).await.unwrap_err();
    assert!(error.call.as_ref().unwrap().trouble.attempts.len() > 1);
    assert!(
        error.to_string().contains("first: ConnectionError"),
        "{error}"
    );
    let source = error.source().unwrap().downcast_ref::<ServiceError>();
    assert!(
        matches!(source, Some(ServiceError::TransportSend(_))),
        "{source:?}"
    );
    let ServiceError::McpError(error) = ServiceError::from(error) else {
        panic!("an error of several attempts is the host's")
    };
    assert_eq!(error.code.0, mcp::code::EXHAUSTED);
    assert_eq!(error.data.unwrap()["group"], "weather");
}

fn duplex(
    seen: &std::sync::Arc<Seen>,
) -> impl Future<
    Output = (
        RunningService<RoleClient, ()>,
        RunningService<RoleServer, Tools>,
    ),
> {
    let (near, far) = tokio::io::duplex(1 << 16);
    let tools = Tools { seen: seen.clone() };
    async {
        tokio::try_join!(
            async { ().serve(near).await.map_err(|e| e.to_string()) },
            async { tools.serve(far).await.map_err(|e| e.to_string()) }
        )
        .unwrap()
    }
}

#[tokio::test]
async fn a_dropped_call_is_cancelled_at_the_server() {
    let seen = Seen::named("near");
    let (service, _server) = duplex(&seen).await;
    let client = FallbackClient::builder(engine_with("").await, "weather")
        .server("near", &service)
        .build()
        .unwrap();
    let result = client.call_tool(weather("Oslo")).await.unwrap();
    assert_eq!(text(&result), "21 degrees in Oslo, says near");

    seen.silent.store(true, Ordering::SeqCst);
    let waiting = client.call_tool(CallToolRequestParams::new("create_ticket"));
    let given_up = tokio::time::timeout(SILENCE, waiting).await;
    assert!(given_up.is_err());
    eventually(|| seen.count(|s| &s.cancelled) == 1).await;
    assert_eq!(seen.count(|s| &s.tickets), 1);
}

#[tokio::test]
async fn a_connection_that_has_ended_is_not_asked_and_can_be_replaced() {
    let seen = Seen::named("near");
    let (mut service, server) = duplex(&seen).await;
    let client = FallbackClient::builder(engine_with("").await, "weather")
        .server("near", &service)
        .build()
        .unwrap();
    server.cancel().await.unwrap();
    service.close().await.unwrap();
    let once = call("create_ticket").without_fallback();
    let params = CallToolRequestParams::new("create_ticket");
    let failed = client
        .outcome(once.clone(), params.clone())
        .await
        .unwrap_err();
    assert_eq!(*failed.error.kind(), Kind::CONNECTION_ERROR);
    assert_eq!(failed.error.ending, Ending::Exhausted, "it was not sent");

    let (service, _server) = duplex(&seen).await;
    client.reconnected("near", &service).unwrap();
    assert!(client.outcome(once, params).await.is_ok());
    assert!(client.reconnected("far", &service).is_err());
}

#[tokio::test]
async fn a_request_that_goes_on_with_a_servers_state_stays_with_that_server() {
    let pair = pair().await;
    let mut params = weather("Oslo");
    params.request_state = Some("begun".to_owned());
    let refused = pair.client.outcome(call("weather"), params.clone()).await;
    assert_eq!(*refused.unwrap_err().error.kind(), Kind::INVALID_PARAMETER);
    assert_eq!(pair.primary.seen.count(|s| &s.calls), 0);
    let pinned = call("weather").pin("backup");
    let outcome = pair.client.outcome(pinned, params).await.unwrap();
    assert_eq!(outcome.served_by.as_deref(), Some("backup"));
}

#[tokio::test]
async fn the_servers_are_targets_for_as_long_as_the_client_lives() {
    let seen = Seen::named("near");
    let (service, _server) = duplex(&seen).await;
    let engine = engine_with("").await;
    engine
        .registry()
        .register(TargetSpec::service("taken", "other"))
        .unwrap();
    let twice = FallbackClient::builder(engine.clone(), "weather")
        .server("near", &service)
        .server("taken", &service)
        .build();
    assert_eq!(twice.unwrap_err(), RegistryError::Duplicate("taken".into()));
    assert!(engine.registry().list_group("weather").is_empty());

    let client = FallbackClient::builder(engine.clone(), "weather")
        .server("near", &service)
        .build()
        .unwrap();
    let clone = client.clone();
    drop(client);
    assert_eq!(engine.registry().list_group("weather").len(), 1);
    drop(clone);
    assert!(engine.registry().list_group("weather").is_empty());
}

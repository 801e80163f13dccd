use std::io::{Error, ErrorKind};
use std::sync::Arc;

use ::http::{HeaderMap, Method, StatusCode, header};
use ::tower::{ServiceExt, service_fn};

use super::*;
use crate::registry::TargetSpec;
use crate::strategy::{Action, Decision, Entry, Situation, Strategy, StrategyInfo};
use crate::{Call, Kind};

/// Always asks the next target.
struct Next;

impl Strategy for Next {
    fn info(&self) -> StrategyInfo {
        StrategyInfo::new("next", "service")
    }
    fn condition(&self, _: &Situation) -> bool {
        true
    }
    fn action(&self, _: &Situation) -> Decision {
        let (target, target_kind) = (None, None);
        let action = Action::SwitchTarget {
            target,
            target_kind,
        };
        Decision::new(action, "another may do better")
    }
}

type Seen = Arc<Mutex<Vec<(String, HeaderMap)>>>;

/// What `one` gives at `http://one.example/base/`, and what was asked of it and of `two`, which always
/// answers.
async fn asked(
    request: Request<String>,
    one: fn() -> Result<Response<String>, Error>,
) -> (Result<Response<String>, HttpCallError>, Seen) {
    let engine = Engine::builder().build().unwrap();
    engine
        .strategies()
        .add(Entry::native(Next).unwrap())
        .unwrap();
    for (name, url, priority) in [
        ("one", "http://one.example/base/", 1),
        ("two", "https://two.example:8443", 0),
    ] {
        let spec = TargetSpec::service(name, "g").url(url).priority(priority);
        engine.registry().register(spec).unwrap();
    }
    let seen = Seen::default();
    let asked = seen.clone();
    let client = service_fn(move |request: Request<String>| {
        let uri = request.uri().to_string();
        let is_one = uri.starts_with("http://one.example");
        asked.lock().unwrap().push((uri, request.headers().clone()));
        async move {
            match is_one {
                true => one(),
                false => Ok(Response::new(request.into_body())),
            }
        }
    });
    let client = FallbackLayer::new(engine, "g").layer(client);
    (client.oneshot(request).await, seen)
}

fn request(method: Method) -> Request<String> {
    let request = Request::builder().method(method).uri("/a?b=c");
    let request = request.header(header::HOST, "here").header("x-kept", "yes");
    request.body("tea".to_owned()).unwrap()
}

fn status(status: u16) -> Result<Response<String>, Error> {
    let status = StatusCode::from_u16(status).unwrap();
    let response = Response::builder().status(status);
    Ok(response.body("no".to_owned()).unwrap())
}

fn reset() -> Result<Response<String>, Error> {
    Err(ErrorKind::ConnectionReset.into())
}

fn refused() -> Result<Response<String>, Error> {
    Err(ErrorKind::ConnectionRefused.into())
}

fn urls(seen: &Seen) -> Vec<String> {
    let seen = seen.lock().unwrap();
    seen.iter().map(|(url, _)| url.clone()).collect()
}

#[tokio::test]
async fn the_same_request_goes_to_the_next_target_at_its_own_address() {
    let (answer, seen) = asked(request(Method::GET), || status(503)).await;
    let answer = answer.unwrap();
    assert_eq!(answer.body(), "tea");
    let served = answer.extensions().get::<Served>().unwrap();
    assert_eq!((served.by.as_deref(), served.attempts), (Some("two"), 2));
    assert_eq!(
        urls(&seen),
        [
            "http://one.example/base/a?b=c",
            "https://two.example:8443/a?b=c"
        ]
    );
    for (_, headers) in &*seen.lock().unwrap() {
        assert!(!headers.contains_key(header::HOST));
        assert_eq!(headers["x-kept"], "yes");
    }
}

#[tokio::test]
async fn what_is_said_of_the_request_itself_is_the_answer() {
    for said in [
        || status(200),
        || status(304),
        || status(401),
        || status(404),
        || status(409),
        || status(422),
    ] as [fn() -> Result<Response<String>, Error>; 6]
    {
        let (answer, seen) = asked(request(Method::GET), said).await;
        let answer = answer.unwrap();
        let expected = said().unwrap().status();
        assert_eq!(answer.status(), expected);
        assert_eq!(answer.extensions().get::<Served>().unwrap().attempts, 1);
        assert_eq!(urls(&seen).len(), 1, "{expected}");
    }
}

#[tokio::test]
async fn what_may_have_been_carried_out_is_sent_again_only_where_the_method_or_the_call_allows_it()
{
    for (method, asked_of) in [
        (Method::GET, 2),
        (Method::PUT, 2),
        (Method::DELETE, 2),
        (Method::POST, 1),
        (Method::PATCH, 1),
    ] {
        let (answer, seen) = asked(request(method.clone()), reset).await;
        assert_eq!(urls(&seen).len(), asked_of, "{method}");
        assert_eq!(answer.is_ok(), asked_of == 2, "{method}");
        if let Err(error) = answer {
            assert!(
                error.to_string().starts_with("outcome unknown: "),
                "{error}"
            );
            assert_eq!(error.last.unwrap().to_string(), "connection reset");
        }
    }
    let mut repeatable = request(Method::POST);
    let call = Call::default().repeat_safety(RepeatSafety::Idempotent);
    repeatable.extensions_mut().insert(call);
    assert!(asked(repeatable, reset).await.0.is_ok());
    // It was certainly not carried out.
    assert!(asked(request(Method::POST), refused).await.0.is_ok());
}

#[tokio::test]
async fn the_last_answer_of_a_call_that_failed_is_the_callers() {
    let (answer, seen) = asked(request(Method::POST), || status(500)).await;
    let answer = answer.unwrap();
    assert_eq!(
        (answer.status().as_u16(), answer.body().as_str()),
        (500, "no")
    );
    let served = answer.extensions().get::<Served>().unwrap();
    assert_eq!((&served.by, served.attempts), (&None, 1));
    assert_eq!(urls(&seen).len(), 1);
}

#[tokio::test]
async fn without_any_answer_the_error_tells_the_call_and_the_clients_last_word() {
    let engine = Engine::builder().build().unwrap();
    // Without a URL the request goes where it says.
    let spec = TargetSpec::service("one", "g");
    engine.registry().register(spec).unwrap();
    let client = service_fn(|request: Request<String>| async move {
        Err::<Response<String>, _>(Error::other(request.uri().to_string()))
    });
    let client = FallbackLayer::new(engine, "g").layer(client);
    let error = client.oneshot(request(Method::GET)).await.unwrap_err();
    assert_eq!(&*error.call.operation, "GET /a");
    assert_eq!(error.call.kind(), &Kind::UNKNOWN);
    assert_eq!(error.last.unwrap().to_string(), "/a?b=c");
}

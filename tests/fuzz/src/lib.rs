//! Everything of backstop that reads what comes from outside, and what must hold of it whatever comes.
//!
//! Each function takes the bytes of one input. `tests/fuzz/run` gives them inputs by the million; the
//! test `fuzz_corpus` gives them those that are kept in `corpus`.
#![allow(missing_docs, unreachable_pub, clippy::panic, clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, SystemTime};

use backstop::config::Config;
use backstop::detect::hints::{self, MAX_HINT, Pushback};
use backstop::detect::{Detector, MAX_MESSAGE, Signal, TransportFault};
use backstop::{Failure, Kind};
use bytes::Bytes;
use serde_json::Value;

// The gateway's own files: its crate brings the sandbox with it.
#[allow(dead_code)]
#[path = "../../../host/gateway/src/envelope.rs"]
mod envelope_of_gateway;
#[allow(dead_code)]
#[path = "../../../host/gateway/src/upstream/sse.rs"]
mod sse_of_gateway;

use envelope_of_gateway::{Envelope, Json, Payload};

/// What a message may have: small, so that inputs reach it.
const MAX_MESSAGE_BYTES: usize = 4096;

/// Cuts the next so many bytes off, or all there are.
fn take<'a>(data: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (head, tail) = data.split_at(most.min(data.len()));
    *data = tail;
    head
}

fn byte(data: &mut &[u8]) -> u8 {
    take(data, 1).first().copied().unwrap_or_default()
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// Delay hints: headers, bodies, pushbacks. No hint is longer than the longest that is believed, and a
/// header as RFC 9110 has it is read as it says.
pub fn hints(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let after = hints::retry_after(&text, now());
    let digits = text.trim();
    if !digits.is_empty() && digits.len() < 8 && digits.bytes().all(|b| b.is_ascii_digit()) {
        assert_eq!(
            after,
            digits
                .parse()
                .ok()
                .map(|s| Duration::from_secs(s).min(MAX_HINT))
        );
    }
    let body: Option<Value> = serde_json::from_slice(data).ok();
    for hint in [
        after,
        hints::retry_after_ms(&text),
        hints::rate_limit_reset(&text, now()),
        body.as_ref().and_then(hints::in_body),
    ] {
        assert!(hint.unwrap_or_default() <= MAX_HINT, "{hint:?}");
    }
    if let Pushback::After(delay) = hints::pushback(&text) {
        assert!(delay <= Duration::from_millis(u32::MAX.into()));
    }
}

/// JSON-RPC messages. What is a message says the same when it is written anew; what is none gets an
/// answer that is a message, with an error of JSON-RPC's own.
pub fn envelope(data: &[u8]) {
    let bytes = Bytes::copy_from_slice(data);
    match Envelope::parse(bytes.clone()) {
        Ok(message) => {
            serde_json::from_slice::<serde::de::IgnoredAny>(data).expect("a message is JSON");
            written_anew(&message);
        }
        Err(refused) => {
            let answer = Envelope::parse(refused.answer()).expect("an answer is a message");
            let Envelope::Answer {
                answer: Payload::Error(error),
                ..
            } = answer
            else {
                panic!("not an error: {answer:?}");
            };
            let code = error.member("code").expect("a code").read::<i64>().unwrap();
            assert!([-32700, -32600].contains(&code), "{code}");
        }
    }
    // The same bytes as a part of a message.
    if let Ok(json) = Json::parse(bytes) {
        let edited = json.with_members(&[("a", None), ("b\"", Some(&json))]);
        assert_eq!(edited.member("b\"").as_ref(), Some(&json));
        assert_eq!(edited.member("a"), None);
        for element in json.elements() {
            serde_json::from_slice::<serde::de::IgnoredAny>(element.as_bytes())
                .expect("an element is JSON");
        }
        let _ = json.text_member("a");
    }
}

fn written_anew(message: &Envelope) {
    use envelope_of_gateway::{
        answer_message, error_message, notification_message, request_message,
    };
    let again = |bytes| Envelope::parse(bytes).expect("what was written is a message");
    match message {
        Envelope::Request { id, method, params } => {
            let Envelope::Request {
                method: m,
                params: p,
                ..
            } = again(request_message(7, method, params.as_ref()))
            else {
                panic!("no request any more: {message:?}");
            };
            assert_eq!((&m, &p), (method, params));
            let refused = again(error_message(Some(id), -32601, method, params.as_ref()));
            let Envelope::Answer {
                id: Some(back),
                answer: Payload::Error(error),
            } = refused
            else {
                panic!("no error: {refused:?}");
            };
            assert_eq!(&back, id);
            assert_eq!(error.text_member("message").as_deref(), Some(&**method));
            assert_eq!(&error.member("data"), params);
        }
        Envelope::Notification { method, params } => {
            let Envelope::Notification {
                method: m,
                params: p,
            } = again(notification_message(method, params.as_ref()))
            else {
                panic!("no notification any more: {message:?}");
            };
            assert_eq!((&m, &p), (method, params));
        }
        Envelope::Answer {
            id: Some(id),
            answer,
        } => {
            let Envelope::Answer { id: i, answer: a } = again(answer_message(id, answer)) else {
                panic!("no answer any more: {message:?}");
            };
            assert_eq!((i.as_ref(), &a), (Some(id), answer));
            assert_eq!(a.as_bytes(), answer.as_bytes());
        }
        Envelope::Answer { id: None, .. } => {}
    }
}

/// Server-sent events. However the stream is cut, the same events come out, or the same refusal.
pub fn sse(data: &[u8]) {
    let mut stream = data;
    let cuts = u64::from_le_bytes(std::array::from_fn(|_| byte(&mut stream)));
    let whole = events(std::iter::once(stream));
    let mut rest = stream;
    let mut cuts = cuts;
    let cut = events(std::iter::from_fn(|| {
        cuts = cuts.rotate_left(7).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        (!rest.is_empty()).then(|| take(&mut rest, 1 + (cuts % 9) as usize))
    }));
    // A stream that is too large as one piece may be emptied in time in small ones.
    if let Some(whole) = whole {
        assert_eq!(cut.as_ref(), Some(&whole));
        for event in whole.0 {
            assert!(!event.is_empty() && !event.contains(&b'\r'));
        }
    }
}

fn events<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> Option<(Vec<Bytes>, Option<Duration>)> {
    let mut events = sse_of_gateway::Events::default();
    let mut seen = Vec::new();
    for chunk in chunks {
        events.feed(chunk).ok()?;
        seen.extend(std::iter::from_fn(|| events.next()));
    }
    assert!(events.retry().unwrap_or_default() <= MAX_HINT);
    Some((seen, events.retry()))
}

/// Configuration files. Whatever is wrong in one stands at a line of it, and says what, and what to do;
/// what is read can be written.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let env = |name: &str| name.len().is_multiple_of(2).then(|| format!("[{name}]"));
    let loaded = Config::parse(text, Path::new("backstop.toml"), &env);
    let lines = text.split('\n').count();
    for diagnostic in &loaded.diagnostics {
        assert!((1..=lines).contains(&diagnostic.line), "{diagnostic:?}");
        assert!(diagnostic.column >= 1, "{diagnostic:?}");
        assert!(
            !diagnostic.message.is_empty() && !diagnostic.to_string().contains('\n'),
            "{diagnostic:?}"
        );
    }
    serde_json::to_value(&loaded.config).expect("a configuration can be shown");
}

/// What servers say of their failures. A message is cut, a hint is bounded, and no words, wherever they
/// stand, prove what a status or a code rules out.
pub fn detector(data: &[u8]) {
    let detector = Detector::default();
    let mut rest = data;
    let (which, status, flags) = (byte(&mut rest), byte(&mut rest), byte(&mut rest));
    let text = String::from_utf8_lossy(rest);
    let head: String = text.chars().take(60).collect();
    let failure = match which % 5 {
        0 => {
            use TransportFault::*;
            let fault = [Refused, Dns, Tls, NotSent, Reset, Eof, ProcessExit, Garbage]
                [usize::from(status % 8)];
            let failure = detector.detect(Signal::Transport {
                fault,
                message: &text,
            });
            assert_eq!(
                failure.ambiguous,
                !matches!(fault, Refused | Dns | Tls | NotSent)
            );
            failure
        }
        1 => {
            let status = 300 + u16::from(status) + u16::from(flags >> 7) * 44;
            let header = |name: &str| {
                let here = [
                    "retry-after",
                    "retry-after-ms",
                    "x-ratelimit-reset",
                    "grpc-retry-pushback-ms",
                ];
                let at = here.iter().position(|known| *known == name)?;
                (flags >> at & 1 == 1).then(|| head.clone())
            };
            let session = flags >> 4 & 1 == 1;
            let signal = Signal::Http {
                status,
                header: &header,
                body: rest,
                now: now(),
                session,
            };
            let failure = detector.detect(signal);
            assert_eq!(failure.http_status, Some(status));
            // An intermediary knows what it did, whatever is in the body.
            if matches!(status, 502 | 504) {
                assert!(failure.ambiguous && failure.ill_health, "{failure:?}");
            }
            if status == 401 {
                assert!(!failure.retryable && !failure.ill_health, "{failure:?}");
            }
            failure
        }
        2 => {
            let code = i64::from(i16::from_le_bytes([status, flags])) - 31_000;
            let (message, data) = text.split_once('\n').unwrap_or((&text, ""));
            let failure = detector.detect(Signal::JsonRpc {
                code,
                message,
                data: Some(data),
            });
            assert_eq!(failure.rpc_code.map(i64::from), Some(code));
            if code == -32603 {
                assert!(failure.ambiguous, "{failure:?}");
            }
            if (-32019..=-32000).contains(&code) && failure.kind != Kind::TOO_MANY_REQUESTS {
                let harmless = !failure.retryable || failure.kind == Kind::SESSION_EXPIRED;
                assert!(failure.ambiguous || harmless, "{failure:?}");
            }
            failure
        }
        3 => {
            let failure = detector.detect(Signal::ToolResult { text: &text });
            // The server is well: it answered. And nobody knows how far the tool came.
            assert!(!failure.ill_health, "{failure:?}");
            assert!(
                failure.ambiguous || failure.kind == Kind::TOOL_ERROR,
                "{failure:?}"
            );
            failure
        }
        _ => detector.detect(Signal::Error {
            class: &head,
            message: &text,
        }),
    };
    of_any(&failure);
}

fn of_any(failure: &Failure) {
    assert!(
        failure.message.len() <= MAX_MESSAGE + 16,
        "{} bytes",
        failure.message.len()
    );
    assert!(failure.retry_after.unwrap_or_default() <= MAX_HINT);
    assert!(!failure.kind.as_str().is_empty());
    serde_json::to_string(failure).expect("a failure can be shown");
}

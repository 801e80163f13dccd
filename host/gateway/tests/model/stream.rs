//! Streams: invisible switches before the first token, and an end that hides nothing after it.

use std::time::{Duration, Instant};

use backstop::circuit::CircuitState;
use futures_util::future::join_all;
use serde_json::json;

use crate::QUICK;
use crate::front::{Front, Heard, model, until};
use crate::provider::{Act, Provider, WORDS, whole_text};

struct Pair {
    primary: Provider,
    secondary: Provider,
    front: Front,
}

/// `completion` is added to the section of that name, which `QUICK` ends with.
async fn pair_with(completion: &str, secondary_keys: &str) -> Pair {
    let (primary, secondary) = (
        Provider::start("primary").await,
        Provider::start("secondary").await,
    );
    let config = [
        QUICK,
        completion,
        "\n",
        &model("primary", &primary, 10, ""),
        &model("secondary", &secondary, 1, secondary_keys),
    ]
    .concat();
    let front = Front::start(&config).await;
    Pair {
        primary,
        secondary,
        front,
    }
}

async fn pair() -> Pair {
    pair_with("", "").await
}

#[tokio::test]
async fn a_stream_passes_with_every_piece_and_its_end() {
    let Pair { primary, front, .. } = pair().await;
    let heard = front.streamed().await;
    assert!(heard.is_whole());
    assert_eq!(
        (heard.served_by.as_str(), heard.failed.as_str()),
        ("primary", "")
    );
    assert_eq!(heard.models, ["m-primary"]);
    assert_eq!(primary.seen()[0].headers["accept"], "text/event-stream");
}

/// Every fault that strikes before the first token.
fn early() -> Vec<Act> {
    vec![
        Act::Status(429, &[], json!({})),
        Act::Status(500, &[], json!({})),
        Act::Status(529, &[], json!({ "error": { "type": "overloaded_error" } })),
        Act::Cut(0),
        Act::Stall(0),
        Act::DoneEarly(0),
        Act::Malformed(0),
        Act::ErrorEvent(0, json!({ "message": "overloaded", "code": 503 })),
        Act::Bytes(r#"{"choices":[{"message":{"content":"no stream"},"finish_reason":"stop"}]}"#),
        Act::Bytes(r#"{"error":{"message":"overloaded","code":"503"}}"#),
        Act::Hang,
    ]
}

#[tokio::test]
async fn what_fails_before_the_first_token_is_never_seen() {
    for fault in early() {
        for lasts in [true, false] {
            let Pair { primary, front, .. } = pair().await;
            if lasts {
                primary.always(fault.clone());
            } else {
                primary.once(fault.clone());
            }
            let heard = front.streamed().await;
            assert!(heard.is_whole(), "{fault:?}: {heard:?}");
            assert!(heard.failed.starts_with("primary="), "{fault:?}: {heard:?}");
            assert_eq!(heard.models.len(), 1, "{fault:?}: {heard:?}");
            assert!(primary.hits() <= 4, "{fault:?}");
        }
    }
}

/// Every fault that strikes in the middle of an answer.
fn late(at: usize) -> Vec<Act> {
    vec![
        Act::Cut(at),
        Act::Stall(at),
        Act::DoneEarly(at),
        Act::Malformed(at),
        Act::ErrorEvent(at, json!({ "message": "it broke", "code": 502 })),
    ]
}

#[tokio::test]
async fn what_breaks_off_later_ends_with_an_error_and_no_finish() {
    for fault in late(3) {
        let Pair {
            primary,
            secondary,
            front,
        } = pair().await;
        primary.always(fault.clone());
        let heard = front.streamed().await;
        assert!(!heard.is_whole(), "{fault:?}");
        assert_eq!(heard.text, WORDS[..3].concat(), "{fault:?}");
        let error = heard.error.unwrap();
        assert!(
            error["message"]
                .as_str()
                .unwrap()
                .starts_with("the answer broke off: "),
            "{error}"
        );
        assert_eq!(error["backstop"]["attempts"][0]["target"], "primary");
        assert_eq!((primary.hits(), secondary.hits()), (1, 0), "{fault:?}");
    }
}

#[tokio::test]
async fn what_is_held_back_can_fail_unseen() {
    for held in ["hold_back_tokens = 5", "hold_back = '10s'"] {
        for fault in late(3) {
            let Pair { primary, front, .. } = pair_with(held, "").await;
            primary.always(fault.clone());
            let heard = front.streamed().await;
            assert!(heard.is_whole(), "{held} {fault:?}: {heard:?}");
            assert_eq!(heard.models, ["m-secondary"], "{held} {fault:?}");
        }
    }
}

#[tokio::test]
async fn what_is_held_back_by_time_comes_when_the_time_is_over() {
    let Pair { primary, front, .. } = pair_with("hold_back = '50ms'", "").await;
    primary.always(Act::Stall(2));
    let began = Instant::now();
    let response = front.ask("chat", true).send().await.unwrap();
    // The head comes before the model's silence has lasted too long.
    assert!(
        began.elapsed() < Duration::from_millis(290),
        "{:?}",
        began.elapsed()
    );
    let heard = Heard::of(response).await;
    assert!(!heard.is_whole() && heard.text == WORDS[..2].concat());
}

#[tokio::test]
async fn a_short_answer_that_is_held_back_whole_comes_whole() {
    let Pair { front, .. } = pair_with("hold_back_tokens = 10000", "").await;
    assert!(front.streamed().await.is_whole());
}

#[tokio::test]
async fn an_answer_that_is_finished_is_whole_without_its_sentinel() {
    for act in [Act::NoSentinel, Act::Answer] {
        let Pair { primary, front, .. } = pair().await;
        primary.always(act);
        let heard = front.streamed().await;
        assert!(heard.is_whole() && heard.served_by == "primary");
    }
}

#[tokio::test]
async fn tokens_that_come_slowly_but_come_are_waited_for() {
    let Pair { primary, front, .. } = pair().await;
    // Longer in all than the limits for the first token and between two.
    primary.always(Act::Slow(Duration::from_millis(110)));
    let heard = front.streamed().await;
    assert!(
        heard.is_whole() && heard.served_by == "primary",
        "{heard:?}"
    );
}

#[tokio::test]
async fn a_stream_that_breaks_off_counts_against_its_model() {
    let Pair { primary, front, .. } = pair().await;
    primary.always(Act::Cut(2));
    let target = front.engine.registry().get("primary").unwrap();
    for _ in 0..5 {
        assert!(!front.streamed().await.is_whole());
    }
    assert_eq!(target.circuit(), CircuitState::Open);
    let heard = front.streamed().await;
    assert!(heard.is_whole() && heard.served_by == "secondary");
}

#[tokio::test]
async fn a_stream_keeps_its_place_at_a_model_until_it_ends() {
    let provider = Provider::start("only").await;
    let front =
        Front::start(&[QUICK, &model("only", &provider, 1, "max_concurrent = 1")].concat()).await;
    provider.always(Act::Slow(Duration::from_millis(50)));
    let first = front.ask("chat", true).send().await.unwrap();
    let refused = front
        .answer(front.ask("chat", true).header("x-backstop-fallback", "off"))
        .await;
    assert_eq!(
        (refused.status, &refused.error()["code"]),
        (503, &"overloaded".into())
    );
    assert!(Heard::of(first).await.is_whole());
    assert!(front.streamed().await.is_whole());
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_request_to_the_model() {
    let Pair { primary, front, .. } = pair().await;
    primary.always(Act::Endless);
    let mut response = front.ask("chat", true).send().await.unwrap();
    response.chunk().await.unwrap();
    assert_eq!(primary.open(), 1);
    drop(response);
    until(|| primary.open() == 0).await;
    let target = front.engine.registry().get("primary").unwrap();
    until(|| target.in_flight() == 0).await;
    assert_eq!(target.circuit(), CircuitState::Closed);

    primary.always(Act::Hang);
    let waiting = front
        .ask("chat", false)
        .timeout(Duration::from_millis(50))
        .send();
    assert!(waiting.await.is_err());
    until(|| target.in_flight() == 0).await;
}

#[tokio::test]
async fn a_client_that_reads_slowly_slows_the_model_and_fills_no_memory() {
    let Pair { primary, front, .. } = pair().await;
    primary.always(Act::Endless);
    let mut response = front.ask("chat", true).send().await.unwrap();
    response.chunk().await.unwrap();
    let mut before = usize::MAX;
    // What the sockets and their buffers take, the model may send; then it has to wait.
    while primary.sent_bytes() != before {
        before = primary.sent_bytes();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(before < 64 << 20, "{before}");
    // It goes on as the client reads.
    for _ in 0..2000 {
        response.chunk().await.unwrap();
    }
    until(|| primary.sent_bytes() > before).await;
}

#[tokio::test]
async fn a_model_that_may_goes_on_where_another_broke_off() {
    for fault in late(3) {
        let Pair {
            primary,
            secondary,
            front,
        } = pair_with("continuation = true", "prefill = true").await;
        primary.always(fault.clone());
        let heard = front.streamed().await;
        assert!(heard.is_whole(), "{fault:?}: {heard:?}");
        assert_eq!(heard.models, ["m-primary", "m-secondary"]);
        let messages = &secondary.seen()[0].body["messages"];
        assert_eq!(
            messages[1],
            json!({ "role": "assistant", "content": WORDS[..3].concat() })
        );
    }
}

#[tokio::test]
async fn one_that_breaks_off_as_well_is_followed_by_a_third() {
    let third = Provider::start("third").await;
    let (primary, secondary) = (
        Provider::start("primary").await,
        Provider::start("secondary").await,
    );
    let config = [
        QUICK,
        "continuation = true\n",
        &model("primary", &primary, 10, ""),
        &model("secondary", &secondary, 5, "prefill = true"),
        &model("third", &third, 1, "prefill = true"),
    ]
    .concat();
    let front = Front::start(&config).await;
    primary.always(Act::Cut(3));
    secondary.always(Act::Cut(2));
    let heard = front.streamed().await;
    assert!(heard.is_whole(), "{heard:?}");
    assert_eq!(heard.models, ["m-primary", "m-secondary", "m-third"]);
}

#[tokio::test]
async fn where_nobody_may_go_on_the_cause_is_told_and_not_the_refusal() {
    // Nobody is allowed to.
    let Pair {
        primary,
        secondary,
        front,
    } = pair_with("continuation = true", "").await;
    primary.always(Act::Cut(3));
    let heard = front.streamed().await;
    assert!(!heard.is_whole());
    assert_eq!(
        (heard.error.unwrap()["code"].as_str(), secondary.hits()),
        (Some("stream_interrupted"), 0)
    );

    // One is said to be able, and is not.
    let Pair {
        primary,
        secondary,
        front,
    } = pair_with("continuation = true", "prefill = true").await;
    primary.always(Act::Cut(3));
    let refusal = json!({ "error": { "message": "This model does not support assistant message prefill.", "type": "invalid_request_error" } });
    secondary.always(Act::Status(400, &[], refusal));
    let heard = front.streamed().await;
    assert!(!heard.is_whole());
    let error = heard.error.unwrap();
    assert_eq!(error["code"], "stream_interrupted");
    assert!(
        !error["message"].as_str().unwrap().contains("prefill"),
        "{error}"
    );
    assert_eq!(error["backstop"]["attempts"][1]["target"], "secondary");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_streams_with_random_cuts_are_whole_or_say_that_they_are_not() {
    let Pair {
        primary,
        secondary,
        front,
    } = pair().await;
    let random = backstop::random::seeded(7);
    let mut cuts = 0;
    for _ in 0..200 {
        for provider in [&primary, &secondary] {
            // A third is cut before the first token, a third in the middle, a third not at all.
            match random() % 3 {
                0 => provider.once(Act::Cut(0)),
                1 => provider.once(Act::Cut(1 + random() as usize % 7)),
                _ => provider.once(Act::Answer),
            }
            cuts += 1;
        }
    }
    let heard = join_all((0..200).map(|_| front.streamed())).await;
    let whole = heard.iter().filter(|heard| heard.is_whole()).count();
    assert_eq!(cuts, 400);
    assert!(whole > 40, "{whole}");
    assert!(whole < 200, "some are cut in the middle");
    for provider in [&primary, &secondary] {
        until(|| provider.open() == 0).await;
    }
    for name in ["primary", "secondary"] {
        let target = front.engine.registry().get(name).unwrap();
        until(|| target.in_flight() == 0).await;
    }
    assert!(
        heard
            .iter()
            .filter(|heard| heard.error.is_none())
            .all(|heard| heard.text == whole_text())
    );
}

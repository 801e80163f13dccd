//! A primary that is away for a minute, and a client that asks every four seconds.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::front::{Front, model};
use crate::provider::Provider;

const EVERY: Duration = Duration::from_secs(4);
const OUTAGE: Duration = Duration::from_secs(60);
const RECOVERY: Duration = Duration::from_secs(30);

/// What happened to each request, and what reached the primary.
async fn outage() {
    let (primary, secondary) = (
        Provider::start("primary").await,
        Provider::start("secondary").await,
    );
    let config = [
        model("primary", &primary, 10, ""),
        model("secondary", &secondary, 1, ""),
    ]
    .concat();
    let front = Front::start(&config).await;
    primary.always(crate::provider::Act::Answer);
    assert_eq!(front.whole().await.body["model"], "m-primary");

    // Away means here that every request is met by 503: so the provider itself counts what reaches it.
    let away = crate::provider::Act::Status(503, &[], serde_json::json!({}));
    primary.always(away);
    let (began, before) = (Instant::now(), primary.hits());
    let mut asked = 0;
    while began.elapsed() < OUTAGE {
        let answer = front.whole().await;
        assert_eq!(
            (answer.status, &answer.body["model"]),
            (200, &"m-secondary".into()),
            "{}",
            answer.text
        );
        asked += 1;
        sleep(EVERY).await;
    }
    assert!(asked >= 14, "{asked}");
    let reached: Vec<u128> = primary.seen()[before..]
        .iter()
        .map(|seen| (seen.at - began).as_millis())
        .collect();
    // Until the circuit opens, requests are no probes.
    let opened = reached.get(4).copied().unwrap_or_default();
    let probes = reached.iter().filter(|at| **at > opened).count();
    eprintln!("reached the dead primary after (ms): {reached:?}; probes: {probes}");
    assert!(probes <= 4, "{reached:?}");
    assert!(reached.len() <= 9, "{reached:?}");

    primary.always(crate::provider::Act::Answer);
    let recovered = Instant::now();
    loop {
        let answer = front.whole().await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        if answer.body["model"] == "m-primary" {
            break;
        }
        assert!(recovered.elapsed() < RECOVERY, "not used again");
        sleep(EVERY).await;
    }
    assert!(recovered.elapsed() < RECOVERY);
}

/// The clock runs up to twenty times as fast; connections are real. With `BACKSTOP_REAL_TIME` set, by
/// the real clock: about a minute and a half.
#[test]
fn every_request_of_an_outage_is_answered_and_the_primary_is_left_alone() {
    let real = std::env::var_os("BACKSTOP_REAL_TIME").is_some();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(!real)
        .build()
        .unwrap();
    runtime.block_on(async {
        if real {
            return outage().await;
        }
        let clock = tokio::spawn(async {
            loop {
                // While a blocking task runs the clock does not go on by itself, only here.
                let tick = || std::thread::sleep(Duration::from_millis(1));
                tokio::task::spawn_blocking(tick).await.unwrap();
                tokio::time::advance(Duration::from_millis(20)).await;
            }
        });
        outage().await;
        clock.abort();
    });
}

//! What the fuzzer found worth keeping, replayed: every reader of what comes from outside keeps its promises.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use std::path::Path;

fn replay(target: &str, run: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut inputs = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let data = std::fs::read(&path).unwrap();
        // The file's name is what a failure has to tell.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&data)));
        assert!(
            outcome.is_ok(),
            "{} breaks a promise of {target}",
            path.display()
        );
        inputs += 1;
    }
    assert!(inputs > 2, "{inputs} inputs in {}", folder.display());
}

#[test]
fn delay_hints() {
    replay("hints", fuzz::hints);
}

#[test]
fn json_rpc_messages() {
    replay("envelope", fuzz::envelope);
}

#[test]
fn server_sent_events() {
    replay("sse", fuzz::sse);
}

#[test]
fn configurations() {
    replay("config", fuzz::config);
}

#[test]
fn what_servers_say_of_their_failures() {
    replay("detector", fuzz::detector);
}

//! A corpus of hostile components: each is contained, reported by its name and with the right reason,
//! and the call is saved by the next strategy.

#[allow(dead_code, reason = "shared with tests that need the rest")]
mod corpus;

use std::time::{Duration, Instant};

use backstop_tests::engines::{steps_of, taken};
use corpus::{Hostile, call, faulting, harmless, refused, script, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_a_strategy_is_refused_by_name_and_reason_and_hides_no_other() {
    let corpus = refused();
    assert!(corpus.len() >= 30, "{}", corpus.len());
    let began = Instant::now();
    let started = start(&corpus).await;
    let took = began.elapsed();
    for hostile in &corpus {
        let field = format!("{:?}", hostile.name);
        let about: Vec<_> = started
            .diagnostics
            .iter()
            .filter(|said| said.field.contains(&field))
            .collect();
        assert_eq!(about.len(), 1, "{}: {about:?}", hostile.name);
        let said = about[0].to_string();
        assert!(
            hostile.says.iter().any(|part| said.contains(part)),
            "{}: {said}",
            hostile.name
        );
        assert!(said.len() < 2_000, "{}: {} bytes", hostile.name, said.len());
        assert!(started.engine.strategies().get(hostile.name).is_none());
    }
    assert_eq!(started.strategies().len(), 6);
    // Nobody's compiler or parser was kept busy.
    assert!(took < Duration::from_secs(60), "{took:?}");
    let (call, request) = call("bad");
    let outcome = started
        .engine
        .call(&script(), call, &request)
        .await
        .unwrap();
    assert_eq!(outcome.answer, "b's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_is_contained_and_named_and_the_next_strategy_saves_the_call() {
    let corpus = faulting();
    assert!(corpus.len() >= 30, "{}", corpus.len());
    let started = start(&corpus).await;
    assert_eq!(started.diagnostics, []);
    let (call, request) = call("bad");
    let outcome = started
        .engine
        .call(&script(), call, &request)
        .await
        .unwrap();
    assert_eq!(outcome.answer, "b's");
    let steps = steps_of(&outcome);
    assert_eq!(taken(&steps), ["service-failover"]);
    for hostile in &corpus {
        let (_, verdict, said) = steps
            .iter()
            .find(|(name, ..)| name == hostile.name)
            .unwrap_or_else(|| panic!("{} was not asked", hostile.name));
        assert_eq!(*verdict, "faulted", "{}: {said}", hostile.name);
        assert!(
            hostile.says.iter().any(|part| said.contains(part)),
            "{}: {said}",
            hostile.name
        );
        assert!(said.len() < 1_000, "{}: {} bytes", hostile.name, said.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_with_a_bit_turned_over_is_refused_or_harmless() {
    let good = harmless();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        // xorshift64: the same files every time.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random % below as u64).unwrap()
    };
    let mut turned = Vec::new();
    for n in 0..64 {
        let mut bytes = good.clone();
        let (at, bit) = (next(bytes.len()), next(8));
        bytes[at] ^= 1 << bit;
        turned.push(Hostile {
            name: format!("turned-{n}").leak(),
            bytes,
            says: &[],
        });
    }
    let started = start(&turned).await;
    let (call, request) = call("bad");
    // Some still decide: then the guard has the last word. The call ends, one way or the other.
    let outcome = started.engine.call(&script(), call, &request).await;
    let refused = started.diagnostics.len();
    assert!(refused > 0 && refused < 64, "{refused} of 64 refused");
    match outcome {
        Ok(outcome) => assert!(["a's", "b's"].contains(&&*outcome.answer)),
        Err(failed) => assert!(!failed.error.trouble.steps.is_empty()),
    }
}

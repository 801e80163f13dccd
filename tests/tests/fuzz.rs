//! Anything at all, as a component file and as a decision: no panic, no leak, and an answer in time.
//!
//! Each runs for some seconds with a seed that is always the same. `BACKSTOP_FUZZ_SECONDS=600` runs
//! them for as long, `BACKSTOP_FUZZ_SEED=N` with another seed.

#[allow(dead_code, reason = "shared with tests that need the rest")]
mod corpus;

use std::time::{Duration, Instant};

use arbitrary::Unstructured;
use backstop::call::{Call, RepeatSafety};
use backstop::strategy::component::{ComponentStrategy, Frozen, LoadError, StrategyOptions, stock};
use backstop::strategy::{Entry, Situation, StrategyFault};
use backstop::{Failure, Kind};
use backstop_tests::engines::{RUNTIME, services, start_in};
use backstop_tests::script::{Request, Script, bad, good};

/// Both look at the memory of the whole process.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn time() -> Duration {
    Duration::from_secs(number("BACKSTOP_FUZZ_SECONDS", 3))
}

/// splitmix64.
struct Chance(u64);

impl Chance {
    fn new(salt: u64) -> Self {
        Self(number("BACKSTOP_FUZZ_SEED", 1).wrapping_mul(0x1234_5678_9abc_def1) ^ salt)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound.max(1) as u64).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}

/// The sections of a binary, each with its header.
fn sections(bytes: &[u8]) -> Vec<&[u8]> {
    let (mut list, mut at) = (Vec::new(), 8);
    while at + 1 < bytes.len() {
        let (mut length, mut shift, mut end) = (0_usize, 0, at + 1);
        while let Some(byte) = bytes.get(end) {
            length |= usize::from(byte & 0x7f) << shift;
            (shift, end) = (shift + 7, end + 1);
            if byte & 0x80 == 0 || shift > 28 {
                break;
            }
        }
        let next = (end + length).min(bytes.len());
        list.push(&bytes[at..next]);
        at = next;
    }
    list
}

/// A valid component of any shape, or one around a valid module that runs when it is instantiated.
fn valid(chance: &mut Chance) -> Option<Vec<u8>> {
    let noise: Vec<u8> = (0..512 + chance.below(4096))
        .map(|_| chance.byte())
        .collect();
    let mut noise = Unstructured::new(&noise);
    if chance.below(2) == 0 {
        let component = wasm_smith::Component::new(wasm_smith::Config::default(), &mut noise);
        return Some(component.ok()?.to_bytes());
    }
    let config = wasm_smith::Config {
        max_imports: 0,
        allow_start_export: true,
        ..wasm_smith::Config::default()
    };
    let module = wasm_smith::Module::new(config, &mut noise).ok()?.to_bytes();
    let mut bytes = b"\0asm\x0d\0\x01\0".to_vec();
    section(1, &module, &mut bytes);
    // One core instance: module 0, given nothing.
    section(2, &[1, 0, 0, 0], &mut bytes);
    Some(bytes)
}

/// Adds a section, its length in LEB128.
fn section(id: u8, content: &[u8], to: &mut Vec<u8>) {
    to.push(id);
    let mut length = content.len();
    while length > 0x7f {
        to.push(length.to_le_bytes()[0] | 0x80);
        length >>= 7;
    }
    to.push(length.to_le_bytes()[0]);
    to.extend(content);
}

/// A file made from a good one, a valid one of any shape, or nothing but chance.
fn file(chance: &mut Chance, seeds: &[Vec<u8>]) -> Vec<u8> {
    if chance.below(4) == 0
        && let Some(bytes) = valid(chance)
    {
        return bytes;
    }
    let seed = &seeds[chance.below(seeds.len())];
    let mut bytes = seed.clone();
    match chance.below(8) {
        0 => {
            let mut noise: Vec<u8> = (0..chance.below(4096)).map(|_| chance.byte()).collect();
            // With a header, so that it is read at all.
            if chance.below(4) > 0 {
                noise.splice(..0, *b"\0asm\x0d\0\x01\0");
            }
            return noise;
        }
        1 => bytes.truncate(chance.below(seed.len())),
        // Sections left out, doubled and in another order.
        2..=4 => {
            let mut parts = sections(seed);
            for _ in 0..=chance.below(3) {
                if parts.len() < 2 {
                    break;
                }
                let (one, other) = (chance.below(parts.len()), chance.below(parts.len()));
                match chance.below(3) {
                    0 => parts.swap(one, other),
                    1 => parts.insert(one, parts[other]),
                    _ => drop(parts.remove(one)),
                }
            }
            bytes = [&seed[..8], &parts.concat()].concat();
        }
        _ => {}
    }
    for _ in 0..chance.below(6) {
        let at = chance.below(bytes.len());
        if let Some(byte) = bytes.get_mut(at) {
            *byte = match chance.below(4) {
                0 => *byte ^ (1 << chance.below(8)),
                1 => 0xff,
                2 => 0,
                _ => chance.byte(),
            };
        }
    }
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_lies_in_a_file_loading_it_ends_with_a_strategy_or_a_reason() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let mut chance = Chance::new(1);
    let mut seeds: Vec<_> = corpus::faulting()
        .into_iter()
        .map(|one| one.bytes)
        .collect();
    seeds.extend([corpus::harmless(), corpus::says_anything()]);
    seeds.extend(stock().iter().take(1).map(|(_, bytes)| bytes.to_vec()));
    let (end, mut before) = (Instant::now() + time(), None);
    let (mut loaded, mut refused) = (0_u32, 0_u32);
    while Instant::now() < end || loaded + refused < 100 {
        let bytes = file(&mut chance, &seeds);
        match ComponentStrategy::load(&RUNTIME, "any", bytes, StrategyOptions::default()).await {
            Ok(_) => loaded += 1,
            Err(LoadError::Aborted { .. }) => panic!("a panic in the work beside"),
            Err(error) => {
                refused += 1;
                let said = error.to_string();
                assert!(said.contains("plugin any") && said.len() < 4_000, "{said}");
                assert!(!said.contains(['\n', '\u{1b}']), "{said:?}");
            }
        }
        if loaded + refused == 100 {
            before = Some(corpus::resident());
        }
    }
    let grown = corpus::resident().saturating_sub(before.unwrap());
    println!("{loaded} loaded, {refused} refused, {grown} bytes more");
    assert!(refused > 50, "{refused}");
    assert!(
        grown < 96 << 20,
        "{grown} bytes more after {} files",
        loaded + refused
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_strategy_says_the_call_ends_and_nothing_unsafe_is_done() {
    let _alone = ONE_AT_A_TIME.lock().await;
    let home = tempfile::tempdir().unwrap();
    let text = format!(
        "{}[[strategy]]\nplugin = \"service-failover\"\nconfig = {{ kinds = [\"Hostile\"] }}\n",
        services(&["a", "b"])
    );
    let mut before = None;
    let engine = start_in(home.path(), &text).await.engine;
    // It is asked for as long as the test runs, whatever it says.
    let options = StrategyOptions {
        quarantine: serde_json::from_str(r#"{ "faults": 4000000000 }"#).unwrap(),
        ..StrategyOptions::default()
    };
    let strategy = ComponentStrategy::load(&RUNTIME, "any", corpus::says_anything(), options)
        .await
        .unwrap();
    let entry = Entry::component(strategy.clone()).unwrap();
    engine
        .strategies()
        .add(entry.named("any").with_priority(9999))
        .unwrap();
    let (end, mut calls, mut chance) = (Instant::now() + time(), 0_u32, Chance::new(2));
    let (mut accepted, mut refused) = (0_u32, 0_u32);
    while Instant::now() < end || calls < 200 {
        // By itself, with what it may say checked.
        let situation = Situation::of(Failure::new(Kind::TIMEOUT_ERROR, "late"));
        let frozen = Frozen {
            seed: chance.next(),
            ..Frozen::default()
        };
        match strategy.rehearse(&situation, &frozen).await.outcome {
            Ok(decision) => {
                let decision = decision.unwrap();
                assert!(decision.reason.len() <= 4096, "{}", decision.reason.len());
                accepted += 1;
            }
            Err(StrategyFault::Garbage(_) | StrategyFault::Trap(_) | StrategyFault::Timeout(_)) => {
                refused += 1;
            }
            Err(other) => panic!("{other}"),
        }
        // In a call that may not be repeated.
        let call = Call::new("g", "pay").repeat_safety(RepeatSafety::Unsafe);
        let request = Request::new("pay", "{}");
        // One for each call: it remembers what was sent.
        let script = Script::default()
            .on("a", bad(Kind::new("Hostile")))
            .on("b", good("b's"));
        if let Ok(outcome) = engine.call(&script, call, &request).await {
            let by_target = outcome.served_by.is_some();
            assert!(by_target || outcome.degraded.is_some());
        }
        calls += 1;
        if calls == 200 {
            before = Some(corpus::resident());
        }
    }
    let grown = corpus::resident().saturating_sub(before.unwrap());
    println!("{calls} calls, {accepted} decisions accepted, {refused} refused, {grown} bytes more");
    assert!(
        accepted > 0 && refused > 0,
        "{accepted} accepted, {refused} refused"
    );
    assert!(grown < 64 << 20, "{grown} bytes more after {calls} calls");
}

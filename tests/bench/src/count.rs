//! Instructions of one operation, counted by valgrind's callgrind, and held against a stored budget.
//!
//! Unlike times they do not drift with the machine or with what else it does: of the same build two
//! counts differ by less than a hundredth. So a change that makes a call dearer is found at once.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitCode};

use crate::decision::{ours, ready, situation};
use crate::{failing, happy};
use backstop::strategy::{Entry, StrategyInfo};
use backstop::{Call, Engine, Kind};

/// How often each operation is counted. The median is taken: a tick of the sandbox's clock, or a block the
/// metrics recorder allocates, falls into some of the counts.
const COUNTS: usize = 15;

/// More than the budget by this share fails.
const TOLERANCE: f64 = 0.05;

/// The operations, in the order in which they are counted, and how many make one count.
const OPERATIONS: [(&str, u64); 5] = [
    ("healthy call", 20),
    ("decision, reused instance", 5),
    ("decision, fresh instance", 1),
    ("a strategy that is not interested", 100),
    ("a call whose first attempt fails", 1),
];

/// Callgrind counts what happens inside this function and writes it down each time it returns.
#[unsafe(no_mangle)]
#[inline(never)]
fn backstop_counted(work: &mut dyn FnMut()) {
    work();
}

/// Runs the operations, each as often as it is counted: what callgrind watches.
pub fn run() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let [(_, healthy), (_, reused), (_, fresh), (_, unmatched), _] = OPERATIONS;

    let (engine, call): (Engine, Call) = (happy::engine(), happy::call());
    let calls = |times: u64| {
        runtime.block_on(async {
            for _ in 0..times {
                std::hint::black_box(happy::execute(&engine, &call).await);
            }
        });
    };
    calls(100);
    count(|| {}, || calls(healthy));

    let (now, ours) = (situation(), ours(&runtime));
    for (strategy, times) in [(&ours.reused, reused), (&ours.fresh, fresh)] {
        let entry = Entry::component(strategy.clone()).expect("an entry");
        let decide = |times: u64| {
            runtime.block_on(async {
                for _ in 0..times {
                    std::hint::black_box(entry.decide(&now).await.expect("a decision"));
                }
            });
        };
        // Made beside the call, so not counted.
        let prepare = || runtime.block_on(ready(strategy));
        for _ in 0..5 {
            prepare();
            decide(1);
        }
        count(prepare, || decide(times));
    }

    let mut info = StrategyInfo::new("elsewhere", "service");
    info.kinds = vec![Kind::UNAUTHORIZED, Kind::new("QuotaOfTeamSpent")];
    info.operations = vec!["create_*".into()];
    let interest = info.interest().expect("an interest");
    let matches = || {
        for _ in 0..unmatched {
            let now = std::hint::black_box(&now);
            std::hint::black_box(interest.matches(&now.failure.kind, &now.operation));
        }
    };
    count(|| {}, matches);

    let failing = failing::failing(&ours.fresh);
    let prepare = || {
        failing.forget();
        runtime.block_on(ready(&ours.fresh));
    };
    let call = || {
        std::hint::black_box(runtime.block_on(failing.execute()));
    };
    for _ in 0..5 {
        prepare();
        call();
    }
    count(prepare, call);
}

fn count(mut prepare: impl FnMut(), mut work: impl FnMut()) {
    for _ in 0..COUNTS {
        prepare();
        backstop_counted(&mut work);
    }
}

/// Counts, prints a line for each operation, and fails where one costs more than its budget.
pub fn check(budget: &Path) -> ExitCode {
    let text = std::fs::read_to_string(budget).expect("the budget is read");
    // Instructions of one operation each, by name.
    let budget: BTreeMap<String, u64> = serde_json::from_str(&text).expect("a budget");
    let mut exit = ExitCode::SUCCESS;
    println!("instructions of one operation (callgrind), the budget, their ratio");
    for (name, counted) in measure() {
        let Some(&allowed) = budget.get(name) else {
            println!("{name}: {counted}, and the budget does not name it");
            exit = ExitCode::FAILURE;
            continue;
        };
        let ratio = counted as f64 / allowed as f64;
        let verdict = match ratio {
            r if r > 1.0 + TOLERANCE => {
                exit = ExitCode::FAILURE;
                "TOO MANY: find out what it does more, or raise the budget and say why"
            }
            r if r < 1.0 - TOLERANCE => "fewer: lower the budget, so that it stays so",
            _ => "ok",
        };
        println!("{name}: {counted} of {allowed}, {ratio:.3}: {verdict}");
    }
    exit
}

fn measure() -> Vec<(&'static str, u64)> {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("count");
    let me = std::env::current_exe().expect("this program");
    let ran = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no"])
        .args([
            "--toggle-collect=backstop_counted",
            "--dump-after=backstop_counted",
        ])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(me)
        .arg("--counted")
        .output()
        .expect("valgrind runs");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(
        ran.status.success(),
        "valgrind says {}:\n{said}",
        ran.status
    );
    let dump = |n: usize| {
        let path = format!("{}.{n}", out.display());
        let text = std::fs::read_to_string(&path).expect("a dump of callgrind");
        let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
        let total = total.and_then(|total| total.trim().parse::<u64>().ok());
        total.expect("a total in the dump")
    };
    let median = |(index, (name, times)): (usize, &(&'static str, u64))| {
        let mut counts: Vec<_> = (1..=COUNTS).map(|n| dump(index * COUNTS + n)).collect();
        counts.sort_unstable();
        (*name, counts[COUNTS / 2] / times)
    };
    OPERATIONS.iter().enumerate().map(median).collect()
}

//! backstop beside what people could use instead. `tests/bench/run` builds and runs it.
//!
//! `backstop-bench GUEST OUT [--short] [SECTION...]`: GUEST is the peer's plugin, OUT the folder for
//! `bench.json` and `bench.svg`; sections are `happy`, `decision`, `failing` and `scale`.
//! `backstop-bench --count BUDGET` counts instructions instead, and holds them against a budget.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::panic)]

mod count;
mod decision;
mod failing;
mod floor;
mod happy;
mod measure;
#[cfg(feature = "peers")]
mod peers;
mod plot;
mod report;
mod scale;

use std::path::Path;
use std::process::ExitCode;

use measure::Sample;
use plot::Plot;
use report::{Machine, Report};

#[global_allocator]
static ALLOCATOR: measure::Counting = measure::Counting;

fn main() -> ExitCode {
    let (options, words): (Vec<_>, Vec<_>) = std::env::args()
        .skip(1)
        .partition(|word| word.starts_with("--"));
    let is_given = |name: &str| options.iter().any(|option| option == name);
    if is_given("--count") {
        let [budget] = &*words else {
            panic!("usage: backstop-bench --count BUDGET")
        };
        return count::check(Path::new(budget));
    }
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new()
        .set_buckets(&backstop::metrics::DURATION_BUCKETS)
        .expect("buckets")
        .install_recorder()
        .expect("a recorder");
    if is_given("--counted") {
        count::run();
        return ExitCode::SUCCESS;
    }
    let [guest, out, sections @ ..] = &*words else {
        panic!("usage: backstop-bench GUEST OUT [--short] [SECTION...]")
    };
    let short = is_given("--short");
    let is_wanted = |name: &str| sections.is_empty() || sections.iter().any(|word| word == name);
    let rounds = if short { 600 } else { 3_000 };
    let upkeep = || recorder.run_upkeep();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    let (mut report, mut plot) = (Report::default(), Plot::new());
    if is_wanted("happy") {
        happy_path(
            &mut report,
            &mut plot,
            &happy::run(&runtime, rounds, upkeep),
        );
    }
    if is_wanted("decision") {
        decisions(
            &mut report,
            &mut plot,
            &decision::run(&runtime, rounds, Path::new(guest)),
        );
    }
    if is_wanted("failing") {
        let strategy = decision::ours(&runtime).fresh;
        under_failure(
            &mut report,
            &mut plot,
            &failing::run(&runtime, rounds, &strategy),
        );
    }
    if is_wanted("scale") {
        let plugins: &[u64] = if short {
            &[1, 10, 100]
        } else {
            &[1, 10, 100, 1_000]
        };
        report
            .curves
            .extend(scale::targets(&runtime, rounds / 4, upkeep));
        report.curves.push(scale::events(&runtime, upkeep));
        report.curves.extend(scale::in_flight(&runtime, rounds / 2));
        report.curves.extend(scale::plugins(plugins));
        plot.curves(&report.curves);
    }
    report.machine = Machine::now();
    let out = Path::new(out);
    let json = serde_json::to_string_pretty(&report).expect("JSON");
    std::fs::write(out.join("bench.json"), json).expect("bench.json is written");
    std::fs::write(out.join("bench.svg"), plot.finish()).expect("bench.svg is written");
    let Machine {
        cores,
        processor,
        load,
    } = &report.machine;
    println!(
        "{cores} cores, {processor}; load at the end {load}\n\n{}",
        report.table()
    );
    ExitCode::SUCCESS
}

fn median(samples: &[Sample], name: &str) -> f64 {
    let found = samples.iter().find(|sample| sample.name == name);
    found.map_or(f64::NAN, Sample::median)
}

fn happy_path(report: &mut Report, plot: &mut Plot, measured: &happy::Happy) {
    const SECTION: &str = "healthy call";
    let (one, two) = (&measured.one, &measured.two);
    report.section(SECTION, one);
    report.section("two threads, one host", two);
    for (name, allocations) in &measured.allocations {
        report.figure("heap allocations of a call", name, "", *allocations);
    }
    plot.bars("A healthy call, one thread", one);
    plot.bars("A healthy call, two threads on one host (wall clock)", two);
    let ours = median(one, "backstop");
    let share = ours / median(one, "tower-resilience");
    report.target(SECTION, "share of tower-resilience's stack", share, 0.2);
    report.target(SECTION, "nanoseconds", ours, 300.0);
    report.target(SECTION, "heap allocations", measured.allocations[0].1, 0.0);
    let share = median(two, "backstop") / ours;
    report.target(
        SECTION,
        "wall clock of a call on two threads, over that on one",
        share,
        0.6,
    );
    report.target(
        SECTION,
        "the same at a target that works for 10 µs",
        measured.labour,
        0.6,
    );
}

fn decisions(report: &mut Report, plot: &mut Plot, all: &[Sample]) {
    const SECTION: &str = "decision";
    report.section(SECTION, all);
    plot.bars("A decision: condition and action", all);
    let (reused, fresh) = (
        median(all, "backstop, reused"),
        median(all, "backstop, fresh"),
    );
    let floor = median(all, "empty component call");
    report.target(
        SECTION,
        "reused, in empty component calls",
        reused / floor,
        5.0,
    );
    report.target(SECTION, "reused, nanoseconds", reused, 1_000.0);
    report.target(
        SECTION,
        "fresh, nanoseconds on the call's path",
        fresh,
        10_000.0,
    );
    report.target(
        SECTION,
        "reused, share of extism",
        reused / median(all, "extism"),
        1.0 / 25.0,
    );
    report.target(
        SECTION,
        "reused, share of rhai",
        reused / median(all, "rhai"),
        0.25,
    );
    report.target(
        SECTION,
        "no interest, nanoseconds",
        median(all, "no interest"),
        20.0,
    );
}

fn under_failure(report: &mut Report, plot: &mut Plot, measured: &failing::Failing) {
    const SECTION: &str = "under failure";
    report.section(SECTION, &measured.all);
    report.section("after a recovery", &measured.recovery);
    plot.bars("Under failure", &measured.all);
    let open = median(&measured.all, "circuit open") / median(&measured.all, "healthy");
    report.target(SECTION, "circuit open, over healthy", open, 1.1);
    let [after, never] = &measured.recovery;
    report.target(
        SECTION,
        "p99 of the second after a recovery, over healthy",
        after.p99() / never.p99(),
        1.5,
    );
}

//! Scenario files: what is read, and what is said of what is wrong.

use std::time::Duration;

use crate::config::scenario::{How, LoadedScenario, Scenario, Selection};
use crate::detect::TransportFault;
use crate::kind::Kind;

use super::*;

const CONFIG: &str = "[[service]]\nname = 'search-eu'\ngroup = 'search'\nurl = 'http://a/mcp'\n\
                      [[service]]\nname = 'search-us'\ngroup = 'search'\nurl = 'http://b/mcp'\n\
                      [[model]]\nname = 'small'\nbase_url = 'http://c/v1'\n";

fn read(text: &str) -> LoadedScenario {
    let config = parse(CONFIG).config;
    assert_eq!(config.services.len() + config.models.len(), 3);
    Scenario::parse(text, Path::new("s.toml"), &config)
}

#[track_caller]
fn wrong(text: &str, said: &str) {
    let found = read(text).diagnostics;
    assert_eq!(found.len(), 1, "{found:#?}");
    let line = found[0].to_string();
    assert!(line.contains(said), "{line}");
    assert!(found[0].is_error());
}

const EVERYTHING: &str = r#"
description = "d"
duration = "2m"
seed = 7
latency = "80ms"
[[calls]]
group = "search"
operation = "look"
per_second = 0.5
from = "1s"
until = "1m"
repeat = "unsafe"
arguments = { q = 1 }
[[fault]]
target = "search-us"
group = "search"
operation = "lo*"
from = "10s"
until = "1m30s"
every = "20s"
lasts = "5s"
share = 0.5
beyond = "3/s"
http = 429
latency = "20ms"
message = "slow down"
retry_after = "4s"
probes = true
[[fault]]
kind = "TeamQuota"
[[fault]]
target = "others"
transport = "reset"
[[fault]]
target = "all"
json_rpc = -32000
[[fault]]
tool_error = "no"
[[fault]]
silent = true
[[fault]]
latency = "3s"
"#;

#[test]
fn every_key_is_read() {
    let read = read(EVERYTHING);
    assert_eq!(read.diagnostics, []);
    let scenario = read.scenario;
    let seconds = Duration::from_secs;
    assert_eq!((scenario.duration, scenario.seed), (seconds(120), 7));
    assert_eq!(scenario.latency, Duration::from_millis(80));
    let calls = &scenario.calls[0];
    assert_eq!(
        (calls.group.as_deref(), &*calls.operation),
        (Some("search"), "look")
    );
    assert_eq!((calls.per_second, calls.from), (0.5, seconds(1)));
    assert_eq!(calls.arguments, serde_json::json!({ "q": 1 }));
    let first = &scenario.faults[0];
    assert_eq!(first.target, Selection::Named("search-us".into()));
    assert_eq!(first.cycle, Some((seconds(20), seconds(5))));
    assert_eq!((first.share, first.probes), (0.5, true));
    assert_eq!(first.beyond.unwrap().requests.get(), 3);
    assert_eq!(first.retry_after, Some(seconds(4)));
    let hows: Vec<&How> = scenario.faults.iter().map(|fault| &fault.how).collect();
    let expected = [
        How::Http(429),
        How::Kind(Kind::new("TeamQuota")),
        How::Transport(TransportFault::Reset),
        How::JsonRpc(-32000),
        How::ToolError("no".into()),
        How::Silent,
        How::Slow,
    ];
    assert_eq!(hows, expected.iter().collect::<Vec<_>>());
    // Who is hit where nothing is said, and whether probes are.
    assert_eq!(scenario.faults[1].target, Selection::First);
    let probes: Vec<bool> = scenario.faults.iter().map(|fault| fault.probes).collect();
    assert_eq!(probes, [true, false, true, false, false, true, false]);
}

#[test]
fn the_example_of_the_documentation_is_right() {
    let text = include_str!("../scenario.md");
    let (_, block) = text.split_once("```toml\n").unwrap();
    let (block, _) = block.split_once("\n```").unwrap();
    let read = read(block);
    assert_eq!(read.diagnostics, []);
    assert_eq!(read.scenario.faults.len(), 2);
}

#[test]
fn without_calls_every_group_is_called() {
    let scenario = read("").scenario;
    assert_eq!((scenario.calls.len(), scenario.faults.len()), (1, 0));
    assert_eq!(scenario.calls[0].group, None);
}

#[test]
fn each_mistake_is_told_with_its_place_and_the_nearest_name() {
    wrong(
        "[[fault]]\nkind = 'ConnectionError'\nuntill = '1m'\n",
        "s.toml:3:1: fault[0].untill: unknown key \"untill\": did you mean \"until\"?",
    );
    wrong(
        "[[fault]]\ntarget = 'search-as'\nsilent = true\n",
        "s.toml:2:10: fault[0].target: unknown target \"search-as\": did you mean \"search-us\"?",
    );
    wrong(
        "[[fault]]\ntarget = 'firts'\nsilent = true\n",
        "did you mean \"first\"? Write one of \"first\", \"others\", \"all\", \"search-eu\"",
    );
    wrong(
        "[[calls]]\ngroup = 'serach'\n",
        "s.toml:2:9: calls[0].group: unknown group \"serach\": did you mean \"search\"?",
    );
    wrong(
        "[[fault]]\ntransport = 'rest'\n",
        "unknown transport fault \"rest\": did you mean \"reset\"?",
    );
    wrong(
        "[[fault]]\nhttp = 503\nsilent = true\n",
        "fault[0].silent: two ways to fail: it says http and silent",
    );
    wrong(
        "[[fault]]\n",
        "s.toml:1:1: fault[0]: no fault: it does not say what happens",
    );
    wrong("[[fault]]\nsilent = false\n", "fault[0].silent: no fault");
    wrong("[[fault]]\nhttp = 200\n", "200 is not from 300 to 599");
    wrong(
        "[[fault]]\nsilent = true\nfrom = '1m'\nuntil = '30s'\n",
        "fault[0].until: out of range: it ends before it begins",
    );
    wrong(
        "[[fault]]\nsilent = true\nfrom = '10m'\n",
        "fault[0].from: out of range: the scenario is over by then",
    );
    wrong(
        "[[fault]]\nsilent = true\nevery = '10s'\n",
        "fault[0].every: half a cycle: a fault that comes and goes needs lasts",
    );
    wrong(
        "[[fault]]\nsilent = true\nevery = '10s'\nlasts = '10s'\n",
        "it comes again before it has gone",
    );
    wrong(
        "[[fault]]\nsilent = true\nretry_after = '1s'\n",
        "fault[0].retry_after: no effect",
    );
    wrong(
        "duration = '24h'\n[[calls]]\nper_second = 100\n",
        "too many calls: it makes about 17280000 calls, of at most 200000",
    );
    wrong("duration = '1m'\nfault = 3\n", "a list of tables is wanted");
    wrong("[[fault]\n", "not TOML");
}

#[test]
fn a_file_that_ends_anywhere_is_read_as_far_as_it_can_be() {
    for (end, _) in EVERYTHING.char_indices() {
        for found in read(&EVERYTHING[..end]).diagnostics {
            assert!(found.line > 0 && !found.message.is_empty(), "{found}");
        }
    }
}

#[test]
fn a_kind_that_looks_like_a_known_one_is_a_warning() {
    let found = read("[[fault]]\nkind = 'TimeoutEror'\n").diagnostics;
    assert!(
        found[0]
            .to_string()
            .contains("did you mean \"TimeoutError\"?")
    );
    assert!(!found[0].is_error());
}

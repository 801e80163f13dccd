"""What the author of a strategy does: start one, build it, test it, drop it in. In every language."""

import itertools
import json
import os
import shutil
import subprocess

import pytest

import client
from processes import BACKSTOP, PLUGINS, ROOT, TARGET, TESTS, Gateway, run, service

EXAMPLES = ROOT / "plugins/examples"
CASES = EXAMPLES / "cases.toml"
LANGUAGES = ["rust", "javascript", "python", "c"]

# Compiled components are kept from one run to the next: two of them are large.
ENV = {"XDG_CACHE_HOME": str(TARGET / "e2e-cache")}
# A busy machine is not a slow strategy.
PATIENT = ["--deadline", "10s"]


@pytest.fixture(scope="session")
def examples():
    """The example strategy, built in every language."""
    folder = TARGET / "examples"
    subprocess.run(
        [TESTS / "tools/build-examples", folder],
        env={**os.environ, "BACKSTOP_BIN": str(BACKSTOP)},
        check=True,
        timeout=900,
    )
    return {language: folder / f"{language}.wasm" for language in LANGUAGES}


def plugin(*arguments, limit=300.0, cwd=None, env=None):
    """Runs `backstop plugin`, for as long as a large component may take to be compiled."""
    return subprocess.run(
        [BACKSTOP, "plugin", *map(str, arguments)],
        env={**os.environ, **ENV, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit,
        cwd=cwd,
        check=False,
    )


def shown(ended):
    assert ended.returncode == 0, ended.stderr + ended.stdout
    return json.loads(ended.stdout)


# ---- every language -----------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_same_cases_pass_in_every_language(language, examples):
    report = shown(plugin("test", examples[language], "--cases", CASES, *PATIENT, "--json"))
    assert report["failed"] == 0
    assert report["passed"] == len(report["reports"]) >= 8


def _contexts():
    """Some dozens of situations around the edges of what the example looks at."""
    targets = [
        {"name": "b", "priority": 5, "healthy": False},
        {"name": "c", "priority": 1, "attributes": {"url": "http://c"}},
        {"name": "d", "kind": "model", "admitted": False},
    ]
    known = {"age": "90s", "target": "é\u4e16", "body": {"n": 1}}
    for attempts, listed, old in itertools.product([1, 2, 100], range(4), [None, known]):
        context = {
            "failure": {"kind": "TimeoutError", "message": "\u4e16界"},
            "call": {"group": "g", "operation": "find"},
            "target": "a",
            "targets": [{"name": "a", "priority": 9}, *targets[:listed]],
            "attempts": attempts,
        }
        if old:
            context["last_known_good"] = old
        yield context


def test_every_language_decides_alike(examples, tmp_path):
    # One process for each language: what the first decides is what the others must.
    cases = []
    for number, context in enumerate(_contexts()):
        cases.append({"name": str(number), **context, "expect": {"reason": "to be seen"}})
    reference = tmp_path / "reference.json"
    reference.write_text(json.dumps({"case": cases}))
    ended = plugin("test", examples["rust"], "--cases", reference, *PATIENT, "--json")
    assert ended.returncode == 1, "no case can have this reason"
    reasons = set()
    for case, report in zip(cases, json.loads(ended.stdout)["reports"], strict=True):
        (difference,) = report["differences"]
        reason = difference["actual"]
        # Where nothing is proposed, there is no reason.
        case["expect"] = {"condition": reason is not None}
        if reason is not None:
            case["expect"]["reason"] = reason
            case["expect"]["log"] = report["log"]
        reasons.add(reason)
    assert len(reasons) >= 5, reasons
    expected = tmp_path / "expected.json"
    expected.write_text(json.dumps({"case": cases}))
    for language in LANGUAGES:
        report = shown(plugin("test", examples[language], "--cases", expected, *PATIENT, "--json"))
        assert report["passed"] == len(cases), language


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_component_of_any_language_is_dropped_in_and_saves_a_call(
    language, examples, pair, tmp_path
):
    primary, secondary = pair
    folder = tmp_path / "plugins"
    folder.mkdir()
    shutil.copy(examples[language], folder / "next-best.wasm")
    config = tmp_path / "backstop.toml"
    # Its limits are the default ones, but for the time of a decision on a busy machine.
    config.write_text(
        'plugins = "plugins"\nstock = false\n'
        + service("primary", url=primary.url, group="g", priority=10)
        + service("secondary", url=secondary.url, group="g", priority=1)
        + '[[strategy]]\nplugin = "next-best"\nconfig = { after = 1 }\n'
        + 'limits = { decision_deadline = "5s", configure_deadline = "20s" }\n'
    )

    async def scenario(gateway):
        async with client.connect(gateway.url) as connection:
            assert await client.instance(connection) == "primary"
            primary.kill()
            assert await client.instance(connection) == "secondary"

    with Gateway(config, env=ENV) as gateway:
        client.run(scenario(gateway))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_component_of_any_language_is_in_order_and_can_be_inspected(language, examples):
    component = examples[language]
    checked = shown(plugin("check", component, *PATIENT, "--json"))
    assert checked["ok"]
    assert not [it for it in checked["findings"] if it["severity"] == "error"]
    # The file has the language's name, not the strategy's: that is worth a warning.
    (warning,) = [it for it in checked["findings"] if it["severity"] == "warning"]
    assert warning["about"] == "name" and "next-best" in warning["what"]

    seen = shown(plugin("inspect", component, "--json"))
    info = seen["component"]["info"]
    assert (info["name"], info["default_priority"]) == ("next-best", 90)
    assert seen["component"]["contract"] == "0.1.0"
    assert seen["component"]["size"] == component.stat().st_size
    assert seen["usable"] and seen["routes"] == []
    assert seen["limits"]["decision-deadline-ms"] == 50
    assert not [it for it in seen["component"]["imports"] if "sockets" in it or "http" in it]


# ---- from nothing to a strategy -----------------------------------------------------------------


def test_a_new_strategy_builds_passes_its_tests_and_decides(tmp_path):
    made = plugin("new", "impatient", "--sdk", ROOT / "sdk", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    project = tmp_path / "impatient"
    # The versions the workspace has: nothing is fetched for a test.
    shutil.copy(ROOT / "Cargo.lock", project)
    env = {"CARGO_TARGET_DIR": str(TARGET / "examples/target"), "CARGO_NET_OFFLINE": "true"}
    built = plugin("build", cwd=project, limit=600, env=env)
    assert built.returncode == 0, built.stderr
    assert "dist/impatient.wasm" in built.stdout and "sha256:" in built.stdout

    tested = plugin("test", *PATIENT, cwd=project)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert tested.stdout.endswith("8 passed, 0 failed\n")
    checked = plugin("check", *PATIENT, cwd=project)
    assert checked.returncode == 0, checked.stdout
    assert "is in order" in checked.stdout and "warning" not in checked.stdout

    context = {
        "failure": {"kind": "ConnectionError"},
        "attempts": 2,
        "target": "a",
        "targets": [{"name": "a"}, {"name": "b"}],
    }
    decided = plugin("run", *PATIENT, "--context", json.dumps(context), cwd=project)
    assert decided.returncode == 0, decided.stderr
    assert 'action: {"switch_target":{"target":"b"}}' in decided.stdout
    assert "reason: b is the next best after 2 attempts" in decided.stdout
    decided = plugin("run", *PATIENT, "--context", '{"failure":{"kind":"TimeoutError"}}', cwd=project)
    assert decided.stdout == "condition: false\n"
    decided = plugin("run", "--context", '{"failure":{"kind":"NotFound"}}', cwd=project)
    assert decided.stdout.startswith("not asked")


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_new_project_is_the_example_under_another_name(language, tmp_path):
    flag = {"javascript": "js"}.get(language, language)
    made = plugin("new", "mine", "--lang", flag, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    project, example = tmp_path / "mine", EXAMPLES / language

    def files(folder):
        found = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in found}

    made, wanted = files(project), {}
    for path, content in files(example).items():
        wanted[path] = content
    for path in (example / "wit").glob("*.wit") if (example / "wit").exists() else []:
        wanted[f"wit/{path.name}"] = path.read_bytes()
    wanted["cases.toml"] = CASES.read_bytes()
    version = b'version = "0.1.0"'
    for path, content in wanted.items():
        content = content.replace(b'path = "../../../sdk"', version)
        content = content.replace(b"next-best", b"mine").replace(b"NextBest", b"Mine")
        assert made.pop(path) == content, path
    assert made == {}


def test_a_project_that_cannot_be_started_is_refused_and_nothing_is_overwritten(tmp_path):
    (tmp_path / "taken").mkdir()
    refused = plugin("new", "taken", cwd=tmp_path)
    assert refused.returncode == 1 and "taken is there already" in refused.stderr
    assert not list((tmp_path / "taken").iterdir())
    for name in ["../escape", "Upper", "self"]:
        refused = plugin("new", name, cwd=tmp_path)
        assert refused.returncode == 2 and "cannot be the strategy's name" in refused.stderr
    refused = plugin("new", "fine", "--sdk", "no/such/folder", cwd=tmp_path)
    assert refused.returncode == 1 and "no/such/folder" in refused.stderr
    refused = plugin("new", "fine", "--lang", "c", "--sdk", ".", cwd=tmp_path)
    assert refused.returncode == 2 and "--sdk is for --lang rust" in refused.stderr
    assert not (tmp_path / "fine").exists()


def test_a_build_that_fails_says_which_tool_and_what_to_do(tmp_path):
    refused = plugin("build", tmp_path)
    assert refused.returncode == 1 and "is no project" in refused.stderr
    project = tmp_path / "broken"
    project.mkdir()
    (project / "strategy.c").write_text("")
    (project / "build.sh").write_text("echo a message of the compiler; exit 3")
    failed = plugin("build", project)
    assert failed.returncode == 1
    assert "a message of the compiler" in failed.stderr and "sh failed" in failed.stderr
    (project / "build.sh").write_text("")
    failed = plugin("build", project)
    assert failed.returncode == 1 and "there is no component in" in failed.stderr


# ---- cases --------------------------------------------------------------------------------------


def test_a_case_that_fails_is_shown_as_a_difference(examples, tmp_path):
    cases = tmp_path / "cases.toml"
    cases.write_text(
        """
        [[case]]
        name = "wrong target"
        attempts = 2
        target = "a"
        targets = [{ name = "a" }, { name = "b" }]
        failure = { kind = "TimeoutError" }
        expect = { action = { switch_target = { target = "c" } } }
        """
    )
    failed = plugin("test", examples["rust"], "--cases", cases, *PATIENT)
    assert failed.returncode == 1
    lines = [line.strip() for line in failed.stdout.splitlines()]
    assert lines[0].startswith("FAILED  wrong target")
    assert lines[1:4] == ["action.switch_target.target", 'expected  "c"', 'got       "b"']
    assert "log: a is left after 2 attempts" in lines
    assert lines[-1] == "0 passed, 1 failed"


def test_cases_that_cannot_be_read_are_refused_by_name(examples, tmp_path):
    cases = tmp_path / "cases.toml"
    cases.write_text('[[case]]\nname = "x"\nfialure = {}\nexpect = { condition = true }\n')
    refused = plugin("test", examples["rust"], "--cases", cases)
    assert refused.returncode == 2
    assert 'case "x"' in refused.stderr and "fialure" in refused.stderr
    refused = plugin("test", examples["rust"], "--cases", tmp_path / "none.toml")
    assert refused.returncode == 2 and "none.toml" in refused.stderr
    refused = plugin("test", examples["rust"], cwd=tmp_path / "..")
    assert refused.returncode == 1 and "--cases" in refused.stderr


@pytest.mark.parametrize("how, fault", [("trap", "trap"), ("loop", "timeout"), ("hoard", "memory")])
def test_a_fault_is_an_outcome_a_case_can_expect(how, fault, misbehave, tmp_path):
    component = tmp_path / "misbehave.wasm"
    component.write_bytes(misbehave)
    cases = tmp_path / "cases.json"
    case = {"name": "x", "config": {"when": "action", "how": how}, "expect": {"fault": fault}}
    cases.write_text(json.dumps({"case": [case]}))
    # Memory is hoarded page by page: that may take longer than a loop needs to be stopped.
    deadline = "300ms" if how == "loop" else "20s"
    passed = plugin("test", component, "--cases", cases, "--deadline", deadline)
    assert passed.returncode == 0, passed.stdout
    config = json.dumps(case["config"])
    run_alone = plugin("run", component, "--config", config, "--deadline", deadline, "--json")
    assert run_alone.returncode == 1
    assert json.loads(run_alone.stdout)["fault"]["kind"] == fault
    checked = plugin("check", component, "--config", config, "--deadline", deadline, "--json")
    assert checked.returncode == 1
    (error,) = [it for it in json.loads(checked.stdout)["findings"] if it["severity"] == "error"]
    assert error["about"] == "decision" and error["remedy"]


# ---- check, inspect, bench ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "content, what, remedy",
    [
        (b"no wasm at all", "not a WebAssembly file", "wasm32-wasip2"),
        (b"\0asm\x01\0\0\0", "a core WebAssembly module", "wasm-tools component new"),
        (b"\0asm\x0d\0\x01\0\x07", "damaged", "copy or build it again"),
        (b"\0asm\x0d\0\x01\0", "not a fallback strategy", "backstop:strategy"),
    ],
)
def test_what_is_no_strategy_fails_the_check_with_what_and_remedy(
    content, what, remedy, tmp_path
):
    component = tmp_path / "x.wasm"
    component.write_bytes(content)
    checked = plugin("check", component, "--json")
    assert checked.returncode == 1
    (finding,) = json.loads(checked.stdout)["findings"]
    assert finding["severity"] == "error"
    assert what in finding["what"] and remedy in finding["remedy"], finding
    checked = plugin("check", component)
    assert checked.returncode == 1 and "has 1 error" in checked.stdout
    inspected = plugin("inspect", component)
    assert inspected.returncode == 1 and what in inspected.stderr


def test_what_a_strategy_wants_is_shown_beside_what_it_gets(tmp_path):
    component = PLUGINS / "data-fallback.wasm"
    seen = shown(plugin("inspect", component, "--json"))
    wanted = seen["grants"]["wanted"]
    checked = shown(plugin("check", component, *PATIENT, "--json"))
    noted = [it["what"] for it in checked["findings"] if it["about"] == "capabilities"]
    assert noted == [f"it wants `{capability}`" for capability in wanted]
    text = plugin("inspect", component, "--folder", tmp_path).stdout
    for part in ["limits", "decision deadline", "contract    0.1.0", "sha256", "grants"]:
        assert part in text, text

    both = TESTS / "compat/witness-0.1.0.wasm"
    text = plugin("inspect", both, "--folder", tmp_path).stdout
    assert "state: wanted, not given, folder: wanted, given" in text, text
    assert "grants.state = true" in text, text
    seen = shown(plugin("inspect", both, "--state", "--folder", tmp_path, "--json"))
    assert seen["grants"]["wanted"] == ["state", "folder"]
    assert seen["grants"]["given"] == {"folder": str(tmp_path), "state": True}


def test_a_configuration_a_strategy_refuses_is_an_error_of_the_check(misbehave, tmp_path):
    component = tmp_path / "misbehave.wasm"
    component.write_bytes(misbehave)
    checked = plugin("check", component, "--json")
    assert checked.returncode == 1
    errors = [it for it in json.loads(checked.stdout)["findings"] if it["severity"] == "error"]
    assert errors[0]["about"] == "config" and "--config" in errors[0]["remedy"]
    # What it is can be seen all the same.
    seen = shown(plugin("inspect", component, "--json"))
    assert seen["component"]["info"]["name"] == "misbehave"
    assert not seen["usable"] and seen["routes"] is None and "config" in seen["problem"]


def test_a_command_line_that_is_wrong_says_how_it_is_right(tmp_path):
    component = PLUGINS / "retry.wasm"
    for arguments, part in [
        (["check", component, "--deadline", "5"], "50ms"),
        (["check", component, "--memory", "1"], "64MiB"),
        (["run", component, "--context", "{"], "--context takes a JSON object"),
        (["run", component, "--config", "x"], "--config takes a JSON object"),
        (["check", component, "--memory", "1B"], "memory-bytes = 1 is out of range"),
        (["check", tmp_path / "none.wasm"], "none.wasm"),
    ]:
        refused = plugin(*arguments)
        assert refused.returncode in (1, 2) and part in refused.stderr, refused.stderr
    refused = plugin("check", cwd=tmp_path)
    assert refused.returncode == 1 and "backstop plugin build" in refused.stderr


def test_a_bench_measures_loading_and_deciding(tmp_path):
    context = json.dumps({"failure": {"kind": "ConnectionError"}, "next_delay": "1s"})
    measured = shown(
        plugin("bench", PLUGINS / "retry.wasm", *PATIENT, "--context", context, "--decisions", 20, "--json")
    )
    assert measured["load_cold_ms"] > measured["load_cached_ms"] > 0
    assert [cost["what"] for cost in measured["decision"]] == [
        "fresh instance, made on demand",
        "fresh instance, kept ready",
        "reused instance",
    ]
    assert all(0 < cost["median_us"] <= cost["p99_us"] for cost in measured["decision"])
    text = run("plugin", "bench", PLUGINS / "retry.wasm", *PATIENT, "--decisions", 10).stdout
    assert "load, compiled now" in text and "reused instance" in text

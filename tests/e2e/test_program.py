"""What a person or a script does with the program itself."""

import json
import time

from processes import run, service


def test_the_demo_saves_what_can_be_saved_within_fifteen_seconds():
    began = time.monotonic()
    ended = run("demo", "--json")
    took = time.monotonic() - began
    assert ended.returncode == 0, ended.stderr
    shown = json.loads(ended.stdout)
    calls, summary = shown["calls"], shown["summary"]
    for call in calls:
        assert set(call) >= {
            "name", "outcome", "served_by", "degraded", "attempts", "strategies"
        }
    assert summary["calls"] == len(calls) >= 10
    assert summary["lost"] == 0
    assert summary["saved"] == sum(call["outcome"] == "saved" for call in calls) >= 7
    assert summary["failed_clean"] >= 1
    saved = [call for call in calls if call["outcome"] == "saved"]
    assert all(call["strategies"] for call in saved)
    # A stored answer is served by nobody, and says that it is one.
    assert all(call["served_by"] or call["degraded"] for call in saved)
    assert calls[-1]["served_by"] == calls[0]["served_by"], "the primary is used again"
    assert took < 15, f"{took:.1f} s"

    # The whole way round, down to primary again, step by step.
    steps = shown["way_round"]
    names = [step["step"] for step in steps]
    wanted = ["down", "fallback", "open", "left_alone", "mended", "half_open", "closed", "primary"]
    rest = iter(names)
    assert all(name in rest for name in wanted), names
    times = [step["at_ms"] for step in steps]
    opened = names.index("open")
    # An earlier scene may have left a circuit to be tried: the one that counts comes after the opening.
    tried = names.index("half_open", opened)
    assert times[tried] - times[opened] >= 250, "a circuit that is open lets nothing through"


def test_the_demo_is_readable_without_json():
    ended = run("demo")
    assert ended.returncode == 0, ended.stderr
    assert "saved" in ended.stdout


def test_one_call_from_the_shell(write_config, everything):
    config = write_config(service("everything", url=everything.url))
    arguments = json.dumps({"message": "from the shell"})
    ended = run("call", "--config", config, "echo", "--arguments", arguments)
    assert ended.returncode == 0, ended.stderr
    assert "Echo: from the shell" in ended.stdout

    ended = run("call", "--config", config, "echo", "--arguments", arguments, "--json")
    assert ended.returncode == 0, ended.stderr
    assert "Echo: from the shell" in json.dumps(json.loads(ended.stdout))


def test_a_call_from_the_shell_that_fails_says_why(write_config, everything):
    config = write_config(service("everything", url=everything.url))
    ended = run("call", "--config", config, "echo", "--arguments", "{")
    assert ended.returncode != 0
    assert "--arguments" in ended.stderr + ended.stdout
    ended = run("call", "--config", config, "no-such-tool")
    assert ended.returncode != 0
    assert "no-such-tool" in ended.stderr + ended.stdout


def test_help_names_every_command():
    ended = run("--help")
    assert ended.returncode == 0
    for command in ["demo", "serve", "call", "check"]:
        assert command in ended.stdout

"""What an operator sees of a running program without a browser: the terminal, the event log, metrics."""

import json
import os
import subprocess
import threading
import urllib.error
import urllib.request

import pytest

from admin import ADMIN, Observed, text
from processes import BACKSTOP, free_port, run, table, wait_until, who

# One failure opens a circuit, and health checks do not interfere.
STEADY = table("[circuit]", consecutive_failures=1, open_for="60s") + table(
    "[health]", interval="1h"
)


def configured(write_config, servers, *parts):
    return write_config(STEADY, *parts, *who(servers))


def test_status_events_and_explain_tell_in_a_terminal_what_saved_a_call(write_config, servers):
    primary, _ = servers
    with Observed(configured(write_config, servers, ADMIN)) as gateway:
        here = ("--admin", gateway.admin)
        assert text(gateway.call("who")) == "primary"
        assert "nothing is wrong" in run("status", *here).stdout

        follower = subprocess.Popen(
            [BACKSTOP, "events", *here, "--json"], stdout=subprocess.PIPE, text=True
        )
        events = []

        def follow():
            for line in follower.stdout:
                events.append(json.loads(line))

        threading.Thread(target=follow, daemon=True).start()
        try:
            # Until it listens, events pass it by.
            wait_until(lambda: _stir(gateway) or events, "the first event")
            primary.kill()
            answer = gateway.call("who")
            assert text(answer) == "secondary"
            wait_until(lambda: any(e["event"] == "call_saved" for e in events), "call_saved")
        finally:
            follower.kill()
            follower.wait()
        names = [event["event"] for event in events]
        assert names.index("attempt_failed") < names.index("call_saved")
        assert "circuit_opened" in names

        # The id in the answer is the one that explains it.
        call = answer["result"]["_meta"]["backstop"]["call"]
        gateway.until("/api/calls", lambda calls: any(c["call"] == call for c in calls))
        explained = run("explain", call, *here)
        assert explained.returncode == 0, explained.stderr
        for told in [f"call {call}", "answered by secondary", "1. original", "ConnectionError"]:
            assert told in explained.stdout, explained.stdout
        as_json = json.loads(run("explain", call, *here, "--json").stdout)
        assert as_json["explanation"]["attempts"][0]["target"] == "primary"

        slip = run("events", *here, "--only", "call_savd")
        assert slip.returncode == 1
        assert 'there is no event "call_savd": did you mean "call_saved"?' in slip.stderr

        status = run("status", *here).stdout
        assert 'target "primary": its circuit is open' in status
        assert 'calls go to "secondary"' in status
        assert json.loads(run("status", *here, "--json").stdout)["calls"]["saved"] == 1

        unknown = run("explain", "c999999", *here)
        assert unknown.returncode == 1
        assert "no call c999999 is remembered" in unknown.stderr


def _stir(gateway):
    gateway.ask("/api/targets/secondary/drain", {})
    gateway.ask("/api/targets/secondary/restore", {})
    return False


def test_top_draws_again_and_again_until_nobody_reads(write_config, servers):
    with Observed(configured(write_config, servers, ADMIN)) as gateway:
        top = subprocess.Popen(
            [BACKSTOP, "top", "--admin", gateway.admin], stdout=subprocess.PIPE, text=True
        )
        try:
            drawn = ""
            while drawn.count("\x1b[H") < 2 or "/s" not in drawn:
                drawn += top.stdout.readline()
                assert len(drawn) < 100_000, drawn
            assert "group who" in drawn
            top.stdout.close()
            assert top.wait(20) == 0
        finally:
            top.kill()


def test_the_terminal_finds_the_endpoint_and_the_token_by_the_configuration(
    write_config, servers
):
    admin = table("[admin]", listen=f"127.0.0.1:{free_port()}", token_env="OPERATORS")
    config = configured(write_config, servers, admin)
    token = {"OPERATORS": "s3cret"}
    with Observed(config, token, "s3cret") as gateway:
        good = run("status", "--config", config, env=token)
        assert good.returncode == 0 and "nothing is wrong" in good.stdout, good.stderr
        wrong = run("status", "--config", config, env={"OPERATORS": "guess"})
        assert wrong.returncode == 1 and "wants a token" in wrong.stderr, wrong.stderr
        by_hand = run("status", "--admin", gateway.admin, env={"BACKSTOP_ADMIN_TOKEN": "s3cret"})
        assert by_hand.returncode == 0, by_hand.stderr
    gone = run("status", "--config", config, env=token)
    assert gone.returncode == 1 and "is `backstop serve` running" in gone.stderr, gone.stderr


def test_without_its_token_the_program_does_not_start(write_config, servers):
    for admin, reason in [
        (table("[admin]", listen="0.0.0.0:0"), "needs a token"),
        (table("[admin]", listen="127.0.0.1:0", token_env="NOT_SET"), "NOT_SET"),
    ]:
        config = configured(write_config, servers, admin)
        ended = run("serve", "--config", config, "--listen", "127.0.0.1:0")
        assert ended.returncode == 1, ended.stderr
        assert reason in ended.stderr, ended.stderr


def test_events_are_written_line_by_line_and_a_full_file_makes_room(
    write_config, servers, tmp_path
):
    log = table("[events]", file="events.jsonl", max_size="2KiB", keep=2)
    with Observed(configured(write_config, servers, ADMIN, log)) as gateway:
        # Two lines of some 70 bytes each.
        for _ in range(60):
            _stir(gateway)
        files = [tmp_path / name for name in ("events.jsonl.2", "events.jsonl.1", "events.jsonl")]
        wait_until(lambda: files[0].exists(), "the third file")
        gateway.child.terminate()
        assert gateway.child.wait(20) == 0, gateway.output()
    events = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert {event["event"] for event in events} >= {"target_held", "target_released"}
    assert [event["at"] for event in events] == sorted(event["at"] for event in events)
    assert all(os.path.getsize(file) <= 2048 for file in files)
    assert not (tmp_path / "events.jsonl.3").exists()


def test_prometheus_is_told_what_the_program_did(write_config, servers):
    primary, _ = servers
    with Observed(configured(write_config, servers, ADMIN)) as gateway:
        gateway.call("who")
        primary.kill()
        gateway.call("who")
        gateway.request("no/such/method", {})

        def metrics():
            with urllib.request.urlopen(gateway.admin + "/metrics", timeout=20) as answer:
                assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
                return answer.read().decode()

        told = metrics()
        for line in [
            'backstop_attempts_total{group="who",target="primary",attempt_type="original",outcome="ok"}',
            'backstop_attempts_total{group="who",target="primary",attempt_type="original",outcome="ConnectionError"} 1',
            'backstop_circuit_state{group="who",target="primary"} 2',
            'backstop_circuit_state{group="who",target="secondary"} 0',
            'mcp_server_operation_duration_seconds_count{mcp_method_name="tools/call",error_type=""} 2',
            'mcp_server_operation_duration_seconds_count{mcp_method_name="other",error_type="-32601"} 1',
            'mcp_client_operation_duration_seconds_count{mcp_method_name="tools/call",error_type="",'
            'backstop_target="secondary",network_transport="tcp"} 1',
        ]:
            assert line in told, f"{line}\n{told}"
        assert "no/such" not in told, "what a client makes up is no label"


def test_the_endpoint_answers_no_other_site(write_config, servers):
    with Observed(configured(write_config, servers, ADMIN)) as gateway:
        for headers in [{"origin": "https://evil.example"}, {"host": "evil.example"}]:
            with pytest.raises(urllib.error.HTTPError) as refused:
                gateway.ask("/api/targets/primary/drain", {}, **headers)
            assert refused.value.code == 403
        assert not gateway.ask("/api/status")["groups"][0]["targets"][0]["held"]


def test_a_configuration_is_reloaded_and_rolled_back_by_hand(write_config, servers):
    config = configured(write_config, servers, ADMIN)
    with Observed(config) as gateway:
        before = config.read_text()
        config.write_text(before.replace('name = "secondary"', 'name = "other"'))
        applied = gateway.ask("/api/config/reload", {})
        assert applied["number"] == 2 and 'service "other"' in " ".join(applied["changes"])

        def names():
            return [t["name"] for t in gateway.ask("/api/status")["groups"][0]["targets"]]

        assert names() == ["primary", "other"]
        # The file is not touched, and what it says comes back with its next change.
        assert gateway.ask("/api/config/rollback", {})["origin"] == {"rollback": 1}
        assert names() == ["primary", "secondary"]
        assert [v["number"] for v in gateway.ask("/api/config")] == [3, 2, 1]

        config.write_text(before + "wieght = 1\n")
        with pytest.raises(urllib.error.HTTPError) as refused:
            gateway.ask("/api/config/reload", {})
        assert refused.value.code == 409
        reason = json.loads(refused.value.read())["error"]
        assert "what was in force stays in force" in reason and "wieght" in reason, reason
        with pytest.raises(urllib.error.HTTPError) as unknown:
            gateway.ask("/api/config/rollback", {"version": 99})
        assert unknown.value.code == 404
        assert names() == ["primary", "secondary"]


@pytest.mark.skipif(
    "BACKSTOP_SCHEMATHESIS" not in os.environ,
    reason="on demand: BACKSTOP_SCHEMATHESIS names the program, from PyPI's schemathesis 4",
)
def test_whatever_is_asked_of_the_endpoint_it_answers_as_its_document_says(
    write_config, servers, tmp_path
):
    with Observed(configured(write_config, servers, ADMIN)) as gateway:
        fuzzed = subprocess.run(
            [
                *(os.environ["BACKSTOP_SCHEMATHESIS"], "run", f"{gateway.admin}/api/openapi.json"),
                *("--url", gateway.admin, "--exclude-path", "/api/events", "--max-examples", "60"),
                "--checks=not_a_server_error,status_code_conformance,content_type_conformance,"
                "response_schema_conformance",
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert fuzzed.returncode == 0, fuzzed.stdout

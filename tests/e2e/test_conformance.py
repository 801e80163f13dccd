"""The public conformance suite: what a server or a client passes alone, it passes through backstop.

The tables of both runs are written to `conformance.md` beside the logs of `tests/run`.
"""

import concurrent.futures
import json
import re
import subprocess
import sys

import pytest

from processes import TARGET, TESTS, Gateway, Process, free_port, node, service, wait_until

SUITE = TESTS / "node_modules/@modelcontextprotocol/conformance/dist/index.js"
FIXTURE = TESTS / "e2e/conformance_server.py"
CLIENT = TESTS / "e2e/conformance_client.py"
REVISIONS = ["2025-11-25", "2026-07-28"]
RUN_LIMIT = 240.0  # seconds for one run of the suite, on a busy machine


class Fixture(Process):
    """The server of the suite."""

    def __init__(self):
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/mcp"
        super().__init__([sys.executable, FIXTURE, str(self.port)])

    def ready(self):
        import socket

        def accepts():
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return True
            except OSError:
                return False

        wait_until(accepts, "the fixture server")


def suite(*arguments):
    """Runs the suite."""
    return subprocess.run(
        [node(), SUITE, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_LIMIT,
        check=False,
    )


def verdicts(url, revision, folder):
    """Each scenario's checks that passed and failed, and whether it is scored."""
    run = suite("server", "--url", url, "--requirements", revision, "-o", folder)
    summary, _, unscored = run.stdout.partition("Not scored for")
    found = re.findall(r"^[✓✗] ([\w-]+): (\d+) passed, (\d+) failed", summary, re.MULTILINE)
    assert found, run.stdout + run.stderr
    left_out = set(re.findall(r"^\s+[✓✗] ([\w-]+) \(", unscored, re.MULTILINE))
    return {
        name: (int(passed), int(failed), name not in left_out) for name, passed, failed in found
    }


def client_scenarios(revision):
    """What a revision asks of clients, and whether it is scored."""
    scored, _, unscored = suite("list", "--requirements", revision).stdout.partition("never scored")
    _, _, scored = scored.partition("Client scenarios")
    scored = re.findall(r"^ +- ([\w/-]+)$", scored, re.MULTILINE)
    unscored = re.findall(r"^ +- ([\w/-]+) \[client\]$", unscored, re.MULTILINE)
    return {name: True for name in scored} | {name: False for name in unscored}


def client_verdict(scenario, revision, folder, *how):
    """A scenario's checks that passed and failed, and what the suite says of the latter."""
    command = " ".join(map(str, [sys.executable, CLIENT, *how]))
    options = ["--scenario", scenario, "--spec-version", revision, "-o", folder]
    run = suite("client", "--command", command, *options)
    found = list(folder.glob(f"{scenario}-20*/checks.json"))
    assert len(found) == 1, run.stdout + run.stderr
    checks = json.loads(found[0].read_text())
    passed = sum(check["status"] == "SUCCESS" for check in checks)
    said = [
        f"{check['id']}: {check.get('errorMessage')}"
        for check in checks
        if check["status"] in ("FAILURE", "WARNING")
    ]
    # The client itself may have failed.
    if run.returncode and not said:
        said = [run.stderr]
    return passed, said


def failures(folder, scenario):
    """What the suite says went wrong."""
    said = []
    for path in folder.glob(f"server-{scenario}-*/checks.json"):
        for check in json.loads(path.read_text()):
            if check["status"] == "FAILURE":
                said.append(f"{check['id']}: {check.get('errorMessage')}")
    return said


def write_table(side, revision, alone, through):
    path = TARGET / "tests-run" / "conformance.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = path.read_text() if path.exists() else ""
    kept = "".join(
        part
        for part in re.split(r"(?=^## )", kept, flags=re.MULTILINE)
        if not part.startswith(f"## {side} side, {revision}")
    )
    rows = [
        f"| {name} | {alone[name][0]}/{sum(alone[name][:2])} "
        f"| {through[name][0]}/{sum(through[name][:2])} | {'yes' if alone[name][2] else 'no'} |"
        for name in alone
    ]
    head = f"## {side} side, {revision}\n\n| scenario | alone | through | scored |\n|---|---|---|---|\n"
    path.write_text(kept + head + "\n".join(rows) + "\n\n")


@pytest.mark.parametrize("revision", REVISIONS)
def test_every_scored_scenario_that_passes_alone_passes_through(revision, write_config, tmp_path):
    with Fixture() as fixture:
        alone = verdicts(fixture.url, revision, tmp_path / "alone")
        config = write_config(service("fixture", group="fixture", url=fixture.url, trusted=True))
        with Gateway(config) as gateway:
            through = verdicts(gateway.url, revision, tmp_path / "through")
    write_table("Server", revision, alone, through)
    assert set(through) == set(alone)
    scored = [name for name, (_, _, counts) in alone.items() if counts]
    assert len(scored) >= 30
    assert [name for name in scored if alone[name][1]] == [], "the fixture itself fails"
    lost = {
        name: failures(tmp_path / "through", name)
        for name, (passed, failed, _) in alone.items()
        if not failed and (through[name][1] or through[name][0] < passed)
    }
    assert lost == {}


@pytest.mark.parametrize("revision", REVISIONS)
def test_every_scored_scenario_a_client_passes_alone_it_passes_through(revision, tmp_path):
    scored = {name for name, counts in client_scenarios(revision).items() if counts}
    assert len(scored) >= 18

    def both(name):
        alone = client_verdict(name, revision, tmp_path / "alone")
        return alone, client_verdict(name, revision, tmp_path / "through", "through")

    with concurrent.futures.ThreadPoolExecutor(max_workers=3) as several:
        verdicts_of = dict(zip(sorted(scored), several.map(both, sorted(scored))))
    alone, through, failed, lost = {}, {}, {}, {}
    for name, ((passed, wrong), (passed_through, lacks)) in verdicts_of.items():
        alone[name] = passed, len(wrong), True
        through[name] = passed_through, len(lacks), True
        if wrong:
            failed[name] = wrong
        elif lacks or not passed_through:
            lost[name] = lacks
    write_table("Client", revision, alone, through)
    assert failed == {}, "the client itself fails"
    assert lost == {}

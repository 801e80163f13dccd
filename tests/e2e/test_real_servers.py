"""Servers nobody here wrote: what they list and answer is the same with backstop in between, to the
last field."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from processes import EVERYTHING, TESTS, TIME, gateway_stdio, service

MODULES = TESTS / "node_modules/@modelcontextprotocol"
ANSWER_LIMIT = 30.0  # seconds an answer may take on a busy machine


class Raw:
    """A client of JSON lines, which interprets nothing."""

    def __init__(self, command, args):
        self.child = subprocess.Popen(
            [str(command), *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.id = 0

    def __enter__(self):
        watchdog = threading.Timer(ANSWER_LIMIT * 3, self.child.kill)
        watchdog.daemon = True
        watchdog.start()
        hello = {"protocolVersion": "2025-11-25", "capabilities": {}}
        self.ask("initialize", {**hello, "clientInfo": {"name": "raw", "version": "1"}})
        self.say({"method": "notifications/initialized"})
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait(10)

    def say(self, message):
        self.child.stdin.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
        self.child.stdin.flush()

    def ask(self, method, params):
        """The result or the error, in canonical form."""
        self.id += 1
        self.say({"id": self.id, "method": method, "params": params})
        for line in self.child.stdout:
            message = json.loads(line)
            if message.get("id") == self.id and "method" not in message:
                found = {key: message.get(key) for key in ("result", "error")}
                return json.dumps(found, sort_keys=True)
        raise RuntimeError(f"{method}: the server has ended")


def repository(folder):
    for arguments in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "One"]):
        (folder / "note.txt").write_text("grüße\n")
        user = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        subprocess.run(["git", "-C", folder, *user, *arguments], check=True, timeout=30)


def servers(folder):
    """Command, arguments, tool and its arguments, by name."""
    return {
        "everything": ("node", [EVERYTHING, "stdio"], "echo", {"message": "☃ \\ \u2028"}),
        "filesystem": (
            "node",
            [MODULES / "server-filesystem/dist/index.js", folder],
            "read_text_file",
            {"path": str(folder / "note.txt")},
        ),
        "memory": ("node", [MODULES / "server-memory/dist/index.js"], "read_graph", {}),
        "time": (
            TIME,
            ["--local-timezone", "UTC"],
            "convert_time",
            {"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"},
        ),
        "git": (
            Path(sys.executable).with_name("mcp-server-git"),
            ["--repository", folder],
            "git_log",
            {"repo_path": str(folder), "max_count": 1},
        ),
    }


@pytest.mark.parametrize("name", ["everything", "filesystem", "memory", "time", "git"])
def test_its_tools_and_answers_are_the_same_with_backstop_in_between(name, write_config, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    repository(folder)
    command, args, tool, arguments = servers(folder)[name]

    def seen(command, args):
        with Raw(command, args) as client:
            return [
                client.ask("tools/list", {}),
                client.ask("tools/call", {"name": tool, "arguments": arguments}),
                client.ask("tools/call", {"name": tool, "arguments": {"no": ["such"]}}),
            ]

    alone = seen(command, args)
    front = gateway_stdio(
        write_config(service(name, group=name, command=str(command), args=list(map(str, args))))
    )
    through = seen(front.command, front.args)
    assert "error" in alone[0] and '"tools"' in alone[0]
    assert through == alone

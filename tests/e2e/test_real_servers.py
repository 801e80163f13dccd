"""Servers nobody here wrote: what they list and answer is the same with backstop in between, to the
last field."""

import json
import os
import subprocess
import threading

import pytest

from processes import gateway_stdio, service
from third_party import NAMES, World, canonical, plain

ANSWER_LIMIT = 30.0  # seconds an answer may take on a busy machine


class Raw:
    """A client of JSON lines, which interprets nothing."""

    def __init__(self, command, args, env):
        self.child = subprocess.Popen(
            [str(command), *map(str, args)],
            env={**os.environ, **env},
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
                return canonical({key: message.get(key) for key in ("result", "error")})
        raise RuntimeError(f"{method}: the server has ended")


@pytest.mark.parametrize("name", NAMES)
def test_its_tools_and_answers_are_the_same_with_backstop_in_between(name, write_config, tmp_path):
    world = World(tmp_path)
    server = world.server(name)
    calls = [*server.calls, (server.calls[0][0], {"no": ["such"]})]

    def seen(command, args, env):
        world.reset()
        with Raw(command, args, env) as client:
            return [client.ask("tools/list", {})] + [
                client.ask("tools/call", {"name": tool, "arguments": plain(arguments)})
                for tool, arguments in calls
            ]

    alone = seen(server.command, server.args, server.env)
    keys = {"command": server.command, "args": plain(server.args), "env": server.env}
    front = gateway_stdio(write_config(service(name, group=name, **keys)))
    through = seen(front.command, front.args, {})
    assert alone[0].startswith('{"error": null') and '"tools"' in alone[0]
    for with_it, without_it in zip(through, alone, strict=True):
        assert with_it == without_it

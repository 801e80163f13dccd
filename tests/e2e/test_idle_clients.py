"""Clients that do nothing cost little, and clients that do badly cost the others nothing."""

import asyncio
import json
import resource
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import client
from processes import Gateway, service

MANY = 1000
MOST = 100 * 1024 * 1024  # bytes for all of them
BAD = 30  # clients of each bad kind
META = "io.modelcontextprotocol/"
MODERN = {
    META + "protocolVersion": "2026-07-28",
    META + "clientInfo": {"name": "idle", "version": "1"},
    META + "clientCapabilities": {},
}


@pytest.fixture(autouse=True)
def open_files():
    """A connection is an open file, here and in the gateway, which inherits the limit."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(before[1], 16384), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def memory(process):
    """What the process holds of the machine's memory, in bytes."""
    status = Path(f"/proc/{process.child.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


class Http:
    """One connection, spoken to by hand."""

    def __init__(self, url):
        self.url = urlsplit(url)

    async def __aenter__(self):
        self.reader, self.writer = await asyncio.open_connection(self.url.hostname, self.url.port)
        return self

    async def __aexit__(self, *_):
        self.writer.close()

    async def write(self, data):
        self.writer.write(data)
        await self.writer.drain()

    def head(self, method, length, **fields):
        fields = {
            "host": self.url.netloc,
            "accept": "application/json, text/event-stream",
            "content-type": "application/json",
            "content-length": str(length),
        } | {name.replace("_", "-"): value for name, value in fields.items()}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"{method} {self.url.path} HTTP/1.1\r\n{lines}\r\n".encode()

    async def send(self, method, message, **fields):
        body = json.dumps({"jsonrpc": "2.0", **message}).encode() if message else b""
        await self.write(self.head(method, len(body), **fields) + body)

    async def answered(self):
        """Status and header fields of the next answer."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        return int(head[0].split()[1]), fields

    async def ask(self, message, **fields):
        """The next answer, where it is plain."""
        await self.send("POST", message, **fields)
        status, fields = await self.answered()
        body = await self.reader.readexactly(int(fields.get("content-length", 0)))
        assert status < 300, (status, body)
        return fields, body and json.loads(body)


def call(tool, arguments, **more):
    params = {"name": tool, "arguments": arguments, **more}
    return {"id": 1, "method": "tools/call", "params": params}


async def session(stack, url, capabilities):
    """A client of the older era that has introduced itself."""
    http = Http(url)
    await http.__aenter__()
    stack.append(http)
    hello = {"protocolVersion": "2025-11-25", "capabilities": capabilities}
    hello["clientInfo"] = {"name": "idle", "version": "1"}
    fields, _ = await http.ask({"id": 0, "method": "initialize", "params": hello})
    session = {"mcp_session_id": fields["mcp-session-id"]}
    await http.ask({"method": "notifications/initialized"}, **session)
    return http, session


async def listening(stack, url):
    """It waits for what the servers have to say."""
    http, session_id = await session(stack, url, {})
    await http.send("GET", None, **session_id)
    assert (await http.answered())[0] == 200


async def that_can_be_asked(stack, url):
    """It has a session of its own at the server."""
    http, session_id = await session(stack, url, {"elicitation": {}})
    _, answer = await http.ask(call("get-sum", {"a": 1, "b": 1}), **session_id)
    assert "result" in answer, answer


async def of_the_newest_era(stack, url):
    """There are no sessions any more, but streams that stay open."""
    http = Http(url)
    await http.__aenter__()
    stack.append(http)
    wanted = {"toolsListChanged": True, "resourcesListChanged": True}
    params = {"_meta": MODERN, "notifications": wanted}
    listen = {"id": 1, "method": "subscriptions/listen", "params": params}
    version = {"mcp_protocol_version": "2026-07-28", "mcp_method": "subscriptions/listen"}
    await http.send("POST", listen, **version)
    assert (await http.answered())[0] == 200


@pytest.mark.parametrize("idle", [listening, that_can_be_asked, of_the_newest_era])
def test_a_thousand_idle_clients_cost_less_than_100_mib(idle, everything, write_config):
    config = write_config(service("only", group="only", url=everything.url, trusted=True))

    async def scenario(gateway):
        clients = []
        try:
            # What the first ones make is there for all.
            for _ in range(10):
                await idle(clients, gateway.url)
            before = memory(gateway)
            for _ in range(MANY // 50):
                await asyncio.gather(*(idle(clients, gateway.url) for _ in range(50)))
            cost = memory(gateway) - before
            assert len(clients) == MANY + 10
            print(f"{idle.__name__}: {MANY} clients cost {cost / 1024 / 1024:.1f} MiB")
            assert cost < MOST
            async with client.connect(gateway.url) as connection:
                answer = await connection.call_tool("get-sum", {"a": 1, "b": 2})
                assert "3" in client.text(answer)
        finally:
            for http in clients:
                http.writer.close()

    with Gateway(config) as gateway:
        client.run(scenario(gateway), 120)


async def silent(_):
    """It says nothing at all."""


async def slow_head(http):
    await http.write(http.head("POST", 10)[:-9])


async def half_body(http):
    await http.write(http.head("POST", 1000) + b'{"jsonrpc": "2.0", ')


async def does_not_read(http):
    """It asks for much, again and again, and leaves it lying."""
    version = {"mcp_protocol_version": "2026-07-28", "mcp_method": "tools/call", "mcp_name": "echo"}
    large = call("echo", {"message": "x" * 1_000_000}, _meta=MODERN)
    for _ in range(8):
        try:
            await asyncio.wait_for(http.send("POST", large, **version), 0.2)
        except TimeoutError:
            return


async def never_answers(http):
    """A server asks it something, and waits for ever."""
    hello = {"protocolVersion": "2025-11-25", "capabilities": {"elicitation": {}}}
    hello["clientInfo"] = {"name": "mute", "version": "1"}
    fields, _ = await http.ask({"id": 0, "method": "initialize", "params": hello})
    session = {"mcp_session_id": fields["mcp-session-id"]}
    await http.ask({"method": "notifications/initialized"}, **session)
    await http.send("POST", call("trigger-elicitation-request", {}), **session)
    status, fields = await http.answered()
    assert (status, fields["content-type"]) == (200, "text/event-stream")


@pytest.mark.parametrize(
    "badly", [silent, slow_head, half_body, does_not_read, never_answers]
)
def test_a_slow_or_silent_client_never_blocks_another(badly, everything, write_config):
    config = write_config(service("only", group="only", url=everything.url, trusted=True))

    async def calls(url):
        async with client.connect(url) as connection:
            began = time.monotonic()
            for n in range(20):
                answer = await connection.call_tool("echo", {"message": f"m{n}"})
                assert client.text(answer) == f"Echo: m{n}"
            return time.monotonic() - began

    async def scenario(url):
        undisturbed = await calls(url)
        bad = [Http(url) for _ in range(BAD)]
        try:
            for http in bad:
                await http.__aenter__()
            await asyncio.gather(*(badly(http) for http in bad))
            disturbed = await calls(url)
        finally:
            for http in bad:
                http.writer.close()
        assert disturbed < undisturbed + 5, "they wait for the others"

    with Gateway(config) as gateway:
        client.run(scenario(gateway.url), 120)

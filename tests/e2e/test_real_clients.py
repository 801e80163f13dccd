"""Clients and servers nobody here wrote: every tool is listed and answers the same, to the last field,
with backstop in between."""

import json
import os
import subprocess

import fastmcp
import fastmcp.client.transports
import mcp
import pytest
from mcp import StdioServerParameters

import client
from processes import TESTS, Gateway, gateway_stdio, node, service
from third_party import NAMES, World, canonical, plain

INSPECTOR = TESTS / "node_modules/@modelcontextprotocol/inspector/clients/launcher/build/index.js"
SESSION_LIMIT = 120.0  # seconds for all calls of one session on a busy machine


def dumped(model):
    return canonical(model.model_dump(mode="json", by_alias=True, exclude_unset=True))


async def with_python_sdk(endpoint, revision, calls):
    mode = revision if revision == "2026-07-28" else "legacy"
    async with client.connect(endpoint, mode=mode) as connection:
        return await everything_of(connection.list_tools, connection.call_tool, calls)


async def with_fastmcp(endpoint, revision, calls):
    if isinstance(endpoint, StdioServerParameters):
        endpoint = fastmcp.client.transports.StdioTransport(
            endpoint.command, endpoint.args, env=endpoint.env, keep_alive=False
        )
    mode = revision if revision == "2026-07-28" else "legacy"
    async with fastmcp.Client(endpoint, mode=mode, cache=False) as connection:
        return await everything_of(connection.list_tools_mcp, connection.call_tool_mcp, calls)


async def everything_of(list_tools, call_tool, calls):
    """What is listed, and what each call comes to."""
    listed = await list_tools()
    assert {tool.name for tool in listed.tools} == {tool for tool, _ in calls}
    seen = [dumped(listed)]
    for tool, arguments in calls:
        try:
            seen.append(f"{tool}: {dumped(await call_tool(tool, plain(arguments)))}")
        except mcp.MCPError as error:
            seen.append(f"{tool}: {dumped(error.error)}")
    return seen


def stdio_of(server):
    """How a client starts the server itself, with all it would inherit from backstop."""
    env = {**os.environ, **server.env}
    return StdioServerParameters(command=server.command, args=plain(server.args), env=env)


def service_of(name, server):
    return service(
        name, group=name, command=server.command, args=plain(server.args), env=server.env
    )


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("front", ["http", "stdio"])
@pytest.mark.parametrize("using", [with_python_sdk, with_fastmcp])
def test_every_tool_is_listed_and_answers_as_without_backstop(
    using, front, name, world, write_config
):
    server = world.server(name)
    config = write_config(service_of(name, server))

    def seen(endpoint, revision):
        world.reset()
        return client.run(using(endpoint, revision, server.calls), SESSION_LIMIT)

    for revision in server.revisions:
        alone = seen(stdio_of(server), revision)
        if front == "stdio":
            through = seen(gateway_stdio(config), revision)
        else:
            with Gateway(config) as gateway:
                through = seen(gateway.url, revision)
        for with_it, without_it in zip(through, alone, strict=True):
            assert with_it == without_it, revision


class Inspector:
    """The inspector's command line: a process for each request."""

    def __init__(self, tmp_path, *server):
        # Nothing is read from, or kept in, the home of who runs the tests.
        self.env = {**os.environ, "HOME": str(tmp_path)}
        self.server = [str(part) for part in server]

    def ask(self, method, *options):
        run = subprocess.run(
            [node(), INSPECTOR, "--cli", *self.server, "--method", method, *options],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SESSION_LIMIT,
            check=False,
        )
        try:
            return canonical(json.loads(run.stdout))
        except json.JSONDecodeError:
            raise AssertionError(run.stdout + run.stderr) from None


@pytest.mark.parametrize("name", NAMES)
def test_the_inspector_sees_the_same_tools_and_answers(name, world, write_config, tmp_path):
    server = world.server(name)
    world.reset()
    env = [part for key, value in server.env.items() for part in ("-e", f"{key}={value}")]
    alone = Inspector(tmp_path, server.command, *server.args, *env)
    tool, arguments = server.calls[-2]
    call = ["--tool-name", tool, "--tool-args-json", json.dumps(arguments, default=str)]
    with Gateway(write_config(service_of(name, server))) as gateway:
        through = Inspector(tmp_path, gateway.url, "--transport", "http")
        for request in (["tools/list"], ["tools/call", *call]):
            assert through.ask(*request) == alone.ask(*request)

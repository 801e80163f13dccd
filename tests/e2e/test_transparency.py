"""What a client sees through backstop is what it sees without it."""

import json

import mcp
import pytest

import client
from processes import (
    Gateway,
    everything_stdio,
    gateway_stdio,
    service,
    stdio_service,
    time_stdio,
)

TOOLS_OF_TIME = {"get_current_time", "convert_time"}


@pytest.fixture
def config(write_config, everything):
    return write_config(
        service("everything", group="everything", url=everything.url),
        stdio_service("time", time_stdio(), group="time"),
    )


@pytest.fixture(params=["http", "stdio"])
def front(request, config):
    """Where the client connects to: backstop over HTTP, or started by the client."""
    if request.param == "stdio":
        yield gateway_stdio(config)
    else:
        with Gateway(config) as gateway:
            yield gateway.url


def plain(model):
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def test_the_tools_of_all_servers_are_listed_as_the_servers_list_them(front, everything):
    async def tools(endpoint):
        async with client.connect(endpoint) as connection:
            listed = (await connection.list_tools()).tools
            return {tool.name: plain(tool) for tool in listed}, len(listed)

    direct = client.run(tools(everything.url))[0] | client.run(tools(time_stdio()))[0]
    through, count = client.run(tools(front))
    assert count == len(through), "a tool is listed twice"
    assert set(through) == set(direct)
    assert TOOLS_OF_TIME < set(through)
    assert through == direct


CALLS = [
    ("echo", {"message": "grüße ☃ \u2028 \\ \""}),
    ("echo", {"message": "x" * 100_000}),
    ("get-sum", {"a": 2, "b": 40}),
    ("get-structured-content", {"location": "New York"}),
    ("get-tiny-image", {}),
    ("get-annotated-message", {"messageType": "error", "includeImage": True}),
    ("get-resource-links", {"count": 3}),
    # An error of the tool itself is an answer.
    ("echo", {}),
    ("get-sum", {"a": "two"}),
]


def test_answers_arrive_as_the_server_gave_them(front, everything):
    async def answers(endpoint):
        async with client.connect(endpoint) as connection:
            return [
                {**plain(await connection.call_tool(tool, arguments)), "_meta": None}
                for tool, arguments in CALLS
            ]

    assert client.run(answers(front)) == client.run(answers(everything.url))


def test_a_server_on_stdio_which_speaks_the_newest_protocol_answers(front):
    async def scenario():
        async with client.connect(front) as connection:
            arguments = {
                "source_timezone": "UTC",
                "time": "12:00",
                "target_timezone": "Asia/Tokyo",
            }
            answer = client.text(await connection.call_tool("convert_time", arguments))
            assert json.loads(answer)["time_difference"] == "+9.0h"

    client.run(scenario())


def test_every_generation_of_the_protocol_is_answered(front):
    async def scenario(mode):
        async with client.connect(front, mode=mode) as connection:
            answer = await connection.call_tool("get-sum", {"a": 1, "b": 2})
            assert "3" in client.text(answer)
            return connection.session.protocol_version

    assert client.run(scenario("2026-07-28")) == "2026-07-28"
    assert client.run(scenario("legacy")) == "2025-11-25"


def test_an_unknown_tool_is_an_error_which_names_it(front):
    async def scenario():
        async with client.connect(front) as connection:
            try:
                result = await connection.call_tool("no-such-tool", {})
            except mcp.MCPError as error:
                return str(error)
            assert result.is_error, result
            return "".join(part.text for part in result.content)

    assert "no-such-tool" in client.run(scenario())


def test_progress_reaches_the_caller_before_the_answer(front):
    async def scenario():
        seen = []

        async def progress(done, total, message):
            seen.append((done, total))

        async with client.connect(front) as connection:
            answer = await connection.call_tool(
                "trigger-long-running-operation",
                {"duration": 1, "steps": 4},
                progress_callback=progress,
            )
            assert "completed" in client.text(answer)
        return seen

    assert client.run(scenario()) == [(step, 4) for step in range(1, 5)]


def test_many_callers_at_once_each_get_their_own_answer(front):
    import asyncio

    async def scenario():
        async with client.connect(front) as connection:

            async def call(n):
                return client.text(await connection.call_tool("echo", {"message": f"m{n}"}))

            answers = await asyncio.gather(*(call(n) for n in range(50)))
            assert answers == [f"Echo: m{n}" for n in range(50)]

    client.run(scenario())


def test_the_harness_reaches_a_server_without_backstop():
    async def scenario():
        async with client.connect(everything_stdio("alone")) as connection:
            return await client.instance(connection)

    assert client.run(scenario()) == "alone"

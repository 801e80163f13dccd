"""Slow servers and limited ones: who is asked beside, who waits, who is told that it is too much."""

import asyncio
import os
import signal
import time

import mcp

import client
from processes import Gateway, service, table


def long(seconds):
    return {"duration": seconds, "steps": 1}


def operation(**keys):
    return table("[[operation]]", match="*", repeat="read-only", **keys)


def test_a_read_only_tool_of_a_frozen_server_is_hedged(pair, write_config):
    primary, secondary = pair
    config = write_config(
        operation(hedge="100ms"),
        service("primary", url=primary.url, priority=1),
        service("secondary", url=secondary.url),
    )

    async def scenario(endpoint):
        async with client.connect(endpoint) as connection:
            assert await client.instance(connection) == "primary"
            # Not dead: it takes requests and says nothing, which costs a whole timeout without a hedge.
            os.kill(primary.child.pid, signal.SIGSTOP)
            try:
                began = time.monotonic()
                assert await client.instance(connection) == "secondary"
                assert 0.1 <= time.monotonic() - began < 5
            finally:
                os.kill(primary.child.pid, signal.SIGCONT)
            assert await client.instance(connection) == "primary"

    with Gateway(config) as gateway:
        client.run(scenario(gateway.url))


async def several_long_calls(endpoint, count, seconds):
    """How many were answered, and what the others were told, and how long it took."""

    async def one(connection):
        try:
            result = await connection.call_tool("trigger-long-running-operation", long(seconds))
            return client.text(result)
        except mcp.MCPError as error:
            return error

    async with client.connect(endpoint) as connection:
        began = time.monotonic()
        ended = await asyncio.gather(*(one(connection) for _ in range(count)))
        took = time.monotonic() - began
    errors = [str(result) for result in ended if isinstance(result, mcp.MCPError)]
    return count - len(errors), errors, took


def test_beyond_its_limit_calls_of_a_server_wait_and_beyond_the_queue_they_fail_at_once(
    everything, write_config
):
    config = write_config(
        operation(),
        "[[strategy]]\nplugin = \"retry\"\nenabled = false\n",
        service("only", url=everything.url, max_concurrent=2, max_queue=2),
    )
    with Gateway(config) as gateway:
        answered, errors, took = client.run(several_long_calls(gateway.url, 7, 1))
    assert answered == 4 and len(errors) == 3
    assert 2 <= took < 10, "two at a time"
    for error in errors:
        assert "only is busy with 2 requests" in error, error


def test_a_server_at_its_limit_is_left_for_another(pair, write_config):
    primary, secondary = pair
    config = write_config(
        service("primary", url=primary.url, priority=1, max_concurrent=1),
        service("secondary", url=secondary.url),
    )
    with Gateway(config) as gateway:
        answered, errors, took = client.run(several_long_calls(gateway.url, 2, 3))
    assert (answered, errors) == (2, [])
    assert took < 5.9, "side by side"

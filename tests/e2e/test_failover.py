"""A server that dies costs no call that may be repeated, and is used again when it is back."""

import asyncio
import os
import signal
import time
from pathlib import Path

import mcp
import pytest

import client
from processes import (
    Gateway,
    everything_stdio,
    gateway_stdio,
    service,
    stdio_service,
    table,
    wait_until,
)

# What is found out within seconds here takes half a minute by default.
QUICK = table(
    "[health]", interval="500ms", timeout="500ms", rise=1, fall=1, slow_start="0s"
) + table("[circuit]", open_for="300ms", max_open="1s")

READ_ONLY = table("[[operation]]", match="*", repeat="read-only")

CALLS = 200
KILLED = 70  # the call in the middle of which the primary is killed
STARTED = 120  # the call before which it is started again
SETTLED = 180  # the call from which it must be in use again


def two_services(pair, **keys):
    primary, secondary = pair
    return service("primary", url=primary.url, priority=10, **keys) + service(
        "secondary", url=secondary.url, priority=1, **keys
    )


async def one_call(connection, n, served):
    """The n-th call; an error unless its answer is right."""
    if n % 3 == 0:
        served[n] = await client.instance(connection)
    elif n % 3 == 1:
        answer = await connection.call_tool("echo", {"message": f"call {n}"})
        assert client.text(answer) == f"Echo: call {n}"
    else:
        answer = await connection.call_tool("get-sum", {"a": n, "b": 1000})
        assert client.text(answer) == f"The sum of {n} and 1000 is {n + 1000}."


async def call_during_which(connection, crash):
    """A call which is at work for a second, and a crash in the midst of it."""
    call = asyncio.create_task(
        connection.call_tool("trigger-long-running-operation", {"duration": 1, "steps": 2})
    )
    await asyncio.sleep(0.4)
    assert not call.done()
    crash()
    return await call


async def two_hundred_calls(endpoint, primary):
    """Which instance answered, by the number of the call, as far as an answer shows it."""
    served = {}
    async with client.connect(endpoint) as connection:
        for n in range(CALLS):
            if n == KILLED:
                answer = client.text(await call_during_which(connection, primary.kill))
                assert answer == "Long running operation completed. Duration: 1 seconds, Steps: 2."
                continue
            if n == STARTED:
                primary.begin_restart()
            if n == (STARTED + SETTLED) // 2:
                await asyncio.to_thread(primary.ready)
            if n > STARTED:
                await asyncio.sleep(0.05)
            await one_call(connection, n, served)
    return served


@pytest.mark.parametrize("front", ["http", "stdio"])
@pytest.mark.parametrize("known_by", ["configuration", "annotations"])
def test_two_hundred_calls_survive_a_crash_and_the_primary_is_used_again(
    front, known_by, pair, write_config
):
    if known_by == "annotations":
        config = write_config(QUICK, two_services(pair, trusted=True))
    else:
        config = write_config(QUICK, two_services(pair), READ_ONLY)
    if front == "stdio":
        served = client.run(two_hundred_calls(gateway_stdio(config), pair[0]), 120)
    else:
        with Gateway(config) as gateway:
            served = client.run(two_hundred_calls(gateway.url, pair[0]), 120)
    assert {served[n] for n in served if n < KILLED} == {"primary"}
    assert {served[n] for n in served if KILLED < n < STARTED} == {"secondary"}
    assert {served[n] for n in served if n >= SETTLED} == {"primary"}


def test_a_call_that_must_not_be_repeated_ends_in_an_error(pair, write_config):
    primary, _ = pair

    async def scenario(endpoint):
        async with client.connect(endpoint) as connection:
            began = time.monotonic()
            try:
                result = await call_during_which(connection, primary.kill)
                assert result.is_error, f"it was sent again: {result}"
            except mcp.MCPError as error:
                assert "primary" in str(error) or "trigger-long-running" in str(error)
            assert time.monotonic() - began < 15
            # One that never reached a server is no repetition: the secondary may have it.
            assert await client.instance(connection) == "secondary"

    with Gateway(write_config(QUICK, two_services(pair))) as gateway:
        client.run(scenario(gateway.url))


def children(pid):
    """The processes a process has started, from whichever thread."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.add(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
def test_a_server_on_stdio_that_dies_is_started_again(write_config):
    config = write_config(QUICK, stdio_service("only", everything_stdio("only")), READ_ONLY)

    async def scenario(gateway):
        async with client.connect(gateway.url) as connection:
            for _ in range(3):
                assert await client.instance(connection) == "only"
                before = children(gateway.child.pid)
                assert len(before) == 1
                for pid in before:
                    os.kill(pid, signal.SIGKILL)
                wait_until(lambda: not before & children(gateway.child.pid), "the crash")
            assert await client.instance(connection) == "only"

    with Gateway(config) as gateway:
        client.run(scenario(gateway))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
def test_no_server_outlives_backstop(write_config):
    config = write_config(stdio_service("only", everything_stdio("only")))

    async def scenario(gateway):
        async with client.connect(gateway.url) as connection:
            assert await client.instance(connection) == "only"

    with Gateway(config) as gateway:
        client.run(scenario(gateway))
        servers = children(gateway.child.pid)
        assert servers
        gateway.child.send_signal(signal.SIGTERM)
        assert gateway.child.wait(15) == 0
    wait_until(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in servers), "the servers' end", 10
    )

"""The official Python MCP client, bounded in time."""

import asyncio
import contextlib
import json

import mcp


def run(scenario, limit=60.0):
    """Runs an asynchronous scenario to its end, for at most `limit` seconds."""

    async def bounded():
        return await asyncio.wait_for(scenario, limit)

    return asyncio.run(bounded())


@contextlib.asynccontextmanager
async def connect(endpoint, **options):
    """A connection to a URL or to a program the client starts."""
    options.setdefault("read_timeout_seconds", 30)
    async with mcp.Client(endpoint, cache=None, **options) as client:
        yield client


def text(result):
    """The text of a good result."""
    assert not result.is_error, result
    return "".join(part.text for part in result.content if part.type == "text")


async def instance(client):
    """Which server-everything answers."""
    return json.loads(text(await client.call_tool("get-env", {})))["INSTANCE"]

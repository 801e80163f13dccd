"""The client of the public conformance suite: the official Python one, told what each scenario asks for.

`conformance_client.py URL` talks to the suite's server; `conformance_client.py through URL` talks to a
backstop which it starts in front of that server.
"""

import asyncio
import contextlib
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import httpx2
import mcp
from mcp import types
from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthClientMetadata

import client
from processes import Gateway, service

SCENARIO = os.environ.get("MCP_CONFORMANCE_SCENARIO", "")
REVISION = os.environ.get("MCP_CONFORMANCE_PROTOCOL_VERSION", "2025-11-25")
CONTEXT = json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT", "{}"))
REDIRECT = "http://localhost:3000/callback"
METADATA = "https://conformance-test.local/client-metadata.json"
LIMIT = 25.0  # seconds; the suite's own are 30


async def accept_defaults(_, params):
    """Accepts a form as it is filled in already."""
    fields = params.requested_schema.get("properties", {})
    filled = {name: field["default"] for name, field in fields.items() if "default" in field}
    confirmed = {name: True for name, field in fields.items() if field["type"] == "boolean"}
    return types.ElicitResult(action="accept", content=confirmed | filled)


class Storage:
    """Tokens in memory; the client of the context is registered already."""

    def __init__(self):
        self.tokens = None
        self.client = None
        if "client_id" in CONTEXT:
            self.client = OAuthClientInformationFull(
                client_id=CONTEXT["client_id"],
                client_secret=CONTEXT.get("client_secret"),
                redirect_uris=[REDIRECT],
                token_endpoint_auth_method="client_secret_basic",
            )

    async def get_tokens(self):
        return self.tokens

    async def set_tokens(self, tokens):
        self.tokens = tokens

    async def get_client_info(self):
        return self.client

    async def set_client_info(self, client_info):
        self.client = client_info


class Person:
    """Lets the authorization server send it back at once, as the suite's does."""

    async def visit(self, url):
        async with httpx2.AsyncClient() as browser:
            answer = await browser.get(url)
        self.back = {key: found[0] for key, found in parse_qs(urlparse(answer.headers["location"]).query).items()}

    async def returned(self):
        return AuthorizationCodeResult(**self.back)


def authorization(url):
    person = Person()
    return OAuthClientProvider(
        server_url=url,
        client_metadata=OAuthClientMetadata(
            client_name="conformance",
            redirect_uris=[REDIRECT],
            grant_types=["authorization_code", "refresh_token"],
            response_types=["code"],
        ),
        storage=Storage(),
        redirect_handler=person.visit,
        callback_handler=person.returned,
        client_metadata_url=METADATA,
    )


async def scenario(url, signs_in):
    """What the scenario asks for: all that the server has is listed, and its tools are called."""
    async with contextlib.AsyncExitStack() as stack:
        endpoint = url
        if signs_in:
            http = httpx2.AsyncClient(auth=authorization(url), timeout=LIMIT)
            endpoint = streamable_http_client(url, http_client=await stack.enter_async_context(http))
        mode = "legacy" if REVISION == "2025-11-25" else "auto"
        connection = await stack.enter_async_context(
            client.connect(endpoint, mode=mode, elicitation_callback=accept_defaults)
        )
        tools = {tool.name: tool for tool in (await connection.list_tools()).tools}
        if SCENARIO == "json-schema-2020-12-preservation":
            schema = tools["json_schema_2020_12_tool"].input_schema
            await connection.call_tool("json_schema_echo", {"schema": schema})
        elif "toolCalls" in CONTEXT:
            for call in CONTEXT["toolCalls"]:
                await connection.call_tool(call["name"], call["arguments"])
        elif SCENARIO == "http-standard-headers":
            for resource in (await connection.list_resources()).resources:
                await connection.read_resource(resource.uri)
            for prompt in (await connection.list_prompts()).prompts:
                await connection.get_prompt(prompt.name)
            for name in tools:
                await connection.call_tool(name, {})
        else:
            for name in tools:
                # An error of the server, or an answer that this client is stricter with than the suite.
                with contextlib.suppress(mcp.MCPError, ValueError):
                    await connection.call_tool(name, arguments(tools[name]))


def arguments(tool):
    """Something for what the tool must be given."""
    some = {"number": 5, "integer": 5, "string": "some", "object": {}, "array": [], "null": None}
    fields = tool.input_schema.get("properties", {})
    return {name: some[fields[name].get("type", "string")] for name in tool.input_schema.get("required", [])}


async def with_a_person(gateway):
    """Begins again as often as the gateway asks somebody to sign in."""
    visited = set()
    while True:
        failed = None
        try:
            await scenario(gateway.url, signs_in=False)
        except Exception as error:  # whatever the client makes of a server that lets nobody in
            failed = error
        await asyncio.sleep(0.2)  # for the last lines
        addresses = set(re.findall(r"sign in at (\S+)", gateway.output())) - visited
        if not addresses:
            if failed:
                raise failed
            return
        visited |= addresses
        async with httpx2.AsyncClient(follow_redirects=True) as browser:
            for address in addresses:
                await browser.get(address)


def through(url):
    oauth = {key: CONTEXT[key] for key in ("client_id", "client_secret") if key in CONTEXT}
    keys = {"oauth": oauth or {"client_metadata_url": METADATA}} if is_auth() else {}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "backstop.toml"
        config.write_text(service("suite", group="suite", url=url, trusted=True, **keys))
        with Gateway(config) as gateway:
            client.run(with_a_person(gateway), LIMIT)


def is_auth():
    return SCENARIO.startswith("auth/")


if __name__ == "__main__":
    if sys.argv[1] == "through":
        through(sys.argv[2])
    else:
        client.run(scenario(sys.argv[1], signs_in=is_auth()), LIMIT)

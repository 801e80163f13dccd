"""A gateway with an administration endpoint, asked without the help of a client library."""

import json
import re
import time
import urllib.error
import urllib.request

from processes import Gateway, table

VERSION = "2026-07-28"

ADMIN = table("[admin]", listen="127.0.0.1:0")


class Observed(Gateway):
    """`backstop serve` with its administration endpoint on a port of its own choice."""

    def __init__(self, config, env=None, token=None):
        super().__init__(config, env)
        self.token = token
        self.admin = None

    def ready(self):
        super().ready()
        found = re.search(r"administration at (http://\S+)/", self.output())
        assert found, self.output()
        self.admin = found[1]

    def ask(self, path, body=None, **headers):
        """The JSON document at a path of the endpoint; with a body, what a POST of it says."""
        if self.token:
            headers["authorization"] = f"Bearer {self.token}"
        if body is not None:
            headers["content-type"] = "application/json"
            body = json.dumps(body).encode()
        request = urllib.request.Request(self.admin + path, body, headers)
        with urllib.request.urlopen(request, timeout=20) as response:
            return json.loads(response.read())

    def call(self, tool, **arguments):
        """One tool call: the JSON-RPC answer."""
        return self.request("tools/call", {"name": tool, "arguments": arguments})

    def request(self, method, params):
        """One request, as a client of the newest revision makes it: the JSON-RPC answer."""
        params["_meta"] = {
            "io.modelcontextprotocol/protocolVersion": VERSION,
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        headers = {
            "content-type": "application/json",
            "accept": "application/json",
            "mcp-protocol-version": VERSION,
            "mcp-method": method,
            "mcp-name": params.get("name", ""),
        }
        request = urllib.request.Request(self.url, json.dumps(message).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            return json.loads(error.read())

    def until(self, path, holds, limit=20.0):
        """Asks until what is told holds."""
        deadline = time.monotonic() + limit
        while not holds(told := self.ask(path)):
            assert time.monotonic() < deadline, told
            time.sleep(0.02)
        return told


def text(answer):
    """The text of a tool's good answer."""
    return answer["result"]["content"][0]["text"]

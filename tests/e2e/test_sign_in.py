"""The gateway signs in by itself at a server that asks for it, with a secret of its own."""

import base64
import json
import threading
import urllib.parse

import pytest

import tiny_server
from admin import ADMIN, Observed, text
from processes import service, table


class Guarded(tiny_server.Server):
    """An MCP server behind OAuth, and the authorization server that guards it."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.name = "guarded"
        self.origin = f"http://127.0.0.1:{self.server_port}"
        self.url = self.origin + "/mcp"
        self.asked, self.refused, self.token = [], 0, None

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(tiny_server.Handler):
    def do_GET(self):
        server = self.server
        documents = {
            "/.well-known/oauth-protected-resource": {
                "resource": server.url,
                "authorization_servers": [server.origin],
            },
            "/.well-known/oauth-authorization-server": {
                "issuer": server.origin,
                "authorization_endpoint": server.origin + "/authorize",
                "token_endpoint": server.origin + "/token",
                "response_types_supported": ["code"],
                "grant_types_supported": ["client_credentials"],
                "token_endpoint_auth_methods_supported": ["client_secret_basic"],
            },
        }
        document = documents.get(self.path.removesuffix("/mcp"))
        status = 404 if document is None else 200
        self.answer(status, json.dumps(document).encode())

    def do_POST(self):
        if self.path == "/token":
            return self.give_token()
        if self.server.token and self.headers["authorization"] == f"Bearer {self.server.token}":
            return super().do_POST()
        self.rfile.read(int(self.headers["content-length"]))
        self.server.refused += 1
        metadata = self.server.origin + "/.well-known/oauth-protected-resource"
        head = f'www-authenticate: Bearer resource_metadata="{metadata}"\r\ncontent-length: 0'
        self.wfile.write(f"HTTP/1.1 401 X\r\n{head}\r\n\r\n".encode())

    def give_token(self):
        body = self.rfile.read(int(self.headers["content-length"])).decode()
        asked = dict(urllib.parse.parse_qsl(body))
        shown = self.headers.get("authorization", "").removeprefix("Basic ")
        pair = base64.b64decode(shown).decode().partition(":")
        asked["by"] = (urllib.parse.unquote(pair[0]), urllib.parse.unquote(pair[2]))
        self.server.asked.append(asked)
        if asked["by"] != ("gateway", "sesame"):
            return self.answer(401, b'{"error": "invalid_client"}')
        self.server.token = f"t{len(self.server.asked)}"
        token = {"access_token": self.server.token, "token_type": "Bearer", "expires_in": 3600}
        return self.answer(200, json.dumps(token).encode())


@pytest.fixture
def guarded():
    with Guarded() as server:
        yield server


def configured(write_config, server, secret):
    oauth = {"grant": "client-credentials", "client_id": "gateway", "client_secret": secret}
    return write_config(
        table("[health]", interval="1h"),
        ADMIN,
        service("guarded", url=server.url, trusted=True, oauth=oauth),
    )


def test_a_token_is_got_when_it_is_asked_for_and_again_when_it_has_run_out(
    write_config, guarded
):
    with Observed(configured(write_config, guarded, "sesame")) as gateway:
        assert text(gateway.call("who")) == "guarded"
        assert text(gateway.call("who")) == "guarded"
        assert len(guarded.asked) == 1, guarded.asked
        asked = guarded.asked[0]
        assert asked["grant_type"] == "client_credentials"
        assert asked["resource"] == guarded.url

        guarded.token = "another, which nobody has"
        assert text(gateway.call("who")) == "guarded"
        assert len(guarded.asked) == 2


def test_a_client_that_is_not_known_is_a_clean_error_and_no_storm(write_config, guarded):
    with Observed(configured(write_config, guarded, "wr0ng")) as gateway:
        answer = gateway.call("who")
        assert "error" in answer, answer
        assert answer["error"]["data"]["cause"]["kind"] == "Unauthorized", answer
        assert "wr0ng" not in json.dumps(answer) + gateway.output()
        assert 1 <= len(guarded.asked) <= 5, guarded.asked
        assert guarded.refused <= 5
        log = gateway.output()
        assert "cannot be signed in" in log and "invalid_client" in log, log

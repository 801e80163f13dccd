"""An MCP server with what the public conformance suite asks for, in both eras on one endpoint.

It is written on the bare protocol, so that nothing a library adds or takes away stands between the
suite and the gateway. `python conformance_server.py PORT`.
"""

import base64
import json
import queue
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODERN = "2026-07-28"
LEGACY = ["2025-11-25", "2025-06-18", "2025-03-26"]
META = "io.modelcontextprotocol/"
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
WAV = base64.b64encode(
    b"RIFF\x24\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x80\x3e\0\0\2\0\x10\0data\0\0\0\0"
).decode()
EMPTY = {"type": "object", "properties": {}}

sessions = {}
waiting = {}
listeners = []


class Refused(Exception):
    """A JSON-RPC error, and the HTTP status it is sent with."""

    def __init__(self, code, message, data=None, status=200):
        super().__init__(message)
        self.error = {"code": code, "message": message}
        if data is not None:
            self.error["data"] = data
        self.status = status


def text(value):
    return {"type": "text", "text": value}


def embedded(uri, value):
    return {"type": "resource", "resource": {"uri": uri, "mimeType": "text/plain", "text": value}}


IMAGE = {"type": "image", "data": PNG, "mimeType": "image/png"}
AUDIO = {"type": "audio", "data": WAV, "mimeType": "audio/wav"}

FIXED = {
    "test_simple_text": [text("This is a simple text response for testing.")],
    "test_image_content": [IMAGE],
    "test_audio_content": [AUDIO],
    "test_embedded_resource": [
        embedded("test://embedded-resource", "This is an embedded resource content.")
    ],
    "test_multiple_content_types": [
        text("Multiple content types test:"),
        IMAGE,
        embedded("test://mixed-content-resource", '{"test":"data","value":123}'),
    ],
}


def enum_of(*values):
    return {"type": "string", "enum": list(values)}


ASK = {
    "test_sampling": (
        "sampling/createMessage",
        lambda a: {
            "messages": [{"role": "user", "content": text(a.get("prompt", "Hi"))}],
            "maxTokens": 100,
        },
    ),
    "test_elicitation": (
        "elicitation/create",
        lambda a: {
            "message": a.get("message", "Who?"),
            "requestedSchema": {
                "type": "object",
                "properties": {
                    "username": {"type": "string", "description": "User's response"},
                    "email": {"type": "string", "description": "User's email address"},
                },
                "required": ["username", "email"],
            },
        },
    ),
    "test_elicitation_sep1034_defaults": (
        "elicitation/create",
        lambda a: {
            "message": "Please review and update the form fields with defaults",
            "requestedSchema": {
                "type": "object",
                "properties": {
                    "name": {"type": "string", "default": "John Doe"},
                    "age": {"type": "integer", "default": 30},
                    "score": {"type": "number", "default": 95.5},
                    "status": {**enum_of("active", "inactive", "pending"), "default": "active"},
                    "verified": {"type": "boolean", "default": True},
                },
                "required": [],
            },
        },
    ),
    "test_elicitation_sep1330_enums": (
        "elicitation/create",
        lambda a: {
            "message": "Please select options from the enum fields",
            "requestedSchema": {
                "type": "object",
                "properties": {
                    "untitledSingle": enum_of("option1", "option2", "option3"),
                    "titledSingle": {
                        "type": "string",
                        "oneOf": [
                            {"const": f"value{n}", "title": f"Option {n}"} for n in (1, 2, 3)
                        ],
                    },
                    "legacyEnum": {
                        **enum_of("opt1", "opt2", "opt3"),
                        "enumNames": ["Option One", "Option Two", "Option Three"],
                    },
                    "untitledMulti": {
                        "type": "array",
                        "items": enum_of("option1", "option2", "option3"),
                    },
                    "titledMulti": {
                        "type": "array",
                        "items": {
                            "anyOf": [
                                {"const": f"value{n}", "title": f"Choice {n}"} for n in (1, 2, 3)
                            ]
                        },
                    },
                },
                "required": [],
            },
        },
    ),
}

SCHEMA_2020_12 = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}

ELICIT = {
    "method": "elicitation/create",
    "params": {
        "mode": "form",
        "message": "What is your name?",
        "requestedSchema": {
            "type": "object",
            "properties": {"name": {"type": "string"}},
            "required": ["name"],
        },
    },
}
SAMPLE = {
    "method": "sampling/createMessage",
    "params": {
        "messages": [{"role": "user", "content": text("What is the capital of France?")}],
        "maxTokens": 100,
    },
}
ROOTS = {"method": "roots/list", "params": {}}
ROUNDS = {
    "test_input_required_result_elicitation": {"user_name": ELICIT},
    "test_input_required_result_sampling": {"capital_question": SAMPLE},
    "test_input_required_result_list_roots": {"client_roots": ROOTS},
    "test_input_required_result_request_state": {"confirm": ELICIT},
    "test_input_required_result_multiple_inputs": {
        "user_name": ELICIT,
        "greeting": SAMPLE,
        "client_roots": ROOTS,
    },
    "test_input_required_result_multi_round": {"step1": ELICIT},
    "test_input_required_result_tampered_state": {"confirm": ELICIT},
    "test_input_required_result_capabilities": {"user_name": ELICIT, "greeting": SAMPLE},
}
NEEDS = {
    "elicitation/create": "elicitation",
    "sampling/createMessage": "sampling",
    "roots/list": "roots",
}
STATEFUL = {"request_state", "multiple_inputs", "multi_round", "tampered_state"}

TOOLS = [
    {"name": name, "description": f"{name}, for the suite", "inputSchema": EMPTY}
    for name in [
        *FIXED,
        "test_tool_with_logging",
        "test_tool_with_progress",
        "test_error_handling",
        "test_elicitation_sep1034_defaults",
        "test_elicitation_sep1330_enums",
        "test_missing_capability",
        "test_streaming_elicitation",
        "test_logging_tool",
        "test_trigger_tool_change",
        "test_trigger_prompt_change",
        *ROUNDS,
    ]
] + [
    {
        "name": "test_sampling",
        "description": "Asks for a message",
        "inputSchema": {"type": "object", "properties": {"prompt": {"type": "string"}}},
    },
    {
        "name": "test_elicitation",
        "description": "Asks the user",
        "inputSchema": {"type": "object", "properties": {"message": {"type": "string"}}},
    },
    {
        "name": "json_schema_2020_12_tool",
        "description": "Tool with JSON Schema 2020-12 features",
        "inputSchema": SCHEMA_2020_12,
    },
]

RESOURCES = {
    "test://static-text": {
        "mimeType": "text/plain",
        "text": "This is the content of the static text resource.",
    },
    "test://static-binary": {"mimeType": "image/png", "blob": PNG},
    "test://watched-resource": {"mimeType": "text/plain", "text": "Watched"},
}


def user(content):
    return {"role": "user", "content": content}


PROMPTS = {
    "test_simple_prompt": lambda a: [user(text("This is a simple prompt for testing."))],
    "test_prompt_with_arguments": lambda a: [
        user(text(f"Prompt with arguments: arg1='{a.get('arg1')}', arg2='{a.get('arg2')}'"))
    ],
    "test_prompt_with_embedded_resource": lambda a: [
        user(embedded(a.get("resourceUri", "test://x"), "Embedded resource content for testing.")),
        user(text("Please process the embedded resource above.")),
    ],
    "test_prompt_with_image": lambda a: [user(IMAGE), user(text("Please analyze the image above."))],
    "test_input_required_result_prompt": None,
}
ARGUMENTS = {
    "test_prompt_with_arguments": ["arg1", "arg2"],
    "test_prompt_with_embedded_resource": ["resourceUri"],
}


def sealed(step):
    """A state a client cannot change unseen: its digest is part of it."""
    body = json.dumps({"step": step})
    digest = uuid.uuid5(uuid.NAMESPACE_OID, "a secret" + body).hex
    return base64.b64encode(f"{digest}{body}".encode()).decode()


def unsealed(state):
    try:
        body = base64.b64decode(state, validate=True).decode()[32:]
        step = json.loads(body)["step"]
        if sealed(step) == state:
            return step
    except (ValueError, KeyError, TypeError):
        pass
    raise Refused(-32602, "the request state is not one of this server")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    streaming = False

    def log_message(self, *_):
        """Says nothing."""

    # ---- HTTP -----------------------------------------------------------------------------------

    def head(self, status, **fields):
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name.replace("_", "-"), value)
        if status != 200 or "Content_Type" not in fields:
            self.send_header("Content-Length", "0")
        self.end_headers()

    def send_json(self, status, message, **fields):
        body = json.dumps(message).encode()
        self.send_response(status)
        for name, value in {"Content_Type": "application/json", **fields}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def event(self, message):
        if not self.streaming:
            self.streaming = True
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.close_connection = True
            self.end_headers()
        self.wfile.write(b"data: " + json.dumps(message).encode() + b"\n\n")
        self.wfile.flush()

    def tell(self, method, params):
        self.event({"jsonrpc": "2.0", "method": method, "params": params})

    def local(self):
        def name_of(value):
            host = value.split("://")[-1].split("/")[0]
            return host.rsplit(":", 1)[0] if "]" not in host else host.split("]")[0] + "]"

        local = {"localhost", "127.0.0.1", "[::1]"}
        origin = self.headers.get("Origin")
        return name_of(self.headers.get("Host", "")) in local and (
            origin is None or name_of(origin) in local
        )

    def do_DELETE(self):
        if sessions.pop(self.headers.get("Mcp-Session-Id"), None) is None:
            return self.head(404)
        self.head(200)

    def do_GET(self):
        session = sessions.get(self.headers.get("Mcp-Session-Id"))
        if not self.local():
            return self.head(403)
        if session is None:
            return self.head(405)
        try:
            self.streaming = False
            while self.headers.get("Mcp-Session-Id") in sessions:
                try:
                    self.event(session.get(timeout=5))
                except queue.Empty:
                    if not self.streaming:
                        self.tell("notifications/message", {"level": "debug", "data": "here"})
        except OSError:
            pass

    def do_POST(self):
        self.streaming = False
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.local():
            return self.head(403)
        try:
            message = json.loads(body)
        except ValueError:
            error = {"code": -32700, "message": "not JSON"}
            return self.send_json(400, {"jsonrpc": "2.0", "id": None, "error": error})
        if "method" not in message:
            if (slot := waiting.pop(message.get("id"), None)) is not None:
                slot.put(message)
            return self.head(202)
        if "id" not in message:
            return self.head(202)
        try:
            self.answer(message)
        except OSError:
            pass

    def answer(self, message):
        identity = {"jsonrpc": "2.0", "id": message["id"]}
        fields = {}
        status = 200
        try:
            reply = {"result": self.result(message, fields)}
        except Refused as refused:
            reply, status = {"error": refused.error}, refused.status
        if self.streaming:
            return self.event({**identity, **reply})
        self.send_json(status, {**identity, **reply}, **fields)

    # ---- MCP ------------------------------------------------------------------------------------

    def result(self, message, fields):
        method, params, self.id = message["method"], message.get("params") or {}, message["id"]
        meta = params.get("_meta") or {}
        version = self.headers.get("MCP-Protocol-Version")
        self.modern = META + "protocolVersion" in meta or version == MODERN
        if self.modern:
            self.check_modern(method, params, meta, version)
        elif method == "initialize":
            session = uuid.uuid4().hex
            sessions[session] = queue.Queue()
            fields["Mcp_Session_Id"] = session
            asked = params.get("protocolVersion")
            return {
                "protocolVersion": asked if asked in LEGACY else LEGACY[0],
                "serverInfo": {"name": "conformance", "version": "1"},
                "capabilities": self.capabilities(),
            }
        else:
            session = self.headers.get("Mcp-Session-Id")
            if session is None:
                raise Refused(-32000, "no session", status=400)
            if session not in sessions:
                raise Refused(-32001, "no such session", status=404)
            if version is not None and version not in LEGACY:
                raise Refused(-32600, "no such version", status=400)
        result = self.dispatch(method, params, meta)
        if self.modern:
            result.setdefault("resultType", "complete")
            if method.endswith("/list") or method in ("resources/read", "server/discover"):
                if result["resultType"] == "complete":
                    result.update(ttlMs=1000, cacheScope="private")
        return result

    def capabilities(self):
        return {
            "tools": {"listChanged": True},
            "resources": {"subscribe": True, "listChanged": True},
            "prompts": {"listChanged": True},
            "completions": {},
            "logging": {},
        }

    def check_modern(self, method, params, meta, version):
        named = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
        for key in ("protocolVersion", "clientCapabilities"):
            if META + key not in meta:
                raise Refused(-32602, f"_meta lacks {key}", status=400)
        if version != meta[META + "protocolVersion"]:
            raise Refused(-32020, "MCP-Protocol-Version is not what the body says", status=400)
        if version != MODERN:
            data = {"supported": [MODERN, *LEGACY], "requested": version}
            raise Refused(-32022, "unsupported version", data, 400)
        if self.headers.get("Mcp-Method") != method:
            raise Refused(-32020, "Mcp-Method is not what the body says", status=400)
        name = self.headers.get("Mcp-Name", "").strip()
        if name.startswith("=?base64?"):
            name = base64.b64decode(name[9:-2]).decode()
        if method in named and name != params.get(named[method]):
            raise Refused(-32020, "Mcp-Name is not what the body says", status=400)

    def dispatch(self, method, params, meta):
        if method == "server/discover" and self.modern:
            return {
                "supportedVersions": [MODERN, *LEGACY],
                "capabilities": self.capabilities(),
                "serverInfo": {"name": "conformance", "version": "1"},
                "_meta": {META + "serverInfo": {"name": "conformance", "version": "1"}},
            }
        if not self.modern and method in ("ping", "resources/subscribe", "resources/unsubscribe"):
            return {}
        if not self.modern and method == "logging/setLevel":
            return {}
        if method == "tools/list":
            return {"tools": TOOLS}
        if method == "resources/list":
            return {
                "resources": [
                    {"uri": uri, "name": uri, "mimeType": body["mimeType"]}
                    for uri, body in RESOURCES.items()
                ]
            }
        if method == "resources/templates/list":
            template = "test://template/{id}/data"
            return {"resourceTemplates": [{"uriTemplate": template, "name": "template"}]}
        if method == "prompts/list":
            return {
                "prompts": [
                    {
                        "name": name,
                        "description": name,
                        "arguments": [
                            {"name": argument, "required": True}
                            for argument in ARGUMENTS.get(name, [])
                        ],
                    }
                    for name in PROMPTS
                ]
            }
        if method == "resources/read":
            return self.read(params.get("uri"))
        if method == "prompts/get":
            return self.prompt(params, meta)
        if method == "completion/complete":
            return {"completion": {"values": ["paris", "park"], "total": 2, "hasMore": False}}
        if method == "tools/call":
            return self.tool(params, meta)
        if method == "subscriptions/listen" and self.modern:
            return self.listen(params.get("notifications") or {})
        raise Refused(-32601, f"no method {method}", status=404 if self.modern else 200)

    def read(self, uri):
        if uri in RESOURCES:
            return {"contents": [{"uri": uri, **RESOURCES[uri]}]}
        parts = str(uri).split("/")
        if str(uri).startswith("test://template/") and parts[-1] == "data":
            body = {"id": parts[3], "templateTest": True, "data": f"Data for ID: {parts[3]}"}
            contents = {"uri": uri, "mimeType": "application/json", "text": json.dumps(body)}
            return {"contents": [contents]}
        raise Refused(-32602 if self.modern else -32002, "Resource not found", {"uri": uri})

    def prompt(self, params, meta):
        name = params.get("name")
        if name not in PROMPTS:
            raise Refused(-32602, f"no prompt {name}")
        if PROMPTS[name] is None:
            given = (params.get("inputResponses") or {}).get("user_context")
            if given is None:
                return {"resultType": "input_required", "inputRequests": {"user_context": ELICIT}}
            return {"messages": [user(text(f"With context: {json.dumps(given)}"))]}
        return {"messages": PROMPTS[name](params.get("arguments") or {})}

    def listen(self, wanted):
        identity = {META + "subscriptionId": self.id}
        news = queue.Queue()
        listeners.append(news)
        try:
            method = "notifications/subscriptions/acknowledged"
            self.tell(method, {"_meta": identity, "notifications": wanted})
            while True:
                try:
                    kind = news.get(timeout=5)
                except queue.Empty:
                    self.wfile.write(b": here\n\n")
                    self.wfile.flush()
                    continue
                if wanted.get(f"{kind}ListChanged"):
                    self.tell(f"notifications/{kind}/list_changed", {"_meta": identity})
        finally:
            listeners.remove(news)

    def tool(self, params, meta):
        name, arguments = params.get("name"), params.get("arguments") or {}
        if name in FIXED:
            return {"content": FIXED[name]}
        if name == "test_error_handling":
            said = "This tool intentionally returns an error for testing"
            return {"content": [text(said)], "isError": True}
        if name == "test_tool_with_logging":
            for step in ("started", "processing data", "completed"):
                said = {"level": "info", "logger": "fixture", "data": f"Tool execution {step}"}
                self.tell("notifications/message", said)
                time.sleep(0.05)
            return {"content": [text("Tool with logging executed successfully")]}
        if name == "test_tool_with_progress":
            token = meta.get("progressToken")
            for step in (0, 50, 100) if token is not None else ():
                said = {"progressToken": token, "progress": step, "total": 100}
                self.tell("notifications/progress", said)
                time.sleep(0.05)
            return {"content": [text(f"{token}")]}
        if name == "test_logging_tool":
            if META + "logLevel" in meta:
                self.tell("notifications/message", {"level": "info", "data": "logged"})
            return {"content": [text("done")]}
        if name == "test_missing_capability":
            if "sampling" not in (meta.get(META + "clientCapabilities") or {}):
                data = {"requiredCapabilities": {"sampling": {}}}
                raise Refused(-32021, "sampling is needed", data, 400 if self.modern else 200)
            return {"content": [text("done")]}
        if name == "test_streaming_elicitation":
            if (token := meta.get("progressToken")) is not None:
                self.tell("notifications/progress", {"progressToken": token, "progress": 1})
            if self.modern and not params.get("inputResponses"):
                return {"resultType": "input_required", "inputRequests": {"user_name": ELICIT}}
            return {"content": [text("done")]}
        if name.startswith("test_trigger_"):
            for listener in list(listeners):
                listener.put("tools" if "tool" in name.removeprefix("test_trigger_") else "prompts")
            return {"content": [text("changed")]}
        if name == "json_schema_2020_12_tool":
            return {"content": [text(json.dumps(arguments))]}
        if name in ASK and not self.modern:
            method, question = ASK[name]
            said = self.ask(method, question(arguments))
            return {"content": [text(f"The client said: {json.dumps(said)}")]}
        if name in ROUNDS and self.modern:
            return self.round(name, params, meta)
        if name in ROUNDS or name in ASK:
            return {"content": [text("not in this era")], "isError": True}
        raise Refused(-32602, f"Unknown tool: {name}")

    def ask(self, method, params):
        question, slot = uuid.uuid4().hex, queue.Queue()
        waiting[question] = slot
        self.event({"jsonrpc": "2.0", "id": question, "method": method, "params": params})
        try:
            return slot.get(timeout=20).get("result")
        except queue.Empty:
            waiting.pop(question, None)
            raise Refused(-32603, "the client did not answer") from None

    def round(self, name, params, meta):
        given, state = params.get("inputResponses"), params.get("requestState")
        kind = name.removeprefix("test_input_required_result_")
        step = unsealed(state) if state is not None else 0
        wanted = ROUNDS[name]
        if kind == "capabilities":
            can = meta.get(META + "clientCapabilities") or {}
            wanted = {key: ask for key, ask in wanted.items() if NEEDS[ask["method"]] in can}
            if not wanted:
                return {"content": [text("nothing can be asked")]}
        if kind == "multi_round" and step == 1:
            wanted = {"step2": ELICIT}
        asked = {"resultType": "input_required", "inputRequests": wanted}
        if kind in STATEFUL:
            asked["requestState"] = sealed(step)
        if not given or not all(isinstance(given.get(key), dict) for key in wanted):
            return asked
        if kind == "multi_round" and step == 0:
            return {
                "resultType": "input_required",
                "inputRequests": {"step2": ELICIT},
                "requestState": sealed(1),
            }
        if kind in STATEFUL and state is None:
            return asked
        said = "state-ok " if state is not None else ""
        return {"content": [text(said + json.dumps(given))]}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64


if __name__ == "__main__":
    Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()

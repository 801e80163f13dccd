"""An MCP server of the newest revision in one file: `tiny_server.py PORT NAME [TOOL]`.

Its only tool, `who` or as it is told, is read-only, takes a while if asked to, and answers with the server's name;
with `about: "meta"` with the `_meta` it was given.
"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOOL = {
    "name": "who",
    "inputSchema": {
        "type": "object",
        "properties": {"seconds": {"type": "number"}, "about": {"type": "string"}},
    },
    "annotations": {"readOnlyHint": True},
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if "id" not in request:
            return self.answer(202, b"")
        answer = {"jsonrpc": "2.0", "id": request["id"]}
        match request["method"]:
            case "server/discover":
                answer["result"] = {
                    "resultType": "complete",
                    "supportedVersions": ["2026-07-28"],
                    "capabilities": {"tools": {}},
                }
            case "tools/list":
                answer["result"] = {"resultType": "complete", "tools": [TOOL]}
            case "tools/call":
                arguments = request["params"].get("arguments", {})
                time.sleep(arguments.get("seconds", 0))
                told = self.server.name
                if arguments.get("about") == "meta":
                    told = json.dumps(request["params"].get("_meta", {}))
                content = [{"type": "text", "text": told}]
                answer["result"] = {"resultType": "complete", "content": content}
            case _:
                answer["error"] = {"code": -32601, "message": "no such method"}
        return self.answer(200, json.dumps(answer).encode())

    def answer(self, status, body):
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n"
        self.wfile.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


if __name__ == "__main__":
    with Server(("127.0.0.1", int(sys.argv[1])), Handler) as server:
        server.name = sys.argv[2]
        TOOL["name"] = sys.argv[3] if len(sys.argv) > 3 else TOOL["name"]
        server.serve_forever()

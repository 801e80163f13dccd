"""A model provider that does what a test tells it to, over real HTTP and real event streams."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TEXT = ["Oslo ", "is ", "in ", "Norway."]
CALL = {"name": "weather", "arguments": '{"city": "Oslo"}'}
USAGE = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}


class Provider:
    """An OpenAI-compatible provider; `act` is what it does, `seen` what it was asked.

    `act` is "answer", ("status", number, error) or ("cut", words): break the stream after so many.
    """

    def __init__(self):
        self.act = "answer"
        self.seen = []
        provider = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                provider.seen.append(body)
                provider.answer(self, body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler, body):
        if self.act != "answer" and self.act[0] == "status":
            _, status, error = self.act
            self.whole(handler, {"error": error}, status)
        elif handler.path.endswith("/embeddings"):
            vector = {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}
            self.whole(handler, {"object": "list", "model": body["model"], "data": [vector], "usage": USAGE})
        elif body.get("stream"):
            self.stream(handler, body)
        else:
            self.whole(handler, self.completion(body))

    def completion(self, body):
        message = {"role": "assistant", "content": "".join(TEXT)}
        finish = "stop"
        if body.get("tools"):
            call = {"id": "call_1", "type": "function", "function": CALL}
            message, finish = {"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls"
        choice = {"index": 0, "message": message, "finish_reason": finish}
        return {
            "id": "c1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [choice],
            "usage": USAGE,
        }

    def whole(self, handler, value, status=200):
        data = json.dumps(value).encode()
        handler.send_response(status)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def deltas(self, body):
        """Each delta of an answer and what it finishes with."""
        yield {"role": "assistant", "content": ""}, None
        if body.get("tools"):
            call = {"index": 0, "id": "call_1", "type": "function"}
            yield {"tool_calls": [{**call, "function": {**CALL, "arguments": ""}}]}, None
            for part in (CALL["arguments"][:8], CALL["arguments"][8:]):
                yield {"tool_calls": [{"index": 0, "function": {"arguments": part}}]}, None
            yield {}, "tool_calls"
        else:
            for word in TEXT:
                yield {"content": word}, None
            yield {}, "stop"

    def stream(self, handler, body):
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()

        def send(text):
            data = f"data: {text}\n\n".encode()
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

        cut = self.act[1] if self.act[0] == "cut" else None
        for at, (delta, finish) in enumerate(self.deltas(body)):
            if cut is not None and at > cut:
                handler.close_connection = True  # without the chunk that ends the body
                return
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            chunk = {"id": "c1", "object": "chat.completion.chunk", "created": 1}
            send(json.dumps({**chunk, "model": body["model"], "choices": [choice]}))
        if (body.get("stream_options") or {}).get("include_usage"):
            chunk = {"id": "c1", "object": "chat.completion.chunk", "created": 1}
            send(json.dumps({**chunk, "model": body["model"], "choices": [], "usage": USAGE}))
        send("[DONE]")
        handler.wfile.write(b"0\r\n\r\n")

"""A model on this machine: it speaks HTTP as OpenAI's does, to the client that asks real ones, and counts."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ModelServer(ThreadingHTTPServer):
    """Answers every question with the same words, one by one; with a status other than 200 it refuses instead."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.words = ["Trains ", "are ", "**long**."]
        self.name = '"Trains of Europe"'
        self.status = 200
        self.error = {"message": "refused"}
        # How a reply ends: OpenAI's word for it, or None for a connection that is closed without one.
        self.reason: str | None = "stop"
        self.breaks_off = False
        self.seconds_per_word = 0.0
        self.requests: list[dict[str, Any]] = []

    @property
    def environment(self) -> dict[str, str]:
        """The variables under which the client finds this server."""
        return {"OPENAI_API_KEY": "a-key", "OPENAI_BASE_URL": f"http://127.0.0.1:{self.server_port}/v1"}

    @property
    def replies_begun(self) -> int:
        """How many replies were asked for; names are not streamed."""
        return sum(bool(request.get("stream")) for request in self.requests)


class Handler(BaseHTTPRequestHandler):
    server: ModelServer

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(asked)
        if self.server.status != 200:
            self.send_json({"error": self.server.error}, self.server.status)
        elif asked.get("stream"):
            self.send_words()
        else:
            self.send_json(completion("message", {"role": "assistant", "content": self.server.name}))

    def send_json(self, content: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_words(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        if self.server.breaks_off:
            self.send_header("Content-Length", "1000000")
        self.end_headers()
        for word in self.server.words:
            time.sleep(self.server.seconds_per_word)
            self.send_event(json.dumps(completion("delta", {"role": "assistant", "content": word}, reason=None)))
        if self.server.reason and not self.server.breaks_off:
            self.send_event(json.dumps(completion("delta", {}, self.server.reason)))
            self.send_event("[DONE]")

    def send_event(self, data: str) -> None:
        self.wfile.write(f"data: {data}\n\n".encode())
        self.wfile.flush()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


def completion(kind: str, content: dict[str, Any], reason: str | None = "stop") -> dict[str, Any]:
    """Return an answer in OpenAI's format, whole ("message") or in part ("delta")."""
    choice = {"index": 0, "finish_reason": reason, kind: content}
    name = "chat.completion" if kind == "message" else "chat.completion.chunk"
    return {"id": "1", "object": name, "created": 1, "model": "trains", "choices": [choice]}


@contextmanager
def model_server() -> Iterator[ModelServer]:
    """Run the model until the end of the block."""
    with ModelServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()

"""A Stripe for tests: a server that speaks to the real SDK, and keeps what it is told.

>>> with FakeStripe() as stripe:
...     stripe.url
'http://127.0.0.1:…'
"""

import json
import threading
import time
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

YEAR_2030 = 1_900_000_000


class Call(NamedTuple):
    """One request, with its form as Stripe writes it: {"line_items[0][quantity]": "3"}."""

    method: str
    path: str
    form: dict[str, str]


class FakeStripe:
    """Give `url` to the SDK. `objects` holds what there is by path, `calls` what was asked."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        # The statuses of the next answers, before all is well again.
        self.failures: deque[int] = deque()
        self.delay_seconds = 0.0
        self.objects: dict[str, dict[str, Any]] = {}
        # Customers that were deleted, or belong to another key.
        self.unknown_customers: set[str] = set()
        # The checkouts that can still be paid.
        self.open_sessions: list[dict[str, Any]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"stripe": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "FakeStripe":
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def subscribe(self, team_id: int, quantity: int = 1, number: int = 1, **changed: Any) -> str:
        """Make a subscription, and return its id."""
        item = {"id": f"si_{number}", "quantity": quantity, "current_period_end": YEAR_2030, "price": {"id": "price_1"}}
        self.objects[f"/v1/subscription_items/si_{number}"] = item
        self.objects[f"/v1/subscriptions/sub_{number}"] = {
            "id": f"sub_{number}",
            "object": "subscription",
            "customer": f"cus_{number}",
            "livemode": False,
            "status": "active",
            "metadata": {"team": str(team_id)},
            "items": {"object": "list", "data": [item]},
        } | changed
        return f"sub_{number}"

    def answer(self, call: Call) -> tuple[int, dict[str, Any]]:
        """Return the status and the object for a call."""
        if self.failures:
            return self.failures.popleft(), {"error": {"message": "No."}}
        if call.path == "/v1/customers":
            return 200, {"id": f"cus_{[one.path for one in self.calls].count(call.path)}"}
        if (customer := call.form.get("customer")) in self.unknown_customers:
            error = {"code": "resource_missing", "param": "customer", "message": f"No such customer: '{customer}'"}
            return 400, {"error": {"type": "invalid_request_error"} | error}
        if call.path == "/v1/checkout/sessions":
            return 200, self._checkout(call)
        if call.path == "/v1/subscriptions":
            return 200, self._list(self._not_canceled())
        if call.path.endswith("/expire"):
            self.open_sessions.clear()
            return 200, {"status": "expired"}
        if call.path.endswith("/sessions"):
            return 200, {"url": "https://stripe.example/page"}
        if call.path not in self.objects:
            return 404, {"error": {"type": "invalid_request_error", "message": f"No such {call.path}"}}
        found = self.objects[call.path]
        if "quantity" in call.form:
            found["quantity"] = int(call.form["quantity"])
        return 200, found

    def _checkout(self, call: Call) -> dict[str, Any]:
        """List the sessions that are open, or open one."""
        if call.method == "GET":
            return self._list(self.open_sessions)
        self.open_sessions.append({"id": f"cs_{len(self.calls)}", "url": "https://stripe.example/page"})
        return self.open_sessions[-1]

    def _not_canceled(self) -> list[dict[str, Any]]:
        found = (body for path, body in self.objects.items() if path.startswith("/v1/subscriptions/"))
        return [body for body in found if body["status"] != "canceled"]

    def _list(self, data: list[dict[str, Any]]) -> dict[str, Any]:
        return {"object": "list", "data": data, "has_more": False}


class Handler(BaseHTTPRequestHandler):
    """Speaks HTTP for the FakeStripe."""

    protocol_version = "HTTP/1.1"
    stripe: FakeStripe

    def do_GET(self) -> None:
        form = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        url = urlsplit(self.path)
        call = Call(self.command, url.path, dict(parse_qsl(form or url.query)))
        self.stripe.calls.append(call)
        status, body = self.stripe.answer(call)
        time.sleep(self.stripe.delay_seconds)
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

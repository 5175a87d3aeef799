"""Who a visitor is, and how much and how slowly a visitor may send."""

import asyncio
import time

import pytest
from django.core.cache import caches
from django.core.handlers.asgi import ASGIHandler
from django.test import RequestFactory

from apps.web.asgi import guarded
from apps.web.middleware import find_visitor
from tests.environment import load_settings

# Visitors' addresses --------------------------------------------------------


@pytest.mark.parametrize(
    ("proxies", "forwarded", "address"),
    [
        (0, "192.0.2.1", "10.0.0.1"),
        (1, "192.0.2.1", "192.0.2.1"),
        (1, "192.0.2.66, 192.0.2.1", "192.0.2.1"),
        (1, "2001:db8::1", "2001:db8::1"),
        (3, "192.0.2.66, 192.0.2.1, 172.70.0.1, 10.1.1.1", "192.0.2.1"),
        (3, "192.0.2.1", "10.0.0.1"),
        (1, "nonsense", "10.0.0.1"),
        (1, None, "10.0.0.1"),
    ],
)
def test_a_visitor_has_the_address_that_the_outermost_proxy_has_seen(settings, proxies, forwarded, address):
    settings.ALLAUTH_TRUSTED_PROXY_COUNT = proxies
    headers = {"X-Forwarded-For": forwarded} if forwarded else {}
    request = RequestFactory().get("/", headers=headers, REMOTE_ADDR="10.0.0.1")
    assert find_visitor(lambda request: request.META["REMOTE_ADDR"])(request) == address


def test_the_server_logs_the_same_address(settings):
    settings.ALLAUTH_TRUSTED_PROXY_COUNT = 1
    request = RequestFactory().get("/", headers={"X-Forwarded-For": "192.0.2.1"})
    request.scope = {"client": ("10.0.0.1", 1234)}
    find_visitor(lambda request: None)(request)
    assert request.scope["client"] == ("192.0.2.1", 0)


# Counting -------------------------------------------------------------------


def test_in_production_all_processes_share_the_cache_in_the_database(db, tmp_path, settings):
    required = dict.fromkeys(load_settings(tmp_path)["required_in_production"], "memory://")
    settings.CACHES = load_settings(tmp_path, **required | {"ALLOWED_HOSTS": "example.com", "DEBUG": ""})["CACHES"]
    one, other = caches.create_connection("default"), caches.create_connection("default")
    assert one.add("attempts", 1) and not other.add("attempts", 1)
    assert other.incr("attempts") == 2 and one.get("attempts") == 2


# ASGI -----------------------------------------------------------------------


async def answer(messages: list[dict], **scope: object) -> list[dict]:
    """Return what the application sends for a request with this body, or for something that is no request."""
    sent: list[dict] = []
    waiting = list(messages)

    async def receive() -> dict:
        if not waiting:
            await asyncio.sleep(60)
        return waiting.pop(0)

    async def send(message: dict) -> None:
        sent.append(message)

    whole = {"type": "http", "method": "POST", "path": "/up", "headers": [], "query_string": b"", **scope}
    await guarded(ASGIHandler())(whole, receive, send)
    return sent


def body(*pieces: bytes, ends: bool = True) -> list[dict]:
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    if ends:
        messages[-1]["more_body"] = False
    return messages


@pytest.mark.parametrize(
    ("messages", "headers", "status"),
    [
        (body(b"x" * 1000), [], 200),
        (body(b"x" * 500, b"x" * 501), [], 413),
        (body(b"x" * 500, b"x" * 501, ends=False), [], 413),
        ([], [(b"content-length", b"1001")], 413),
    ],
)
def test_a_body_that_is_too_large_is_refused_before_django_reads_it(settings, messages, headers, status):
    settings.REQUEST_MAX_BYTES = 1000
    assert asyncio.run(answer(messages, headers=headers))[0]["status"] == status


def test_a_body_that_drips_is_cut_off(settings):
    settings.REQUEST_SECONDS = 0.01
    began = time.monotonic()
    assert asyncio.run(answer(body(b"x", ends=False)))[0]["status"] == 408
    assert time.monotonic() - began < 30


def test_a_web_socket_is_refused_without_a_traceback():
    assert asyncio.run(answer([{"type": "websocket.connect"}], type="websocket")) == [{"type": "websocket.close"}]


def test_a_request_may_have_ten_megabytes_unless_a_variable_says_more(tmp_path):
    assert load_settings(tmp_path)["REQUEST_MAX_BYTES"] == 10 * 2**20
    assert load_settings(tmp_path, REQUEST_MAX_MB="25")["REQUEST_MAX_BYTES"] == 25 * 2**20

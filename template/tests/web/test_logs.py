"""Log lines can be JSON, and all that one request causes has its id."""

import io
import json
import logging

import pytest
from django.http import HttpResponse
from django.test import AsyncRequestFactory, RequestFactory

from apps.web.logs import JsonFormatter, fields
from apps.web.middleware import identify_request
from tests.environment import load_settings

logger = logging.getLogger(__name__)


@pytest.fixture
def lines(monkeypatch):
    """`lines()` returns the lines that were logged as JSON."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [*root.handlers, handler])
    monkeypatch.setattr(root, "level", logging.INFO)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_an_object_whatever_stands_in_the_message(lines):
    logger.warning("two\nlines of %s", "é\"'")
    [line] = lines()
    assert line.pop("time").endswith("+00:00")
    assert line == {"level": "WARNING", "logger": __name__, "message": "two\nlines of é\"'"}


def test_an_exception_stays_on_its_line(lines):
    try:
        raise ValueError("on purpose")
    except ValueError:
        logger.exception("It failed")
    [line] = lines()
    assert line["exception"].startswith("Traceback") and line["exception"].endswith("ValueError: on purpose")


def test_the_lines_of_a_request_have_the_id_that_the_answer_has(lines):
    def view(request):
        logger.info("during")
        return HttpResponse()

    answer = identify_request(view)(RequestFactory().get("/"))
    logger.info("after")
    during, after = lines()
    assert during["request_id"] == answer.headers["X-Request-ID"] and len(during["request_id"]) == 32
    assert "request_id" not in after


async def ask(view):
    return await identify_request(view)(AsyncRequestFactory().get("/", headers={"X-Request-ID": "abc-1"}))


def test_the_same_applies_to_an_async_view(lines):
    from asgiref.sync import async_to_sync, sync_to_async

    async def view(request):
        await sync_to_async(logger.info)("in a thread")
        return HttpResponse()

    assert async_to_sync(ask)(view).headers["X-Request-ID"] == lines()[0]["request_id"] == "abc-1"


@pytest.mark.parametrize("given, is_taken", [("abc-1", True), ("x" * 101, False), ("a b", False), ("<script>", False)])
def test_the_id_of_a_proxy_is_taken_over_if_it_is_plain(given, is_taken):
    request = RequestFactory().get("/", headers={"X-Request-ID": given})
    answer = identify_request(lambda request: HttpResponse())(request)
    assert (answer.headers["X-Request-ID"] == given) == is_taken
    assert fields.get() == {}


def test_a_page_that_is_not_found_is_logged_with_its_id(client, lines, settings):
    settings.ALLOWED_HOSTS = ["testserver"]
    answer = client.get("/is/not/there", headers={"X-Request-ID": "abc-1"})
    assert answer.headers["X-Request-ID"] == "abc-1"
    assert [line["request_id"] for line in lines() if line["message"] == "Not Found: /is/not/there"] == ["abc-1"]


def test_one_variable_says_the_form_of_the_lines(tmp_path):
    plain, wanted = load_settings(tmp_path), load_settings(tmp_path, LOG_FORMAT="json")
    assert plain["LOGGING"]["handlers"]["console"]["formatter"] == "plain"
    assert wanted["LOGGING"]["handlers"]["console"]["formatter"] == "json"
    assert all(each["handlers"] == [] for each in wanted["LOGGING"]["loggers"].values())

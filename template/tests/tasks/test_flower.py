"""Flower shows nothing without the password, can be guessed at only slowly, and stays out of frames."""

import asyncio
import base64

import pytest

pytest.importorskip("celery")
pytest.importorskip("flower")

from celery import current_app
from django.conf import settings
from flower.app import Flower
from flower.urls import handlers
from flower.urls import settings as flower_settings
from flower.views import BaseHandler
from flower.views.monitor import Metrics
from tornado.httpclient import AsyncHTTPClient
from tornado.httpserver import HTTPServer
from tornado.options import options
from tornado.testing import bind_unused_port

FIGURES = f"/{Metrics.__name__.lower()}"
CONFIG = str(settings.BASE_DIR / "flowerconfig.py")


@pytest.fixture(autouse=True)
def pages(monkeypatch):
    """Leave Flower's pages as they were. Its options change them each time that they are read."""
    for name in ("get_current_user", "set_default_headers"):
        monkeypatch.setattr(BaseHandler, name, getattr(BaseHandler, name))


@pytest.fixture
def password():
    options.basic_auth, before = ["user:password"], options.basic_auth
    yield
    options.basic_auth = before


def ask(*requests: tuple[str, str]) -> list:
    """Ask Flower for each path, with these credentials if there are any; return the answers."""

    async def asked() -> list:
        options.parse_config_file(CONFIG, final=False)
        server = HTTPServer(Flower(capp=current_app, options=options, handlers=handlers, **flower_settings))
        listening, port = bind_unused_port()
        server.add_socket(listening)
        answers = []
        for path, credentials in requests:
            token = base64.b64encode(credentials.encode()).decode()
            headers = {"Authorization": f"Basic {token}"} if credentials else {}
            url = f"http://127.0.0.1:{port}{path}"
            answers.append(await AsyncHTTPClient().fetch(url, headers=headers, raise_error=False))
        server.stop()
        return answers

    return asyncio.run(asked())


def test_the_figures_need_the_password_and_the_health_check_does_not(password):
    answers = ask((FIGURES, ""), (FIGURES, ":"), (FIGURES, "user:password"), ("/healthcheck", ""))
    assert [answer.code for answer in answers] == [401, 401, 200, 200]


def test_no_page_is_shown_in_a_frame(password):
    for answer in ask(("/healthcheck", ""), ("/nowhere", ""), ("/", "")):
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]


def test_passwords_are_not_guessed_without_end(password):
    codes = [answer.code for answer in ask(*[(FIGURES, f"user:{number}") for number in range(40)])]
    assert codes.count(401) <= 20 and 429 in codes


@pytest.mark.parametrize("credentials", [":", "user:", ":password", "user"])
def test_a_login_without_a_user_or_a_password_is_refused(password, credentials):
    options.basic_auth = [credentials]
    with pytest.raises(SystemExit, match="must be user:password"):
        options.parse_config_file(CONFIG, final=False)

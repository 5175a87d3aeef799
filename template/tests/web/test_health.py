"""Monitoring learns whether the project works, and what does not."""

import asyncio
import threading
import time

import pytest
from django.test import AsyncClient
from django.urls import reverse

from apps.web import health


@pytest.fixture
def checks(monkeypatch):
    """Return the registered checks, emptied for the test."""
    monkeypatch.setattr(health, "_runs", {})
    monkeypatch.setattr(health, "checks", {})
    return health.checks


@pytest.fixture
def get_health(client, settings):
    """Return a function that asks for /health/ as in production, with the token."""
    settings.HEALTH_TOKEN = "sesame"
    return lambda token="sesame": client.get(reverse("web:health"), headers={"Authorization": f"Bearer {token}"})


def test_up_answers_any_host_and_touches_nothing(client):
    # Without the `db` fixture, whatever asks the database raises.
    response = client.get("/up", headers={"Host": "10.0.0.7"})
    assert (response.status_code, response.content) == (200, b"ok")


def test_up_answers_asynchronously():
    assert asyncio.run(AsyncClient().get("/up")).content == b"ok"


@pytest.mark.django_db(transaction=True)
def test_database_and_cache_are_fine():
    results = health.run_checks()
    assert (results["database"], results["cache"]) == ("ok", "ok")


def test_all_fine_is_200(get_health, checks):
    checks["thing"] = lambda: None
    response = get_health()
    assert (response.status_code, response.json()) == (200, {"thing": "ok"})


def test_a_detail_is_shown_and_changes_nothing(get_health, checks):
    checks["thing"] = lambda: "3 left"
    response = get_health()
    assert (response.status_code, response.json()) == (200, {"thing": "ok, 3 left"})


def test_what_is_down_is_named_in_a_503(get_health, checks):
    def refuse():
        raise health.Unhealthy("does not answer")

    checks.update(good=lambda: None, bad=refuse)
    response = get_health()
    assert (response.status_code, response.json()) == (503, {"good": "ok", "bad": "does not answer"})


def test_an_unexpected_error_tells_no_secrets(get_health, checks):
    def leak():
        raise ConnectionError("cannot reach postgres://user:secret@host")

    checks["bad"] = leak
    assert get_health().json() == {"bad": "failed with ConnectionError"}


def test_a_check_that_hangs_is_named_in_time(checks):
    release = threading.Event()
    checks.update(good=lambda: None, hanging=release.wait)
    started = time.monotonic()
    results = health.run_checks(timeout_seconds=0.2)
    release.set()
    assert results == {"good": "ok", "hanging": "no answer in time"}
    assert time.monotonic() - started < 2


def test_a_check_that_hangs_takes_one_thread_however_often_it_is_asked(checks):
    release, calls = threading.Event(), []
    checks["hanging"] = lambda: calls.append(1) or release.wait()
    for _ in range(3):
        health.run_checks(timeout_seconds=0.05)
    release.set()
    assert len(calls) == 1


def test_a_check_that_hung_is_tried_again_after_a_while(checks, monkeypatch):
    monkeypatch.setattr(health, "RETRY_HANGING_SECONDS", 0)
    release, calls = threading.Event(), []
    checks["hanging"] = lambda: calls.append(1) or release.wait()
    for _ in range(2):
        health.run_checks(timeout_seconds=0.05)
    release.set()
    assert len(calls) == 2


def test_a_cache_that_forgets_is_reported(settings):
    settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
    with pytest.raises(health.Unhealthy, match="forgets"):
        health.cache_remembers()


def test_production_asks_for_the_token(get_health, checks):
    assert get_health("Sesame").status_code == 401
    assert get_health("pässword").status_code == 401


def test_without_a_token_production_has_no_such_page(get_health, checks, settings, db):
    settings.HEALTH_TOKEN = ""
    assert get_health("").status_code == 404


def test_development_needs_no_token(client, checks, settings):
    settings.DEBUG = True
    assert client.get(reverse("web:health")).status_code == 200

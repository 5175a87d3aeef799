"""Monitoring learns whether the project works, and what does not."""

import asyncio
import threading

import pytest
from django.test import AsyncClient
from django.urls import reverse

from apps.web import health

# Long enough for a machine with other things to do.
PATIENCE_SECONDS = 60


@pytest.fixture
def checks(monkeypatch):
    """Return the registered checks, emptied for the test; they have time, however busy the machine."""
    monkeypatch.setattr(health.run_checks, "__defaults__", (PATIENCE_SECONDS,))
    monkeypatch.setattr(health, "_runs", {})
    monkeypatch.setattr(health, "checks", {})
    return health.checks


@pytest.fixture
def hanging(checks):
    """Register a check that hangs until the test ends; return a function that counts the threads it hangs in."""
    release = threading.Event()
    checks["hanging"] = lambda: release.wait(PATIENCE_SECONDS)

    def threads():
        return [thread for thread in threading.enumerate() if thread.name == "health-hanging"]

    yield lambda: len(threads())
    release.set()
    for thread in threads():
        thread.join()


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
def test_database_and_cache_are_fine(monkeypatch):
    both = {name: health.checks[name] for name in ("cache", "database")}
    monkeypatch.setattr(health, "checks", both)
    assert health.run_checks(PATIENCE_SECONDS) == {"cache": "ok", "database": "ok"}


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


def test_a_check_that_hangs_is_named_and_holds_up_no_other(checks, hanging):
    checks["good"] = lambda: None
    # Asked more than once, because on a busy machine no thread may get anywhere in so short a time.
    answers = (health.run_checks(timeout_seconds=0.2) for _ in range(100))
    assert {"good": "ok", "hanging": "no answer in time"} in answers


def test_a_check_that_hangs_takes_one_thread_however_often_it_is_asked(hanging):
    for _ in range(3):
        health.run_checks(timeout_seconds=0.05)
    assert hanging() == 1


def test_a_check_that_hung_is_tried_again_after_a_while(hanging, monkeypatch):
    monkeypatch.setattr(health, "RETRY_HANGING_SECONDS", -1)
    for _ in range(2):
        health.run_checks(timeout_seconds=0.05)
    assert hanging() == 2


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

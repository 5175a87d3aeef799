"""Errors and traces are reported if a variable asks for it. Nothing else changes, and nothing else is installed."""

import sys
from types import SimpleNamespace

import pytest

from apps.web import environment, telemetry
from apps.web.environment import Unusable

DSN = "https://key@o1.ingest.sentry.io/1"


@pytest.fixture
def sentry(monkeypatch) -> dict[str, object]:
    """Have a client in the place of Sentry's; returns what it is started with."""
    given = {}
    monkeypatch.setitem(sys.modules, "sentry_sdk", SimpleNamespace(init=given.update))
    return given


def hide(monkeypatch, *names: str) -> None:
    """Have all packages seem to be installed, but for these."""
    for module in (environment, telemetry):
        monkeypatch.setattr(module, "find_spec", lambda name: None if name in names else object())


def test_without_its_variable_nothing_is_started(sentry, monkeypatch):
    monkeypatch.setattr(telemetry, "start_opentelemetry", pytest.fail)
    telemetry.start()
    assert sentry == {}


@pytest.mark.parametrize(("rate", "given"), [(0.25, 0.25), (0.0, None)])
def test_sentry_times_the_steps_of_the_share_of_requests_in_the_settings(settings, sentry, rate, given):
    settings.SENTRY_DSN, settings.SENTRY_TRACES_SAMPLE_RATE = DSN, rate
    telemetry.start()
    assert sentry == {"dsn": DSN, "traces_sample_rate": given}


def test_a_dsn_without_a_client_is_refused_in_a_sentence(monkeypatch):
    hide(monkeypatch, "sentry_sdk")
    with pytest.raises(Unusable, match='Install the extra "sentry"'):
        environment.sentry_dsn(DSN)


@pytest.mark.parametrize("missing", ["opentelemetry", "opentelemetry.distro"])
def test_a_collector_without_traces_is_a_warning(settings, monkeypatch, missing):
    settings.OPENTELEMETRY = True
    hide(monkeypatch, missing)
    monkeypatch.setattr(telemetry, "start_opentelemetry", pytest.fail)
    telemetry.start()
    [warning] = telemetry.check_opentelemetry()
    assert warning.hint == 'Install the extra "opentelemetry", or unset the variable.'


def test_opentelemetry_is_started_where_it_is_installed_and_has_a_collector(settings, monkeypatch):
    settings.OPENTELEMETRY, started = True, []
    hide(monkeypatch)
    monkeypatch.setattr(telemetry, "start_opentelemetry", lambda: started.append(True))
    telemetry.start()
    assert started and telemetry.check_opentelemetry() == []


def test_without_a_collector_there_is_no_warning():
    assert telemetry.check_opentelemetry() == []

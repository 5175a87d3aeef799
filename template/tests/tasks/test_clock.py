"""Moments survive the way into a column and back, and the end of summer time, with and without USE_TZ."""

import pytest

pytest.importorskip("celery")

from contextlib import nullcontext
from datetime import UTC, datetime, timedelta

from celery import shared_task
from celery.exceptions import Retry
from django.db import transaction
from django.utils import timezone

from apps.tasks.models import FailedTask, OutgoingTask
from apps.tasks.sending import outbox
from apps.tasks.worker.replay import send_again
from apps.web import clock

pytestmark = pytest.mark.django_db

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
# In New York the clock shows 01:30 at both.
FIRST, SECOND = datetime(2026, 11, 1, 5, 30, tzinfo=UTC), datetime(2026, 11, 1, 6, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)


@shared_task(name="tests.meet")
def meet(): ...


@pytest.fixture(params=["UTC", "America/New_York"])
def local(settings, request):
    """Without USE_TZ, in a zone that is UTC or is not."""
    settings.USE_TZ, settings.TIME_ZONE = False, request.param


@pytest.fixture
def new_york(settings):
    settings.USE_TZ, settings.TIME_ZONE = False, "America/New_York"


@pytest.fixture
def at(monkeypatch):
    """`at(moment)` sets the clock."""

    def at(moment):
        monkeypatch.setattr(clock, "now", lambda: moment)
        monkeypatch.setattr(timezone, "now", lambda: clock.for_column(moment))

    return at


def test_a_column_takes_a_moment_as_it_is_unless_the_database_has_no_zones(settings):
    settings.USE_TZ, settings.TIME_ZONE = True, "America/New_York"
    assert clock.for_column(NOON) == NOON
    settings.USE_TZ = False
    assert clock.for_column(NOON) == datetime(2026, 6, 1, 8)
    assert clock.aware(datetime(2026, 6, 1, 8)) == clock.passed(datetime(2026, 6, 1, 8)) == NOON


def test_of_an_hour_that_comes_twice_the_likelier_pass_is_taken(new_york, at):
    shown = datetime(2026, 11, 1, 1, 30)
    passes = []
    for now in (FIRST - HOUR, FIRST + HOUR / 4, SECOND - HOUR / 4, SECOND + HOUR):
        at(now)
        passes.append((clock.aware(shown), clock.passed(shown)))
    assert passes == [(FIRST, FIRST), (SECOND, FIRST), (SECOND, FIRST), (FIRST, SECOND)]


@pytest.mark.parametrize("minutes", range(-90, 180, 15))
def test_nothing_waits_too_short_and_what_is_to_go_at_once_does_not_wait(new_york, at, minutes):
    now, wait = FIRST + timedelta(minutes=minutes), timedelta(minutes=20)
    at(now)
    later, at_once, ago = clock.not_before(now + wait), clock.at_once(), clock.ago(wait)
    for minute in range(20):
        at(now + timedelta(minutes=minute))
        assert at_once <= timezone.now() < later
        at(now - timedelta(minutes=minute))
        assert timezone.now() >= ago
    at(now + wait + HOUR)
    assert timezone.now() >= later


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("in_transaction", [True, False])
def test_a_moment_without_a_zone_is_one_of_this_place(local, broker, in_transaction):
    eta = timezone.now() + timedelta(seconds=90)
    with transaction.atomic() if in_transaction else nullcontext():
        meet.apply_async(eta=eta, expires=eta + HOUR)
    options = broker.messages[0].options
    assert timedelta(seconds=80) < options["eta"] - clock.now() <= timedelta(seconds=90)
    assert options["expires"] - options["eta"] == HOUR


@pytest.mark.django_db(transaction=True)
def test_a_moment_as_text_is_one_of_this_place(local, broker):
    meet.apply_async(expires=(timezone.now() + HOUR).isoformat())
    assert timedelta() < broker.messages[0].options["expires"] - clock.now() <= HOUR


@pytest.mark.parametrize("wait", [{"countdown": 3600}, {"eta": None}])
def test_a_task_that_is_far_waits_until_it_is_near(local, broker, ten_minutes, wait):
    meet.apply_async(**{"eta": timezone.now() + HOUR} if "eta" in wait else wait)
    row = OutgoingTask.objects.get()
    assert timedelta(minutes=54) < row.send_at - timezone.now() <= timedelta(minutes=55)
    outbox.send_waiting()
    OutgoingTask.objects.update(send_at=timezone.now())
    outbox.send_waiting()
    assert timedelta(minutes=59) < broker.messages[0].options["eta"] - clock.now() <= HOUR


def test_a_retry_at_a_moment_of_this_place_gives_a_durable_task_its_time(local):
    row = OutgoingTask.objects.create(name="any", task_id="some", durable=True, send_at=timezone.now())
    retry = Retry(when=timezone.now() + HOUR)
    request = type("Request", (), {"get": lambda self, name: row.pk})()
    outbox.expect_retry(request=request, reason=retry)
    row.refresh_from_db()
    assert row.send_at - timezone.now() > HOUR


def test_a_failed_task_keeps_its_first_moment_when_it_is_sent_again(local, monkeypatch):
    sent = {}
    monkeypatch.setattr("apps.tasks.worker.replay.publish", lambda message, **headers: sent.update(headers))
    since = timezone.now() - HOUR
    failed = FailedTask.objects.create(
        task_id="some", tries=1, first_failed_at=since, last_failed_at=since, message="{}", worker="any"
    )
    send_again(failed.pk)
    told = datetime.fromisoformat(sent["failed_earlier"]["since"])
    assert told.tzinfo and clock.for_column(told) == since

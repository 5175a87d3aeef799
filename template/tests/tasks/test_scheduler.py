"""One beat sends, and it sends everything once: whatever ends, hangs, is set back or does not answer."""

import pytest

pytest.importorskip("celery")

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from types import SimpleNamespace
from zoneinfo import ZoneInfo

from celery import Celery, current_app, shared_task
from celery.schedules import schedule
from django.db import OperationalError, connection
from django.db.models import F
from django.utils import timezone
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask
from kombu.exceptions import OperationalError as BrokerAway

from apps.tasks.beat import lease, scheduler
from apps.tasks.beat.crontab import ClockCrontab
from apps.tasks.beat.periodic import lies_ahead
from apps.tasks.beat.schedule import bootstrap
from apps.tasks.beat.scheduler import LeaseScheduler
from apps.tasks.console import health
from apps.tasks.models import BeatLease
from apps.tasks.sending import ProjectTask
from apps.tasks.worker import alive
from apps.web import clock as clock_module
from apps.web.clock import for_column
from apps.web.health import Unhealthy

pytestmark = pytest.mark.django_db

NOON = datetime(2030, 6, 1, 12, tzinfo=UTC)


@shared_task(name="tests.tick")
def tick(*args): ...


@pytest.fixture(autouse=True)
def apart(monkeypatch, tmp_path, settings):
    """Beats of these tests leave signals and the signs of other beats alone, and know the lease's length."""
    monkeypatch.setattr(signal, "signal", lambda *args: None)
    # Here one transaction holds the connection for the whole test.
    monkeypatch.setattr(scheduler, "close_old_connections", lambda: None)
    monkeypatch.setenv(alive.DIRECTORY_VARIABLE, str(tmp_path))
    settings.BEAT_LEASE_SECONDS = 15
    # Celery's own task, which beat schedules by itself.
    monkeypatch.setitem(current_app.conf, "result_expires", None)


@pytest.fixture
def clock(monkeypatch):
    """The monotonic clock: stands still until `seconds` is changed."""
    clock = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(time, "monotonic", lambda: clock.seconds)
    return clock


@pytest.fixture
def wall(monkeypatch):
    """The clock on the wall: stands still until `now` is changed."""
    wall = SimpleNamespace(now=NOON)
    monkeypatch.setattr(clock_module, "now", lambda: wall.now)
    return wall


@pytest.fixture
def broker(monkeypatch):
    """What beats have sent, by the names of the periodic tasks; `refuses` are those whose sending fails."""
    broker = SimpleNamespace(sent=[], tries=0, refuses=[], away=False)

    def send(task, args, kwargs, headers, **options):
        broker.tries += 1
        if broker.away or headers["periodic_task_name"] in broker.refuses:
            raise BrokerAway("Connection refused")
        broker.sent.append(headers["periodic_task_name"])

    # Not Celery's own, which is called on commit: these tests never commit.
    monkeypatch.setattr(ProjectTask, "apply_async", send)
    monkeypatch.setattr(Celery, "send_task", lambda app, *args, **options: send(*args, **options))
    monkeypatch.setattr(scheduler, "broker_failure", lambda: "Connection refused" if broker.away else None)
    return broker


@pytest.fixture
def beat(clock, broker):
    """`beat()` starts a beat that nobody calls: it makes a round when its `tick` is called."""
    return lambda: LeaseScheduler(app=current_app)


def every(seconds, name="often", **columns):
    """A task that is due now, and from now on after so many seconds."""
    interval, _ = IntervalSchedule.objects.get_or_create(every=seconds, period="seconds")
    long_ago = timezone.now() - timedelta(days=1)
    return PeriodicTask.objects.create(
        name=name, task="tests.tick", interval=interval, **{"last_run_at": long_ago, **columns}
    )


# Who sends ------------------------------------------------------------------


def test_what_is_due_is_sent_once(beat, broker):
    every(3600)
    holder = beat()
    holder.tick(), holder.tick()
    assert broker.sent == ["often"]


def test_a_second_beat_stands_by(beat, broker, clock):
    holder, standby = beat(), beat()
    holder.tick()
    every(3600)
    for _ in range(100):
        standby.tick(), holder.tick()
        clock.seconds += 1
    assert broker.sent == ["often"]


def test_a_standby_says_so_once(beat, clock, caplog):
    caplog.set_level(logging.INFO)
    beats = beat(), beat()
    for _ in range(30):
        for each in beats:
            each.tick()
        clock.seconds += 1
    assert [record.message.partition(",")[0] for record in caplog.records if record.name == scheduler.__name__] == [
        "This beat holds the lease and sends the scheduled tasks.",
        "Standing by",
    ]


def test_a_beat_that_ends_makes_way_at_once(beat, broker):
    holder, standby = beat(), beat()
    holder.tick(), standby.tick()
    every(3600)
    holder.close()
    standby.tick()
    assert broker.sent == ["often"]


def test_the_lease_of_a_dead_beat_lasts_its_time_and_no_longer(beat, broker, clock):
    every(3600)
    beat().tick()
    every(3600, "next")
    standby = beat()
    standby.tick()
    clock.seconds += 14.9
    standby.tick()
    assert broker.sent == ["often"]
    clock.seconds += 0.2
    standby.tick()
    assert broker.sent == ["often", "next"]


def test_a_beat_that_hung_sends_nothing_once_another_has_its_lease(beat, broker, clock):
    hung, standby = beat(), beat()
    hung.tick(), standby.tick()
    clock.seconds += 20
    standby.tick()
    every(3600)
    hung.tick()
    assert broker.sent == []
    standby.tick()
    assert broker.sent == ["often"]


def test_a_beat_that_loses_its_lease_between_two_tasks_sends_only_the_first(beat, broker, monkeypatch):
    holder = beat()
    holder.tick()
    every(3600, "first"), every(3600, "second")
    monkeypatch.setattr(holder, "apply_entry", lambda entry: BeatLease.objects.update(holder="another"))
    holder.tick()
    assert PeriodicTask.objects.filter(total_run_count=1).count() == 1


def test_a_renewal_that_took_too_long_does_not_count(beat, clock, monkeypatch):
    holder = beat()
    holder.tick()
    write, durations = lease.Lease._write, iter([11, 1])

    def slow_write(self, **expected):
        clock.seconds += next(durations)
        return write(self, **expected)

    monkeypatch.setattr(lease.Lease, "_write", slow_write)
    assert holder.lease.renew()
    assert next(durations, None) is None


def test_of_two_that_take_over_at_once_one_succeeds(beat, clock, monkeypatch):
    beat().tick()
    first, second = beat().lease, beat().lease
    assert not first.take() and not second.take()
    clock.seconds += 16
    # Both have read the row before one of them writes.
    row = BeatLease.objects.get()
    monkeypatch.setattr(BeatLease.objects, "get_or_create", lambda pk: (row, False))
    assert [first.take(), second.take()] == [True, False]


def test_a_beat_whose_answer_got_lost_still_has_its_lease(beat):
    holder = beat()
    assert holder.lease.take()
    # The connection broke after the commit.
    assert holder.lease.take()


# Who does not answer --------------------------------------------------------


@pytest.fixture
def database(transactional_db):
    """The database does not answer while `away` is true."""
    database = SimpleNamespace(away=False)

    def answer(execute, *args):
        if database.away:
            raise OperationalError("the server has gone away")
        return execute(*args)

    with connection.execute_wrapper(answer):
        yield database


def test_without_the_database_nothing_is_sent_and_beat_goes_on(beat, broker, database, caplog):
    holder = beat()
    holder.tick()
    every(3600)
    database.away = True
    holder.tick(), holder.tick()
    assert broker.sent == []
    assert caplog.text.count("The database does not answer") == 1
    database.away = False
    holder.tick()
    assert broker.sent == ["often"]


def test_a_beat_starts_without_the_database(beat, broker, database):
    every(3600)
    database.away = True
    holder = beat()
    holder.tick()
    database.away = False
    holder.tick()
    assert broker.sent == ["often"]


def test_a_run_that_could_not_be_written_down_is_written_later_and_not_repeated(beat, broker, database, monkeypatch):
    every(3600)
    holder = beat()
    with monkeypatch.context() as patch:
        patch.setattr(holder, "apply_entry", lambda entry: setattr(database, "away", True))
        holder.tick()
    database.away = False
    assert PeriodicTask.objects.get(name="often").total_run_count == 0
    # Somebody changes the schedule, so that it is read again.
    every(7200, "other", last_run_at=timezone.now())
    holder.tick(), holder.tick()
    assert PeriodicTask.objects.get(name="often").total_run_count == 1
    assert broker.sent == []


def test_a_due_task_waits_for_the_broker(beat, broker, caplog):
    row = every(86400)
    broker.away = True
    holder = beat()
    for _ in range(5):
        assert holder.tick() == scheduler.RETRY_SECONDS
    row.refresh_from_db()
    assert (row.total_run_count, broker.tries) == (0, 1)
    assert caplog.text.count("The broker does not answer") == 1
    broker.away = False
    holder.tick()
    row.refresh_from_db()
    assert (row.total_run_count, broker.sent) == (1, ["often"])


def test_a_task_that_cannot_be_sent_holds_up_no_other_and_is_tried_more_and_more_seldom(beat, broker, clock):
    every(3600, "bad"), every(3600, "good")
    broker.refuses = ["bad"]
    holder = beat()
    for _ in range(600):
        holder.tick()
        clock.seconds += 1
    assert broker.sent == ["good"]
    # After 1, 2, 4 … seconds.
    assert broker.tries == 1 + 10


def test_a_task_that_could_not_be_sent_is_tried_again_when_it_is_edited(beat, broker, clock):
    row = every(3600)
    broker.refuses = ["often"]
    holder = beat()
    for _ in range(100):
        holder.tick()
        clock.seconds += 1
    broker.refuses = []
    row.save()
    holder.tick()
    assert broker.sent == ["often"]


@pytest.mark.parametrize("column, value", [("args", "{"), ("headers", "["), ("interval", None), ("task", "no.such")])
def test_a_row_that_is_wrong_holds_up_no_other(beat, broker, column, value):
    every(3600, "bad"), every(3600, "good")
    PeriodicTask.objects.filter(name="bad").update(**{column: value})
    holder = beat()
    holder.tick()
    assert "good" in broker.sent


def test_a_crontab_without_a_time_zone_holds_up_no_other(beat, broker, monkeypatch):
    row = CrontabSchedule.objects.create(hour="7")
    PeriodicTask.objects.create(name="bad", task="tests.tick", crontab=row)
    every(3600, "good")
    monkeypatch.setattr(CrontabSchedule, "timezone", None)
    beat().tick()
    assert broker.sent == ["good"]


# What beat writes ------------------------------------------------------------


def test_an_edit_in_the_same_moment_is_kept(beat, broker, monkeypatch):
    every(3600)
    holder = beat()
    monkeypatch.setattr(holder, "apply_entry", lambda entry: PeriodicTask.objects.update(description="Mine", queue="a"))
    holder.tick()
    row = PeriodicTask.objects.get(name="often")
    assert (row.description, row.queue, row.total_run_count) == ("Mine", "a", 1)


def test_a_task_disabled_in_the_same_moment_stays_disabled_and_has_no_last_run(beat, monkeypatch):
    every(3600)
    holder = beat()
    monkeypatch.setattr(
        holder, "apply_entry", lambda entry: PeriodicTask.objects.update(enabled=False, last_run_at=None)
    )
    holder.tick()
    row = PeriodicTask.objects.get(name="often")
    assert (row.enabled, row.last_run_at) == (False, None)


def test_a_one_off_task_runs_once_and_is_disabled_for_the_next_beat_too(beat, broker, clock):
    every(1, one_off=True)
    first = beat()
    first.tick()
    first.close()
    second = beat()
    second.tick()
    row = PeriodicTask.objects.get(name="often")
    assert broker.sent == ["often"]
    assert (row.enabled, row.total_run_count) == (False, 0)


def test_a_clocked_task_is_sent_when_its_moment_has_come(beat, broker):
    past = ClockedSchedule.objects.create(clocked_time=timezone.now() - timedelta(minutes=1))
    PeriodicTask.objects.create(name="then", task="tests.tick", clocked=past, one_off=True)
    holder = beat()
    holder.tick(), holder.tick()
    assert broker.sent == ["then"]


def test_what_is_disabled_is_not_sent(beat, broker):
    every(3600, enabled=False)
    beat().tick()
    assert broker.sent == []


def test_new_entries_of_the_settings_are_taken_up_without_a_restart(beat, broker, settings):
    holder = beat()
    holder.tick()
    settings.SCHEDULED_TASKS = {"new": {"task": "tests.tick", "schedule": 3600.0}}
    bootstrap()
    PeriodicTask.objects.filter(name="new").update(last_run_at=timezone.now() - timedelta(days=1))
    holder.tick()
    assert broker.sent == ["new"]


# Clocks ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "ahead", "counts_from_now"),
    [
        (schedule(60.0), timedelta(seconds=1), True),
        (schedule(60.0), timedelta(seconds=-1), False),
        # A correction of seconds must not repeat what has just run.
        (ClockCrontab(), timedelta(seconds=2), False),
        (ClockCrontab(), timedelta(hours=1), True),
        (ClockCrontab(hour=7, minute=0), timedelta(hours=1), False),
        (ClockCrontab(hour=7, minute=0), timedelta(days=1), True),
        (ClockCrontab(hour="*/2", minute=0), timedelta(hours=1), False),
    ],
)
def test_a_run_ahead_of_the_clock(plan, ahead, counts_from_now):
    assert lies_ahead(NOON + ahead, NOON, plan) == counts_from_now


def crontab_task(name, last_run_at=NOON - timedelta(hours=6), zone="UTC", **columns):
    row = CrontabSchedule.objects.create(timezone=zone, **columns)
    last_run_at = for_column(last_run_at)
    return PeriodicTask.objects.create(name=name, task="tests.tick", crontab=row, last_run_at=last_run_at)


def pass_time(beat, clock, wall, minutes, each=1):
    for _ in range(0, minutes, each):
        beat.tick()
        clock.seconds += each * 60
        wall.now += timedelta(minutes=each)


@pytest.fixture
def day(beat, clock, wall, broker):
    """A beat with three kinds of tasks, an hour after the daily one has run."""
    crontab_task("daily", minute="0", hour="11")
    crontab_task("each minute")
    every(600, "each ten minutes", last_run_at=for_column(NOON))
    holder = beat()
    pass_time(holder, clock, wall, 30)
    assert broker.sent.count("daily") == 1
    broker.sent.clear()
    return holder


def test_a_clock_set_forward_a_day_makes_each_task_run_once_at_once(day, clock, wall, broker):
    wall.now += timedelta(days=1)
    clock.seconds += 60
    day.tick(), day.tick()
    assert sorted(broker.sent) == ["daily", "each minute", "each ten minutes"]


def test_a_clock_set_back_an_hour_repeats_no_hour_and_silences_nothing(day, clock, wall, broker):
    wall.now -= timedelta(hours=1, minutes=35)
    pass_time(day, clock, wall, 60)
    assert broker.sent.count("daily") == 0
    assert 55 <= broker.sent.count("each minute") <= 60
    assert 5 <= broker.sent.count("each ten minutes") <= 6


def test_a_clock_that_was_a_day_ahead_silences_nothing(day, clock, wall, broker):
    wall.now += timedelta(days=1)
    pass_time(day, clock, wall, 30)
    wall.now -= timedelta(days=1)
    broker.sent.clear()
    pass_time(day, clock, wall, 30)
    assert broker.sent.count("each minute") > 25
    assert broker.sent.count("each ten minutes") > 1
    wall.now = NOON + timedelta(hours=23)
    day.tick()
    assert broker.sent.count("daily") == 1


def test_a_clock_that_was_a_day_back_makes_nothing_run_again_at_certain_hours(day, clock, wall, broker):
    wall.now -= timedelta(days=1)
    pass_time(day, clock, wall, 20)
    wall.now += timedelta(days=1)
    pass_time(day, clock, wall, 20)
    assert broker.sent.count("daily") == 0
    assert broker.sent.count("each minute") >= 38


def test_a_clock_that_stays_back_silences_nothing_although_the_broker_goes_away(day, clock, wall, broker):
    wall.now -= timedelta(days=2)
    day.tick()
    broker.away = True
    pass_time(day, clock, wall, 24 * 60, each=10)
    broker.away = False
    day.tick()
    assert broker.sent.count("daily") == 1


# Changes of the clock ---------------------------------------------------------

NEW_YORK = ZoneInfo("America/New_York")


@pytest.fixture
def night(beat, clock, wall, broker):
    """Return a function that lets a beat send from midnight to six in New York, and returns when it sent each task."""

    def night(day):
        wall.now = datetime.combine(day, datetime.min.time(), NEW_YORK).astimezone(UTC)
        ran = wall.now - timedelta(seconds=1)
        tasks = {
            "minute": {},
            "quarter": {"minute": "*/15"},
            "hour": {"minute": "15"},
            "at one": {"minute": "30", "hour": "1"},
            "at two": {"minute": "30", "hour": "2"},
            # Hours away by the clock of New York, and loaded nevertheless.
            "at two elsewhere": {"minute": "30", "hour": "16", "zone": "Australia/Sydney"},
        }
        for name, columns in tasks.items():
            crontab_task(name, ran, **{"zone": "America/New_York", **columns})
        every(1800, "interval", last_run_at=for_column(ran + timedelta(seconds=1)))
        holder, sent = beat(), defaultdict(list)
        while wall.now.astimezone(NEW_YORK).hour < 6:
            holder.tick()
            for name in broker.sent:
                sent[name].append(wall.now)
            broker.sent.clear()
            clock.seconds += 60
            wall.now += timedelta(minutes=1)
        return sent

    return night


def shown(moments):
    return [moment.astimezone(NEW_YORK).strftime("%H:%M %Z") for moment in moments]


@pytest.mark.parametrize("in_local_time", [False, True])
@pytest.mark.parametrize(("day", "hours"), [(date(2026, 11, 1), 7), (date(2026, 3, 8), 5)])
def test_through_a_change_of_the_clock_nothing_is_silent_and_nothing_runs_twice(
    night, settings, day, hours, in_local_time
):
    settings.TIME_ZONE, settings.USE_TZ = ("America/New_York", False) if in_local_time else ("UTC", True)
    sent = night(day)
    for name, minutes in ("minute", 1), ("quarter", 15), ("hour", 60), ("interval", 30):
        moments = sent[name]
        assert {later - earlier for earlier, later in pairwise(moments)} == {timedelta(minutes=minutes)}, shown(moments)
        assert abs(len(moments) - hours * 60 / minutes) <= 1
    autumn = hours == 7
    assert shown(sent["at one"]) == ["01:30 EDT" if autumn else "01:30 EST"]
    assert shown(sent["at two"]) == ["02:30 EST" if autumn else "03:30 EDT"]
    assert shown(sent["at two elsewhere"]) == ["00:30 EST" if not autumn else "01:30 EDT"]


def test_a_task_with_a_start_begins_then_and_a_crontab_at_its_first_time_after_it(beat, clock, wall, broker):
    crontab_task("daily", minute="0", hour="13")
    crontab_task("at once", minute="30", hour="12")
    every(3600, "hourly")
    start = for_column(NOON + timedelta(minutes=30))
    PeriodicTask.objects.update(start_time=start, last_run_at=None)
    holder = beat()
    pass_time(holder, clock, wall, 30)
    assert broker.sent == []
    holder.tick()
    assert sorted(broker.sent) == ["at once", "hourly"]
    pass_time(holder, clock, wall, 31)
    assert sorted(broker.sent) == ["at once", "daily", "hourly"]


# Signals and signs of life ---------------------------------------------------


def test_a_signal_lets_the_round_end(beat, broker, monkeypatch):
    every(3600)
    holder = beat()
    take = holder.lease.take
    monkeypatch.setattr(holder.lease, "take", lambda: holder._stop(signal.SIGTERM, None) or take())
    with pytest.raises(SystemExit):
        holder.tick()
    assert BeatLease.objects.get().holder == holder.lease.name
    assert broker.sent == []


def test_the_first_signal_between_rounds_ends_beat_and_another_does_not_disturb_that(beat):
    holder = beat()
    with pytest.raises(SystemExit):
        holder._stop(signal.SIGINT, None)
    holder._stop(signal.SIGTERM, None)


@pytest.mark.parametrize("standing_by", [False, True])
def test_beat_shows_that_it_is_alive(beat, standing_by):
    if standing_by:
        beat().tick()
        alive.forget("beat")
    assert "no sign of life" in alive.problem("beat")
    beat().tick()
    assert alive.problem("beat") is None


@pytest.mark.parametrize("seconds", [-3600, 31])
def test_an_old_sign_of_life_is_none(seconds):
    alive.touch("beat")
    then = time.time() - seconds
    os.utime(alive.path("beat"), (then, then))
    assert "seconds old" in alive.problem("beat")


def test_where_no_sign_can_be_written_the_process_goes_on(monkeypatch, tmp_path):
    monkeypatch.setenv(alive.DIRECTORY_VARIABLE, str(tmp_path / "none"))
    alive.touch("beat")
    assert str(tmp_path / "none") in alive.problem("beat")


def test_the_probe_costs_next_to_nothing(settings):
    command = [sys.executable, "-X", "importtime", "-m", "apps.tasks.worker.alive", "beat"]
    probe = subprocess.run(command, cwd=settings.BASE_DIR, capture_output=True, text=True)
    assert probe.returncode == 1 and "beat: there is no sign of life" in probe.stderr
    assert "django" not in probe.stderr and "celery" not in probe.stderr


# The health page -------------------------------------------------------------


def test_health_wants_a_beat_where_there_is_something_to_send():
    assert health.a_beat_holds_the_lease() is None
    every(3600)
    with pytest.raises(Unhealthy, match="no beat has run yet"):
        health.a_beat_holds_the_lease()


def test_health_is_content_with_a_beat(beat):
    every(3600)
    beat().tick()
    assert health.a_beat_holds_the_lease().startswith("renewed its lease ")


def test_health_misses_a_beat_that_has_gone(beat):
    every(3600)
    beat().tick()
    BeatLease.objects.update(renewed_at=F("renewed_at") - timedelta(seconds=75))
    with pytest.raises(Unhealthy, match="no beat has renewed its lease for") as told:
        health.a_beat_holds_the_lease()
    assert int(re.search(r"(\d+) s$", str(told.value))[1]) >= 75

"""A crontab is due when people expect it, on the days on which the clock is changed, too.

The runs around each change are compared with the rules as the documentation tells them, written down here a second
time by what a clock on the wall shows, minute by minute. That beat keeps them is in `test_scheduler`.
"""

import pytest

pytest.importorskip("celery")

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from celery import current_app
from celery.schedules import schedstate

from apps.tasks.beat.crontab import ClockCrontab
from apps.web import clock

MINUTE = timedelta(minutes=1)
# Where the clock is changed at night, by half an hour, at midnight, before midnight, or never; and when, in UTC.
CHANGES = [
    ("America/New_York", datetime(2026, 3, 8, 7)),
    ("America/New_York", datetime(2026, 11, 1, 6)),
    ("Europe/London", datetime(2026, 3, 29, 1)),
    ("Europe/London", datetime(2026, 10, 25, 1)),
    ("Europe/Berlin", datetime(2026, 3, 29, 1)),
    ("Europe/Berlin", datetime(2026, 10, 25, 1)),
    ("Australia/Lord_Howe", datetime(2026, 10, 3, 15, 30)),
    ("Australia/Lord_Howe", datetime(2026, 4, 4, 15)),
    ("America/Santiago", datetime(2026, 9, 6, 4)),
    ("America/Santiago", datetime(2026, 4, 5, 3)),
    ("Africa/Cairo", datetime(2026, 4, 23, 22)),
    ("Africa/Cairo", datetime(2026, 10, 29, 21)),
    ("America/Nuuk", datetime(2026, 3, 29, 1)),
    ("America/Nuuk", datetime(2026, 10, 25, 1)),
    ("UTC", datetime(2026, 11, 1, 6)),
]
# What goes on in an hour that comes twice, and what does not.
FREQUENT = [
    {"minute": "*/5"},
    {"minute": "*/15"},
    {"minute": "7,37"},
    {"minute": "0"},
    {"minute": "15"},
    {"minute": "45", "hour": "*/1"},
    {"minute": "30", "hour": "0-23"},
    {"minute": "*/20", "hour": "0-3,22,23"},
    {"minute": "15", "day_of_week": "sun"},
]
NAMED = [
    *({"minute": "30", "hour": str(hour)} for hour in (0, 1, 2, 3, 23)),
    {"minute": "0", "hour": "0"},
    {"minute": "0", "hour": "*/2"},
    {"minute": "10", "hour": "1-23/2"},
    {"minute": "45", "hour": "0-6"},
    {"minute": "20", "hour": "1,2"},
    {"minute": "0,30", "hour": "23,0,1,2,3"},
    {"minute": "30", "hour": "0-3", "day_of_week": "sun"},
    {"minute": "30", "hour": "22-23", "day_of_week": "thu,sat"},
    {"minute": "50", "hour": "1,2", "day_of_month": "29", "month_of_year": "3"},
]


@pytest.fixture
def wall(monkeypatch):
    """Return a function that sets the clock."""
    moment = [datetime(2026, 1, 1, tzinfo=UTC)]
    monkeypatch.setattr(clock, "now", lambda: moment[0])
    monkeypatch.setitem(current_app.conf, "beat_cron_starting_deadline", None)
    return lambda now: moment.__setitem__(0, now)


def shown(moment, zone):
    """Return what a clock in the zone shows, without a word about its offset."""
    return moment.astimezone(zone).replace(tzinfo=None)


def around(change, hours=14):
    """Return each minute around a change."""
    start = change.replace(tzinfo=UTC) - timedelta(hours=hours)
    return [start + number * MINUTE for number in range(2 * hours * 60)]


def names(plan, time):
    """Return whether a crontab names this time."""
    return (
        time.minute in plan.minute
        and time.hour in plan.hour
        and time.day in plan.day_of_month
        and time.month in plan.month_of_year
        and time.isoweekday() % 7 in plan.day_of_week
    )


def expected(plan, minutes, zone, frequent):
    """Return when the task is to run, by the rules."""
    runs, seen = set(), set()
    previous = shown(minutes[0] - MINUTE, zone)
    for moment in minutes:
        time = shown(moment, zone)
        # Those that the clock does not show, because it has been set forward, come as much later.
        for number in range(1, (time - previous) // MINUTE):
            if names(plan, previous + number * MINUTE):
                runs.add(moment + (number - 1) * MINUTE)
        if names(plan, time) and (frequent or time not in seen):
            runs.add(moment)
        seen.add(time)
        previous = time
    return sorted(runs.intersection(minutes))


def runs(plan, minutes):
    """Return when the task runs."""
    found = [plan.next_after(minutes[0] - MINUTE)]
    while found[-1] <= minutes[-1]:
        found.append(plan.next_after(found[-1]))
    return found[:-1]


@pytest.mark.parametrize(("name", "change"), CHANGES, ids=lambda value: str(value).partition(" ")[0])
def test_every_run_around_a_change_of_the_clock_is_by_the_rules(name, change):
    zone, minutes = ZoneInfo(name), around(change)
    is_change = minutes[0].astimezone(zone).utcoffset() != minutes[-1].astimezone(zone).utcoffset()
    assert is_change == (name != "UTC")
    wrong = {}
    for columns in FREQUENT + NAMED:
        plan = ClockCrontab(**columns, tz=zone)
        differences = set(runs(plan, minutes)) ^ set(expected(plan, minutes, zone, columns in FREQUENT))
        if differences:
            wrong[str(columns)] = [str(moment.astimezone(zone)) for moment in sorted(differences)]
    assert not wrong


NEW_YORK = ZoneInfo("America/New_York")
AUTUMN, SPRING = datetime(2026, 11, 1, 6), datetime(2026, 3, 8, 7)


def times(columns, change):
    """Return what runs within two hours of a change, as a clock in New York shows it."""
    found = runs(ClockCrontab(**columns, tz=NEW_YORK), around(change, hours=2))
    return " ".join(moment.astimezone(NEW_YORK).strftime("%H:%M %Z") for moment in found)


@pytest.mark.parametrize(
    ("columns", "change", "told"),
    [
        ({"minute": "15"}, AUTUMN, "00:15 EDT 01:15 EDT 01:15 EST 02:15 EST"),
        ({"minute": "15"}, SPRING, "00:15 EST 01:15 EST 03:15 EDT 04:15 EDT"),
        ({"minute": "30", "hour": "1"}, AUTUMN, "01:30 EDT"),
        ({"minute": "30", "hour": "2"}, SPRING, "03:30 EDT"),
        ({"minute": "30", "hour": "2,3"}, SPRING, "03:30 EDT"),
        ({"minute": "0", "hour": "*/2"}, SPRING, "00:00 EST 03:00 EDT 04:00 EDT"),
        ({"minute": "0", "hour": "0-6"}, AUTUMN, "00:00 EDT 01:00 EDT 02:00 EST"),
        ({"minute": "*/30", "hour": "1"}, AUTUMN, "01:00 EDT 01:30 EDT 01:00 EST 01:30 EST"),
    ],
)
def test_the_examples_of_the_documentation(columns, change, told):
    assert times(columns, change) == told


@pytest.mark.parametrize(
    ("columns", "last_run", "now", "is_due"),
    [
        ({"minute": "*/15"}, "01:45-04:00", "01:10-05:00", True),
        ({"minute": "50"}, "00:50-04:00", "01:10-05:00", True),
        ({"minute": "50"}, "01:50-04:00", "01:10-05:00", False),
        ({"minute": "40", "hour": "1"}, "00:00-04:00", "01:10-05:00", True),
        ({"minute": "40", "hour": "1"}, "01:40-04:00", "01:50-05:00", False),
        ({"minute": "0", "hour": "1,2"}, "01:00-04:00", "01:50-05:00", False),
        ({"minute": "0", "hour": "1,2"}, "01:00-04:00", "02:00-05:00", True),
    ],
)
def test_what_came_while_beat_was_down_is_sent_once(columns, last_run, now, is_due, wall):
    plan = ClockCrontab(**columns, tz=NEW_YORK)
    last_run, now = (datetime.fromisoformat(f"2026-11-01T{time}") for time in (last_run, now))
    wall(now)
    assert plan.is_due(last_run).is_due == is_due
    assert not plan.is_due(now).is_due


def test_what_is_older_than_the_deadline_is_not_sent(wall, monkeypatch):
    monkeypatch.setitem(current_app.conf, "beat_cron_starting_deadline", 600)
    plan = ClockCrontab(minute="30", hour="1", tz=NEW_YORK)
    yesterday, due_at = datetime(2026, 10, 31, 12, tzinfo=UTC), datetime(2026, 11, 1, 5, 30, tzinfo=UTC)
    wall(due_at + timedelta(minutes=9))
    assert plan.is_due(yesterday).is_due
    wall(due_at + timedelta(minutes=11))
    assert plan.is_due(yesterday) == schedstate(False, timedelta(days=1, minutes=49).total_seconds())


@pytest.mark.parametrize(
    ("columns", "now", "following"),
    [
        ({"minute": "0", "hour": "0", "day_of_month": "29", "month_of_year": "2"}, "2026-06-01", "2028-02-29"),
        ({"minute": "0", "hour": "0", "day_of_month": "31"}, "2026-01-31", "2026-03-31"),
        ({"minute": "0", "hour": "0", "month_of_year": "1", "day_of_week": "5"}, "2026-11-20", "2027-01-01"),
    ],
)
def test_a_rare_task_comes_on_its_day(columns, now, following, wall):
    plan = ClockCrontab(**columns, tz=UTC)
    assert plan.next_after(datetime.fromisoformat(f"{now}T12:00+00:00")).date().isoformat() == following

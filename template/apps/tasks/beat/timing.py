"""Converts the `schedule` of an entry, which says when a task runs, to database columns."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import available_timezones

from celery import schedules
from django.db.models import Model
from django_celery_beat.clockedschedule import clocked
from django_celery_beat.models import IntervalSchedule, PeriodicTask
from django_celery_beat.tzcrontab import TzAwareCrontab

from apps.web import clock

# In the order in which cron writes them.
CRONTAB_FIELDS = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
# The largest value of an integer column that every database can store.
LARGEST_INTEGER = 2**31 - 1


class EntryError(Exception):
    """Says what is wrong with an entry and how to fix it. The message continues a sentence that names the entry."""


@dataclass(frozen=True)
class Schedule:
    """When a task runs: the relation of PeriodicTask ("crontab", "interval", …) and the columns of the related row."""

    kind: str
    columns: dict[str, Any]

    def __str__(self) -> str:
        return " ".join([self.kind, *map(str, self.columns.values())])

    @property
    def model(self) -> type[Model]:
        """The model of the schedule's row."""
        return schedule_model(self.kind)

    def is_over(self, now: datetime) -> bool:
        """Return whether the schedule names a single moment that is past."""
        return self.kind == "clocked" and self.columns["clocked_time"] <= now


def schedule_model(kind: str) -> type[Model]:
    """Return the model that the relation of PeriodicTask points to."""
    return PeriodicTask._meta.get_field(kind).related_model


def read_schedule(value: Any) -> Schedule:
    """Return the columns for the schedule of an entry. Raise EntryError if the database cannot store it."""
    # The type must match exactly, because the database stores neither the behaviour of a subclass nor a clock of its
    # own.
    reader = SCHEDULE_READERS.get(type(value))
    if reader is None:
        raise EntryError(
            f"schedule must be a number of seconds, a timedelta, crontab, schedule, solar or clocked, not {value!r}."
        )
    if not isinstance(value, TzAwareCrontab) and getattr(value, "nowfun", None):
        raise EntryError("the database does not keep the nowfun of a schedule; remove it.")
    return reader(value)


def _read_interval(value: float | timedelta) -> Schedule:
    """Return an interval in seconds, or in microseconds if seconds would round it."""
    microseconds = to_timedelta("schedule", value) // timedelta(microseconds=1)
    seconds, fraction = divmod(microseconds, 1_000_000)
    every, period = (microseconds, IntervalSchedule.MICROSECONDS) if fraction else (seconds, IntervalSchedule.SECONDS)
    if every < 1:
        raise EntryError(f"schedule must be longer than nothing, not {value!r}.")
    if every > LARGEST_INTEGER:
        raise EntryError(
            f"schedule is too long: {value!r}. At most {LARGEST_INTEGER} seconds, and whole ones beyond 35 minutes."
        )
    return Schedule("interval", {"every": every, "period": period})


def _read_celery_schedule(value: schedules.schedule) -> Schedule:
    if value.relative:
        raise EntryError("the database does not keep relative=True; use a crontab for runs at full minutes or hours.")
    return _read_interval(value.run_every)


def _read_crontab(value: schedules.crontab) -> Schedule:
    # A plain crontab would remember `value.tz` once it is read, and settings are not ours to change.
    zone = str(value.tz if isinstance(value, TzAwareCrontab) else value.app.timezone)
    if zone not in available_timezones():
        raise EntryError(f"{zone!r} is no name of a time zone; use one such as 'Europe/Berlin' (CELERY_TIMEZONE).")
    columns = {field: _crontab_text(value, field) for field in CRONTAB_FIELDS}
    return Schedule("crontab", {**columns, "timezone": zone})


def _crontab_text(value: schedules.crontab, field: str) -> str:
    """Return a field as it was written, or a list of numbers as cron writes it."""
    written = getattr(value, f"_orig_{field}")
    return str(written) if isinstance(written, int | str) else ",".join(map(str, sorted(getattr(value, field))))


def _read_solar(value: schedules.solar) -> Schedule:
    # The columns have six decimal places, which is eleven centimetres.
    latitude, longitude = (round(Decimal(str(degrees)), 6) for degrees in (value.lat, value.lon))
    return Schedule("solar", {"event": value.event, "latitude": latitude, "longitude": longitude})


def _read_clocked(value: clocked) -> Schedule:
    return Schedule("clocked", {"clocked_time": clock.for_column(value.clocked_time)})


def to_timedelta(key: str, value: Any) -> timedelta:
    """Return a duration that an entry gives in seconds or as a timedelta. Raise EntryError for anything else."""
    if isinstance(value, timedelta):
        return value
    if type(value) not in (int, float):
        raise EntryError(f"{key} must be a number of seconds or a timedelta, not {value!r}.")
    try:
        return timedelta(seconds=value)
    except (OverflowError, ValueError) as error:
        raise EntryError(f"{key} is no usable number of seconds: {value!r}.") from error


SCHEDULE_READERS: dict[type, Callable[[Any], Schedule]] = {
    int: _read_interval,
    float: _read_interval,
    timedelta: _read_interval,
    schedules.schedule: _read_celery_schedule,
    schedules.crontab: _read_crontab,
    TzAwareCrontab: _read_crontab,
    schedules.solar: _read_solar,
    clocked: _read_clocked,
}

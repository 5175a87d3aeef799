"""Checks the entries of SCHEDULED_TASKS and converts them to database columns.

The conversion follows django-celery-beat's own (`ModelEntry._unpack_fields`) except where that loses information: it
turns 0.5 seconds into 0, stores `crontab(hour=[1, 2])` as a text that beat cannot read, drops `relative`, `expires` and
the class of a schedule, and saves at each call, which wakes beat for nothing. Nothing is written here, and what the
database cannot store is refused.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from difflib import get_close_matches
from typing import Any, TypeVar

from celery import current_app
from django.conf import settings
from django.core.management import CommandError
from django.db.models import Model
from django.utils.timezone import is_naive
from django_celery_beat.models import PeriodicTask
from kombu.utils.json import dumps

from apps.tasks.broker.priorities import broker_priority
from apps.web import clock

from .timing import LARGEST_INTEGER, EntryError, Schedule, read_schedule, to_timedelta

REQUIRED_KEYS = ("task", "schedule")
OPTIONAL_KEYS = ("args", "kwargs", "queue", "priority", "expires", "one_off", "enabled", "description")

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Entry:
    """An entry that has passed all checks: its name, the columns of its PeriodicTask, and its schedule."""

    name: str
    columns: dict[str, Any]
    schedule: Schedule

    def snapshot(self) -> dict[str, Any]:
        """Return the entry in JSON types. Equal entries have equal snapshots."""
        return json.loads(json.dumps(asdict(self), default=str))


def for_each_entry(items: Mapping[str, Item], function: Callable[[str, Item], Result]) -> list[Result]:
    """Return the result of the function for each item.

    Raises CommandError with the problems of *all* items, each under the name of its entry.
    """
    results: list[Result] = []
    problems: list[str] = []
    for name, item in items.items():
        try:
            results.append(function(name, item))
        except EntryError as error:
            problems.append(f"SCHEDULED_TASKS[{name!r}]: {error}")
    if problems:
        raise CommandError("\n".join([*problems, "Nothing was written."]))
    return results


def read_entries(scheduled_tasks: Mapping[str, Mapping[str, Any]]) -> list[Entry]:
    """Return the entries of the setting, checked against the registered tasks.

    Raises CommandError, which names every wrong entry.
    """
    if not isinstance(scheduled_tasks, Mapping):
        raise CommandError("SCHEDULED_TASKS must be a dictionary of entries by name. Nothing was written.")
    current_app.loader.import_default_modules()
    return for_each_entry(scheduled_tasks, _read_entry)


def _read_entry(name: str, options: Mapping[str, Any]) -> Entry:
    _check_name(name)
    _check_keys(options)
    schedule = read_schedule(options["schedule"])
    columns = {
        "name": name,
        "task": _read_task(options["task"]),
        **_read_arguments(options),
        "queue": _read_queue(options.get("queue")),
        "priority": _read_priority(options.get("priority")),
        **_read_expires(options.get("expires")),
        "one_off": _read_one_off(options, schedule),
        "enabled": _read_bool("enabled", options.get("enabled", True)),
        "description": _read_text("description", options.get("description", "")),
    }
    _check_lengths(PeriodicTask, columns)
    _check_lengths(schedule.model, schedule.columns)
    return Entry(name, columns, schedule)


def _check_name(name: str) -> None:
    if not isinstance(name, str) or not name:
        raise EntryError("the name of an entry must be a text.")
    if name == "celery.backend_cleanup" or name in current_app.conf.beat_schedule:
        raise EntryError("beat writes an entry of this name itself whenever it starts; choose another name.")


def _check_keys(options: Mapping[str, Any]) -> None:
    if not isinstance(options, Mapping):
        raise EntryError(f"an entry must be a dictionary, not {options!r}.")
    known = (*REQUIRED_KEYS, *OPTIONAL_KEYS)
    for key in options:
        if key not in known:
            raise EntryError(f"{key!r} is no key of an entry. {_suggest(str(key), known, 'Keys')}")
    for key in REQUIRED_KEYS:
        if key not in options:
            raise EntryError(f"{key!r} is missing.")


def _check_lengths(model: type[Model], columns: Mapping[str, Any]) -> None:
    # SQLite is the only database that would accept longer texts.
    for column, value in columns.items():
        longest = getattr(model._meta.get_field(column), "max_length", None)
        if longest and isinstance(value, str) and len(value) > longest:
            raise EntryError(f"{column} has {len(value)} characters; {longest} are allowed.")


def _suggest(word: str, known: Iterable[str], title: str) -> str:
    """Return a sentence with the known word that may have been meant, or else with all of them."""
    if close := get_close_matches(word, known, n=1):
        return f"Did you mean {close[0]!r}?"
    return f"{title}: {', '.join(sorted(known)) or 'none'}."


# What runs ------------------------------------------------------------------


def _read_task(task: Any) -> str:
    if not isinstance(task, str):
        raise EntryError(f"task must be the name of a task, a text, not {task!r}.")
    if task not in current_app.tasks:
        own = [name for name in current_app.tasks if not name.startswith("celery.")]
        raise EntryError(f"no task is registered as {task!r}. {_suggest(task, own, 'Registered')}")
    return task


def _read_arguments(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the arguments as JSON, checked against the signature of the task. A wrong call would fail at each run."""
    args, kwargs = options.get("args") or (), options.get("kwargs") or {}
    if not isinstance(args, list | tuple):
        raise EntryError(f"args must be a tuple or a list, not {args!r}; for one argument write ({args!r},).")
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise EntryError(f"kwargs must be a dictionary with texts as keys, not {kwargs!r}.")
    if check_call := getattr(current_app.tasks[options["task"]], "__header__", None):
        try:
            check_call(*args, **kwargs)
        except TypeError as error:
            raise EntryError(f"args and kwargs do not fit the task: {error}.") from error
    return {"args": _to_json("args", args), "kwargs": _to_json("kwargs", kwargs)}


def _to_json(key: str, value: Any) -> str:
    try:
        return dumps(value)
    except (TypeError, ValueError) as error:
        raise EntryError(
            f"{key} cannot be written as JSON ({error}); pass numbers, texts, lists, dictionaries."
        ) from error


# How it is sent -------------------------------------------------------------


def _read_queue(queue: Any) -> str | None:
    if queue is None:
        return None
    if not isinstance(queue, str) or not queue:
        raise EntryError(f"queue must be the name of a queue, not {queue!r}; leave it out for the default queue.")
    return queue


def _read_priority(priority: Any) -> int | None:
    try:
        return None if priority is None else broker_priority(priority)
    except ValueError as error:
        raise EntryError(str(error)) from None


def _read_expires(expires: Any) -> dict[str, Any]:
    """Return both columns for the expiry.

    A duration counts from the moment when beat sends the task, and workers drop older messages. A point in time ends
    the entry itself: beat then disables it.
    """
    if expires is None:
        return {"expires": None, "expire_seconds": None}
    if isinstance(expires, datetime):
        if settings.USE_TZ and is_naive(expires):
            raise EntryError("expires must have a time zone: datetime(…, tzinfo=ZoneInfo('Europe/Berlin')).")
        return {"expires": clock.for_column(expires), "expire_seconds": None}
    seconds = to_timedelta("expires", expires).total_seconds()
    # Beat reads 0 as "never".
    if seconds != int(seconds) or not 1 <= seconds <= LARGEST_INTEGER:
        raise EntryError(f"expires must be a whole number of seconds from 1 to {LARGEST_INTEGER}, not {expires!r}.")
    return {"expires": None, "expire_seconds": int(seconds)}


def _read_one_off(options: Mapping[str, Any], schedule: Schedule) -> bool:
    is_clocked = schedule.kind == "clocked"
    one_off = _read_bool("one_off", options.get("one_off", is_clocked))
    if is_clocked and not one_off:
        raise EntryError("a clocked schedule runs once; remove one_off, or use another schedule.")
    return one_off


def _read_bool(key: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise EntryError(f"{key} must be True or False, not {value!r}.")
    return value


def _read_text(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise EntryError(f"{key} must be a text, not {value!r}.")
    return value

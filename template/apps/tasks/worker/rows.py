"""The row of a failed task: written before its message is released, however long the database is down.

Only the database is waited for. Whatever else is wrong with a task, its message or its error, the row says instead.
"""

import logging
import threading
from collections.abc import Callable
from datetime import datetime
from functools import partial
from time import monotonic
from typing import Any
from uuid import UUID

from django.db import DataError, IntegrityError, connections, transaction
from django.db import Error as DatabaseProblem
from django.db.models import F
from django.utils import timezone
from kombu import Message
from kombu.asynchronous import get_event_loop
from kombu.utils import uuid

from apps.background.storable import as_text
from apps.tasks.models import FailedTask
from apps.tasks.sending.outbox import forget
from apps.web import clock

from .replay import pack

logger = logging.getLogger(__name__)

# The time between two attempts to write a row.
PAUSE_SECONDS = 5
# A worker all of whose slots have been held for longer than this by rows that cannot be written shows no sign of life.
PATIENCE_SECONDS = 300.0
# No header counts further than this, so that the sum fits its column.
LARGEST_COUNT = 1_000_000
# The length of each text in a row that replaces one which the database refuses.
SHORT = 255

# Since when each message has been held, by the call that releases it.
_held_since: dict[Callable[[], object], float] = {}


def is_away(error: BaseException) -> bool:
    """Return whether the database cannot write any row now, as opposed to this one."""
    return isinstance(error, DatabaseProblem) and not isinstance(error, (DataError, IntegrityError))


def in_words(say: Callable[[], object]) -> str:
    """Return the text that a function returns. If it raises an exception, return which, because the code is anybody's.

    Even `str(error)` raises TypeError if the error's `__str__` returns a lazy translation or None.
    """
    try:
        return str(say())
    except Exception as problem:
        return f"<its text cannot be read: {type(problem).__name__}>"


# What a row says ------------------------------------------------------------


def write_row(message: Message, error: BaseException, traceback: str, worker: str) -> None:
    """Record a failed task. If it already has a row, update the error and the number of attempts.

    If the database refuses the row, it gets a smaller one. Raises an error of the database if it cannot write any.
    """
    headers = _as_dict(message.headers)
    columns = {
        "name": _text(headers.get("task") or "")[:255],
        "args": _text(headers.get("argsrepr") or ""),
        "kwargs": _text(headers.get("kwargsrepr") or ""),
        "exception": _text(_told(error)),
        "traceback": _text(traceback),
        "worker": worker[:255],
        "message": "",
    }
    try:
        columns["message"] = pack(message)
    except Exception as reason:
        columns["exception"] += f"\n\nIts message could not be kept: {in_words(partial(repr, reason))}"
    try:
        _store(task_id_of(message), columns, headers)
    except Exception as reason:
        if is_away(reason):
            raise
        logger.exception("The row of a failed task is refused, so a smaller one is written.")
        smaller = {name: _short(text) for name, text in columns.items() if name != "message"}
        smaller["exception"] += f"\n\nThe row is incomplete: {_short(in_words(partial(repr, reason)))}"
        _store(_short(task_id_of(message)), columns | smaller, headers)


def _store(task_id: str, columns: dict[str, Any], headers: dict[str, Any]) -> None:
    """Write the row, and delete the one that remembers a durable task."""
    tries = _count(headers.get("retries")) + _count(headers.get("lost_workers")) + 1
    earlier_tries, since = _earlier(headers)
    latest = columns | {"last_failed_at": timezone.now()}
    with transaction.atomic():
        FailedTask.objects.update_or_create(
            task_id=task_id,
            defaults=latest | {"tries": F("tries") + tries},
            create_defaults=latest | {"tries": earlier_tries + tries, "first_failed_at": since},
        )
        forget(_row_id(headers.get("outgoing")))


def task_id_of(message: Message) -> str:
    """Return the id of the task, or a new id if the message has none, because it may not be a task's message."""
    task_id = _as_dict(message.headers).get("id") or _as_dict(message.properties).get("correlation_id")
    return _text(task_id or uuid())[:255]


def _told(error: BaseException) -> str:
    kind, text = type(error).__name__, in_words(partial(str, error))
    return text if text.startswith(kind) else f"{kind}: {text}"


def _text(value: object) -> str:
    """Return the value as a text that every database accepts."""
    return as_text(in_words(partial(str, value)))


def _short(text: str) -> str:
    return text[:SHORT].encode("ascii", "backslashreplace").decode()[:SHORT]


# Headers. A message may come from anywhere, so each may be of any type.


def _as_dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int:
    return min(value, LARGEST_COUNT) if isinstance(value, int) and value > 0 else 0


def _earlier(headers: dict[str, Any]) -> tuple[int, datetime]:
    """Return how often a task that is sent again had been tried before, and the column value of its first failure."""
    earlier = _as_dict(headers.get("failed_earlier"))
    try:
        since = clock.for_column(datetime.fromisoformat(earlier["since"]))
    except (KeyError, OverflowError, TypeError, ValueError):
        since = timezone.now()
    return _count(earlier.get("tries")), since


def _row_id(value: object) -> str | None:
    try:
        return str(UUID(str(value)))
    except ValueError:
        return None


# Waiting for the database ---------------------------------------------------


def once_written(what: str, write: Callable[[], None], finish: Callable[[], object]) -> None:
    """Call `finish`, which releases the message, as soon as `write` has succeeded, or has failed for good."""
    try:
        write()
    except Exception as reason:
        if is_away(reason):
            logger.error(
                "The row of failed task %s cannot be written, so its message is kept until it can: %s", what, reason
            )
            _held_since.setdefault(finish, monotonic())
            _call_later(partial(once_written, what, write, finish))
            return
        # It would fail in the same way for ever, and hold a slot of the worker.
        logger.critical("%s has failed, and leaves no row.", what, exc_info=True)
    finally:
        # A process must not hold a connection when it forks, and idle connections are wasted.
        connections.close_all()
    _held_since.pop(finish, None)
    finish()


def held_for_long() -> int:
    """Return how many messages have been held for long, because their rows cannot be written."""
    return sum(monotonic() - since > PATIENCE_SECONDS for since in tuple(_held_since.values()))


def _call_later(call: Callable[[], None]) -> None:
    loop = get_event_loop()
    if loop and threading.current_thread() is threading.main_thread():
        loop.call_later(PAUSE_SECONDS, call)
        return
    timer = threading.Timer(PAUSE_SECONDS, call)
    # This does not delay the exit of the worker. The broker then redelivers the message.
    timer.daemon = True
    timer.start()

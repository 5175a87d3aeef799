"""The row of a failed task: written before its message is released, however long the database is down."""

import logging
import threading
from collections.abc import Callable
from datetime import datetime
from functools import partial

from django.db import connections, transaction
from django.db.models import F
from django.utils import timezone
from kombu import Message
from kombu.asynchronous import get_event_loop
from kombu.utils import uuid

from apps.tasks.models import FailedTask
from apps.tasks.sending.outbox import forget
from apps.web import clock

from .replay import pack

logger = logging.getLogger(__name__)

# The time between two attempts to write a row.
PAUSE_SECONDS = 5


def write_row(message: Message, error: BaseException, traceback: str, worker: str) -> None:
    """Record a failed task. If it already has a row, update the error and the number of attempts."""
    headers, now = message.headers or {}, timezone.now()
    earlier = headers.get("failed_earlier") or {"tries": 0, "since": clock.now().isoformat()}
    tries = (headers.get("retries") or 0) + (headers.get("lost_workers") or 0) + 1
    latest = {
        "name": _text(headers.get("task") or "")[:255],
        "args": _text(headers.get("argsrepr") or ""),
        "kwargs": _text(headers.get("kwargsrepr") or ""),
        "exception": _text(_told(error)),
        "traceback": _text(traceback),
        "worker": worker,
        "last_failed_at": now,
        "message": pack(message),
    }
    since = clock.for_column(datetime.fromisoformat(earlier["since"]))
    first = {"tries": earlier["tries"] + tries, "first_failed_at": since}
    with transaction.atomic():
        FailedTask.objects.update_or_create(
            task_id=task_id_of(message),
            defaults=latest | {"tries": F("tries") + tries},
            create_defaults=latest | first,
        )
        forget(headers.get("outgoing"))


def task_id_of(message: Message) -> str:
    """Return the id of the task, or a new id if the message has none, because it may not be a task's message."""
    task_id = (message.headers or {}).get("id") or (message.properties or {}).get("correlation_id")
    return _text(task_id or uuid())[:255]


def _told(error: BaseException) -> str:
    kind, text = type(error).__name__, str(error)
    return text if text.startswith(kind) else f"{kind}: {text}"


def _text(value: object) -> str:
    """Return the value as a text that every database accepts."""
    return str(value).encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")


def once_written(what: str, write: Callable[[], None], finish: Callable[[], object]) -> None:
    """Call `finish`, which releases the message, as soon as `write` has succeeded."""
    try:
        write()
    # Whatever the reason, a message must not be released before its row is written.
    except Exception as reason:
        logger.error(
            "The row of failed task %s cannot be written, so its message is kept until it can: %s", what, reason
        )
    else:
        finish()
        return
    finally:
        # A process must not hold a connection when it forks, and idle connections are wasted.
        connections.close_all()
    again = partial(once_written, what, write, finish)
    loop = get_event_loop()
    if loop and threading.current_thread() is threading.main_thread():
        loop.call_later(PAUSE_SECONDS, again)
        return
    timer = threading.Timer(PAUSE_SECONDS, again)
    # This does not delay the exit of the worker. The broker then redelivers the message.
    timer.daemon = True
    timer.start()

"""The row of a failed task: written before its message goes, however long the database is away."""

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

# Between two attempts to write a row.
PAUSE_SECONDS = 5


def write_row(message: Message, error: BaseException, traceback: str, worker: str) -> None:
    """Write down a task that has failed; a row that it has already gets the latest error and the number of tries."""
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
    """Return the id of the task; one of our own if the message has none, as it may be none of a task."""
    task_id = (message.headers or {}).get("id") or (message.properties or {}).get("correlation_id")
    return _text(task_id or uuid())[:255]


def _told(error: BaseException) -> str:
    kind, text = type(error).__name__, str(error)
    return text if text.startswith(kind) else f"{kind}: {text}"


def _text(value: object) -> str:
    """Return the value as a text that every database takes."""
    return str(value).encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")


def once_written(what: str, write: Callable[[], None], finish: Callable[[], object]) -> None:
    """Call `finish`, which gives up the message, as soon as `write` has succeeded."""
    try:
        write()
    # Whatever the reason: what is not written down must not go.
    except Exception as reason:
        logger.error(
            "The row of failed task %s cannot be written, so its message is kept until it can: %s", what, reason
        )
    else:
        finish()
        return
    finally:
        # A process must not hold a connection when it forks, and the database has none to spare.
        connections.close_all()
    again = partial(once_written, what, write, finish)
    loop = get_event_loop()
    if loop and threading.current_thread() is threading.main_thread():
        loop.call_later(PAUSE_SECONDS, again)
        return
    timer = threading.Timer(PAUSE_SECONDS, again)
    # It does not hold up the end of the worker, after which the broker delivers the message again.
    timer.daemon = True
    timer.start()

"""The half of failed tasks that runs in a worker: what fails for good becomes a row before its message is acknowledged.

This happens outside of the task's own process, where the pool has processes, so that a task which was killed leaves a
row as well. While the row cannot be written, the message stays unacknowledged: neither is the task run again, nor is
it lost, because the broker delivers the message again if the worker ends meanwhile.
"""

import logging
import threading
from collections.abc import Callable
from datetime import datetime
from functools import partial
from time import monotonic
from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery.exceptions import (
    Ignore,
    InvalidTaskError,
    NotRegistered,
    Reject,
    Retry,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from celery.utils.serialization import get_pickled_exception
from celery.worker import state
from celery.worker.consumer import Consumer
from celery.worker.request import Request
from django.conf import settings
from django.db import DatabaseError, connections, transaction
from django.db.models import F
from django.utils import timezone
from kombu import Message
from kombu.asynchronous import get_event_loop
from kombu.utils import uuid

from . import clock
from .models import FailedTask, ReturnedTask
from .outbox import forget
from .replay import pack, publish

logger = logging.getLogger(__name__)

# Between two attempts to write a row.
PAUSE_SECONDS = 5


class WorkerKiller(Exception):
    """A task was given up, because the processes or the workers that ran it have died."""


# Rows -----------------------------------------------------------------------


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
            task_id=_task_id(message),
            defaults=latest | {"tries": F("tries") + tries},
            create_defaults=latest | first,
        )
        forget(headers.get("outgoing"))


def _task_id(message: Message) -> str:
    """Return the id of the task; one of our own if the message has none, as it may be none of a task."""
    task_id = (message.headers or {}).get("id") or (message.properties or {}).get("correlation_id")
    return _text(task_id or uuid())[:255]


def _told(error: BaseException) -> str:
    kind, text = type(error).__name__, str(error)
    return text if text.startswith(kind) else f"{kind}: {text}"


def _text(value: object) -> str:
    """Return the value as a text that every database takes."""
    return str(value).encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")


def _once_written(what: str, write: Callable[[], None], finish: Callable[[], object]) -> None:
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
    again = partial(_once_written, what, write, finish)
    loop = get_event_loop()
    if loop and threading.current_thread() is threading.main_thread():
        loop.call_later(PAUSE_SECONDS, again)
        return
    timer = threading.Timer(PAUSE_SECONDS, again)
    # It does not hold up the end of the worker, after which the broker delivers the message again.
    timer.daemon = True
    timer.start()


# Tasks that ran -------------------------------------------------------------


class RecordingRequest(Request):
    """A task in a pool, which leaves a row before it gives up its message."""

    has_row = False

    def __init__(self, message: Message, **options: Any) -> None:
        """Note when the message came; `ProjectTask.before_start` asks how long it was held."""
        super().__init__(message, **options)
        self._request_dict["received_at"] = monotonic()

    def on_failure(self, exc_info: ExceptionInfo, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """Write a row if the task has failed for good; then do what Celery does."""
        error = _unwrapped(exc_info.exception)
        if self._is_killed(error):
            losses = self._request_dict.get("lost_workers", 0) + 1
            if losses >= self._allowed_losses:
                exc_info = _killer(losses, error)
                error = _unwrapped(exc_info.exception)
            elif self._is_sent_again(losses):
                return
        finish = partial(super().on_failure, exc_info, send_failed_event=send_failed_event, return_ok=return_ok)
        self._give_up(error, str(exc_info.traceback), finish)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Write a row at the hard limit: of that, pools of greenlets do not tell `on_failure`."""
        finish = partial(super().on_timeout, soft, timeout)
        if soft:
            finish()
        else:
            self._give_up(TimeLimitExceeded(timeout), "", finish)

    def _give_up(self, error: BaseException, traceback: str, finish: Callable[[], None]) -> None:
        """Call `finish`; if that is the end of the task, only once nothing more needs to be written down."""
        outgoing = self._request_dict.get("outgoing")
        is_kept = self.task.keep_failed and not isinstance(error, self.task.throws)
        if not self._is_end(error) or not (is_kept or outgoing):
            finish()
            return

        def write() -> None:
            if is_kept and not self.has_row:
                write_row(self._message, error, traceback, self._hostname)
                self.has_row = True
            elif not is_kept:
                forget(outgoing)

        _once_written(self.humaninfo(), write, finish)

    def _is_end(self, error: BaseException) -> bool:
        """Return whether the task has failed, and will not run again."""
        if isinstance(error, TimeLimitExceeded) and self.task.acks_late:
            return self.task.acks_on_timeout
        unfinished = (Ignore, Reject, Retry, Terminated, WorkerLostError, KeyboardInterrupt, SystemExit)
        return not isinstance(error, unfinished)

    def _is_killed(self, error: BaseException) -> bool:
        """Return whether the process of the task died in the middle, and not because the worker ends."""
        was_ended = self._already_cancelled or self._already_revoked or state.should_terminate is not None
        lost = isinstance(error, (WorkerLostError, KeyboardInterrupt, SystemExit))
        return lost and not was_ended and not self._success_was_stored()

    @property
    def _allowed_losses(self) -> int:
        is_repeated = self.task.acks_late and self.task.reject_on_worker_lost
        return settings.LOST_WORKERS_PER_TASK if is_repeated else 1

    def _is_sent_again(self, losses: int) -> bool:
        """Put the message back with the number of processes it has cost; return False if the broker does not take it.

        Then Celery gives it back as it was. Not left to `task_retry_on_worker_lost`, which counts these as retries: an
        innocent task with `max_retries=0` would fail, and one without a limit would kill processes for ever.
        """
        try:
            publish(pack(self._message), lost_workers=losses)
        except Exception as error:
            # Whatever the reason: a message that is neither sent nor given back would wait for the end of this worker.
            logger.error("%s has lost its process, and goes back as it is: %s", self.humaninfo(), error)
            return False
        logger.warning("%s has lost its process, and was sent again.", self.humaninfo())
        state.task_ready(self)
        self.acknowledge()
        return True


def _unwrapped(error: BaseException) -> BaseException:
    return get_pickled_exception(error.exc if isinstance(error, ExceptionWithTraceback) else error)


def _killer(losses: int, error: BaseException) -> ExceptionInfo:
    try:
        raise WorkerKiller(f"The task was started {losses} times, and its process died each time: {error}")
    except WorkerKiller:
        return ExceptionInfo()


def count_return(task_id: str) -> None:
    """Count that a message came back, before its task is started anew; raise WorkerKiller if that is enough.

    It comes back when not a process of the pool dies, but the worker: under a pool of threads or greenlets, where a
    task that crashes takes all others along, or when a container is stopped.
    """
    now = timezone.now()
    try:
        returned, _ = ReturnedTask.objects.update_or_create(
            task_id=task_id,
            defaults={"times": F("times") + 1, "last_returned_at": now},
            create_defaults={"times": 1, "last_returned_at": now},
        )
        returned.refresh_from_db()
    except DatabaseError as error:
        logger.warning("It was not counted that the message of task %s came back: %s", task_id, error)
        return
    if returned.times >= settings.LOST_WORKERS_PER_TASK:
        returned.delete()
        raise WorkerKiller(f"The task was started {returned.times} times, and the worker ended each time before it.")


# Messages that no task could be made of -------------------------------------


class RecordingConsumer(Consumer):
    """The part of the worker that takes messages. One that it cannot run leaves a row, too."""

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Say what the broker answered, which the client of Redis leaves out of what Celery logs; then connect anew."""
        logger.warning("The connection to the broker is given up: %s", exc)
        super().on_connection_error_after_connected(exc)

    def on_unknown_message(self, body: Any, message: Message) -> None:
        """Keep what is no message of Celery."""
        error = InvalidTaskError("The message is none of a task.")
        self._give_up(message, error, partial(super().on_unknown_message, body, message))

    def on_unknown_task(self, body: Any, message: Message, exc: Exception) -> None:
        """Keep a task that this release does not know: the next one, or the one before, may."""
        self._give_up(message, NotRegistered(*exc.args), partial(super().on_unknown_task, body, message, exc))

    def on_invalid_task(self, body: Any, message: Message, exc: Exception) -> None:
        """Keep a message with a wrong part."""
        self._give_up(message, exc, partial(super().on_invalid_task, body, message, exc))

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Keep a message whose body cannot be read."""
        self._give_up(message, exc, partial(super().on_decode_error, message, exc))

    def _give_up(self, message: Message, error: Exception, finish: Callable[[], None]) -> None:
        _once_written(_task_id(message), partial(write_row, message, error, "", self.hostname), finish)

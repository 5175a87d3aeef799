"""Records failed tasks in the worker: a task that fails for good becomes a row before its message is acknowledged.

If the pool has processes, this happens outside of the task's own process, so that a killed task also leaves a row.
While the row cannot be written, the message stays unacknowledged. The task does not run again, and it is not lost,
because the broker redelivers the message if the worker exits in the meantime.
"""

import logging
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

from billiard.einfo import ExceptionInfo, ExceptionWithTraceback
from celery.app.task import Context
from celery.exceptions import (
    Ignore,
    InvalidTaskError,
    Reject,
    Retry,
    Terminated,
    TimeLimitExceeded,
    WorkerLostError,
)
from celery.utils.serialization import get_pickled_exception
from celery.worker import state
from celery.worker.request import Request
from django.conf import settings
from kombu import Message
from kombu.exceptions import ContentDisallowed, DecodeError

from apps.tasks.sending.deliveries import WorkerKiller
from apps.tasks.sending.outbox import forget

from . import readable
from .replay import pack, publish
from .rows import in_words, is_away, once_written, write_row

logger = logging.getLogger(__name__)


class RecordingRequest(Request):
    """A task in a pool, which leaves a row before it releases its message."""

    has_row = False

    def __init__(self, message: Message, **options: Any) -> None:
        """Record when the message arrived, because `ProjectTask.before_start` asks how long it was held.

        Raises InvalidTaskError if the message cannot be run.
        """
        try:
            super().__init__(message, **options)
            readable.check(self)
        except (ContentDisallowed, DecodeError, InvalidTaskError):
            raise
        except Exception as error:
            raise InvalidTaskError(f"The message cannot be read: {in_words(partial(repr, error))}") from error
        self._request_dict["received_at"] = monotonic()

    def on_failure(self, exc_info: ExceptionInfo, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """Write a row if the task has failed for good, then do what Celery does."""
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
        """Write a row at the hard limit, because greenlet pools do not call `on_failure` then."""
        finish = partial(super().on_timeout, soft, timeout)
        if soft:
            finish()
        else:
            self._give_up(TimeLimitExceeded(timeout), "", finish)

    def _give_up(self, error: BaseException, traceback: str, finish: Callable[[], None]) -> None:
        """Call `finish`. If the task has ended, do so only after everything has been recorded."""
        outgoing = self._request_dict.get("outgoing")
        is_kept = self.task.keep_failed and not isinstance(error, self.task.throws)
        record_end = getattr(self.task, "record_end", None)
        if not self._is_end(error) or not (is_kept or outgoing or record_end):
            finish()
            return

        def write() -> None:
            if record_end:
                self._record_end(record_end, error, traceback)
            if is_kept and not self.has_row:
                write_row(self._message, error, traceback, self._hostname)
                self.has_row = True
            elif not is_kept:
                forget(outgoing)

        def release() -> None:
            try:
                finish()
            except Exception:
                # Celery stores a result, for example, before it acknowledges the message.
                logger.exception("%s has ended, and what follows its end has failed.", in_words(self.humaninfo))
                self.acknowledge()

        once_written(in_words(self.humaninfo), write, release)

    def _record_end(self, record_end: Callable[..., None], error: BaseException, traceback: str) -> None:
        """Let the task record its end. For example, a receiver of `task_finished` may have a mistake."""
        unless_away(lambda: record_end(Context(self._request_dict), error, traceback), in_words(self.humaninfo))

    def _is_end(self, error: BaseException) -> bool:
        """Return whether the task has failed, and will not run again."""
        if isinstance(error, TimeLimitExceeded) and self.task.acks_late:
            return self.task.acks_on_timeout
        unfinished = (Ignore, Reject, Retry, Terminated, WorkerLostError, KeyboardInterrupt, SystemExit)
        return not isinstance(error, unfinished)

    def _is_killed(self, error: BaseException) -> bool:
        """Return whether the process of the task died midway, and not because the worker is exiting."""
        was_ended = self._already_cancelled or self._already_revoked or state.should_terminate is not None
        lost = isinstance(error, (WorkerLostError, KeyboardInterrupt, SystemExit))
        return lost and not was_ended and not self._success_was_stored()

    @property
    def _allowed_losses(self) -> int:
        is_repeated = self.task.acks_late and self.task.reject_on_worker_lost
        return settings.LOST_WORKERS_PER_TASK if is_repeated else 1

    def _is_sent_again(self, losses: int) -> bool:
        """Requeue the message with the number of processes that it has killed. Return False if the broker refuses it.

        Celery then requeues it unchanged. `task_retry_on_worker_lost` would count these as retries: an innocent task
        with `max_retries=0` would fail, and a task without a limit would kill processes forever.
        """
        try:
            publish(pack(self._message), lost_workers=losses)
        except Exception as error:
            # Whatever the reason, a message that is neither sent nor given back would wait until this worker exits.
            logger.error("%s has lost its process, and goes back as it is: %s", in_words(self.humaninfo), error)
            return False
        logger.warning("%s has lost its process, and was sent again.", in_words(self.humaninfo))
        state.task_ready(self)
        self.acknowledge()
        return True


def unless_away(record: Callable[[], None], what: str) -> None:
    """Call a function that records the end of a task. Only a database that is away may delay what follows."""
    try:
        record()
    except Exception as error:
        if is_away(error):
            raise
        # The next attempt would meet the same mistake.
        logger.exception("%s has failed, and what records its end has failed too.", what)


def _unwrapped(error: BaseException) -> BaseException:
    return get_pickled_exception(error.exc if isinstance(error, ExceptionWithTraceback) else error)


def _killer(losses: int, error: BaseException) -> ExceptionInfo:
    told = in_words(partial(str, error))
    return failure_info(WorkerKiller(f"The task was started {losses} times, and its process died each time: {told}"))


def failure_info(error: Exception) -> ExceptionInfo:
    """Return the error as pools report it."""
    try:
        raise error
    except Exception:
        return ExceptionInfo()

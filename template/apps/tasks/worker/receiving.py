"""Receives messages in the worker. What cannot be run as a task becomes a row, and ends no worker."""

import logging
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from celery.app.trace import TraceInfo, trace_ok_t
from celery.exceptions import InvalidTaskError, NotRegistered
from celery.states import FAILURE
from celery.worker.consumer import Consumer
from kombu import Message

from apps.background.records import close
from apps.tasks.sending.running import as_failure, is_for_the_worker

from .failures import failure_info, unless_away
from .rows import once_written, task_id_of, write_row
from .snapshot import excuse_what_comes_back, running_requests, undisturbed

logger = logging.getLogger(__name__)


class RecordingConsumer(Consumer):
    """The part of the worker that receives messages. A message that it cannot run also leaves a row."""

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Log the broker's answer, which the Redis client hides from Celery's own log, then connect again."""
        logger.warning("The connection to the broker is given up: %s", exc)
        # Redis would hand the tasks that go on here to other workers at once. RabbitMQ does so by itself.
        channel = getattr(self.task_consumer, "channel", None)
        if keep := getattr(getattr(channel, "qos", None), "keep", None):
            keep(request._message.delivery_tag for request in running_requests())
        excuse_what_comes_back(self.app)
        super().on_connection_error_after_connected(exc)

    def on_close(self) -> None:
        """Forget the tasks that have not begun, but none that a process of the pool may have begun unnoticed.

        Celery also forgets a task that has been written to a process, and is run there, until the process says so.
        Nobody would acknowledge it, so it would run again elsewhere, and no time limit would end it.
        """
        pool = getattr(self.pool, "_pool", None)
        for call in tuple(getattr(pool, "_cache", {}).values()):
            if call._write_to and call not in pool.outbound_buffer:
                call._accepted = True
        # Celery looks through the requests, while tasks end in other threads.
        undisturbed(super().on_close)

    def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Message], None]:
        """Return the function that takes a message. It keeps what Celery cannot read, which would end the worker."""
        take = super().create_task_handler(*args, **options)

        def on_task_received(message: Message) -> None:
            try:
                take(message)
            except (*self.connection_errors, *self.channel_errors):
                raise
            except Exception as error:
                self.on_invalid_task(None, message, error)

        return on_task_received

    def update_strategies(self) -> None:
        """Have each task end as failed, whatever it raises, if the pool runs it in this process.

        A pool of processes reports what its processes raise. The others do nothing with what is not an Exception, and
        the message would stay unacknowledged for ever.
        """
        super().update_strategies()
        if not hasattr(getattr(self.pool, "_pool", None), "_cache"):
            for task in self.app.tasks.values():
                task.__trace__ = _ending(task.__trace__)

    def on_unknown_message(self, body: Any, message: Message) -> None:
        """Keep a message that is not Celery's."""
        error = InvalidTaskError("The message is none of a task.")
        self._give_up(message, error, partial(super().on_unknown_message, body, message))

    def on_unknown_task(self, body: Any, message: Message, exc: Exception) -> None:
        """Keep a task that this release does not know, because the next or the previous release may know it."""
        self._give_up(message, NotRegistered(*exc.args), partial(super().on_unknown_task, body, message, exc))

    def on_invalid_task(self, body: Any, message: Message, exc: Exception) -> None:
        """Keep a message of which a part is invalid."""
        self._give_up(message, exc, partial(super().on_invalid_task, body, message, exc))

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Keep a message whose body cannot be read."""
        self._give_up(message, exc, partial(super().on_decode_error, message, exc))

    def _give_up(self, message: Message, error: Exception, finish: Callable[[], None]) -> None:
        errors = (*self.connection_errors, *self.channel_errors)

        def write() -> None:
            task_id = task_id_of(message)
            # Otherwise a task of apps.background would be "ready" for ever.
            if task_id == (message.headers or {}).get("enqueued"):
                unless_away(partial(close, task_id, error), task_id)
            write_row(message, error, "", self.hostname)

        def release() -> None:
            try:
                finish()
            except errors:
                raise
            except Exception:
                # Celery looks for the id and the name of a task, for example, before it drops the message.
                logger.exception("Celery cannot read the message %s.", task_id_of(message))
                if not message.acknowledged:
                    message.ack_log_error(logger, errors)

        once_written(task_id_of(message), write, release)


def _ending(trace: Callable[..., trace_ok_t]) -> Callable[..., trace_ok_t]:
    """Return the function that runs a task, which then returns a failure where it would raise an exception."""

    @wraps(trace)
    def ending(*args: Any, **options: Any) -> trace_ok_t:
        try:
            return trace(*args, **options)
        except BaseException as error:
            if is_for_the_worker(error):
                raise
            info = failure_info(as_failure(error))
            return trace_ok_t(info, TraceInfo(FAILURE, info.exception), 0.0, None)

    return ending

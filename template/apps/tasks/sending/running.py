"""The task in a worker: how it starts, is replaced, is retried and ends."""

import sys
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

from billiard.common import terminate_handler_fired
from celery.canvas import Signature
from celery.contrib.django.task import DjangoTask
from celery.exceptions import Ignore, Reject, WorkerShutdown, WorkerTerminate
from celery.result import allow_join_result
from django.db import transaction
from kombu.exceptions import OperationalError

from apps.background.isolation import isolated
from apps.tasks.broker.queues import DELAY_LEVELS

from . import canvas
from .message import has_lost_its_worker


class RunningTask(DjangoTask):
    """The part of a task that only workers use."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task, then send its replacement if it has one. Tasks that it calls have requests of their own."""
        request = self.request
        if request.called_directly or request.get("is_running") is not None:
            self.push_request(args=args, kwargs=kwargs)
            try:
                return self.run_function(args, kwargs)
            finally:
                self.pop_request()
        request.is_running, request.replacements = True, []
        try:
            result = isolated(self.run_function, args, kwargs)
        except Ignore:
            self._send_replacements(request.replacements)
            raise
        finally:
            request.is_running = False
        self._send_replacements(request.replacements)
        return result

    def run_function(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run the function. Whatever it raises, the task has failed.

        If it exits, is cancelled or runs out of memory, Celery would end the worker, or never acknowledge the message.
        """
        try:
            return self.run(*args, **kwargs)
        except BaseException as error:
            # Somebody waits in front of a task that is called, and not sent.
            is_ctrl_c = isinstance(error, KeyboardInterrupt) and (self.request.called_directly or self.request.is_eager)
            failure = as_failure(error)
            if failure is error or is_ctrl_c or is_for_the_worker(error, self._time_limit()):
                raise
            raise failure from error

    def on_replace(self, sig: Signature) -> Any:
        """Replace this task with another one that has the same id, and that keeps its result if this one does.

        This raises an exception that leaves the function and rolls back a transaction around it. The replacement is
        sent afterwards, or later if the broker is down.
        """
        # What the call says overrides what the task declares. The class of the request has another default.
        ignored = vars(self.request).get("ignore_result")
        if not (self.ignore_result if ignored is None else ignored):
            canvas.keep_result_of(self.request.id, sig)
        replacements = self.request.get("replacements")
        if replacements is None or self.request.is_eager:
            # An eager task waits for its replacement, which Celery forbids by default.
            with allow_join_result():
                return super().on_replace(sig)
        replacements.append(sig)
        raise Ignore("Replaced by new task")

    def _send_replacements(self, replacements: Sequence[Signature]) -> None:
        if replacements:
            # All or nothing, including the number of parts of a chord.
            with transaction.atomic():
                for replacement in replacements:
                    replacement.delay()

    def retry(self, *args: Any, **kwargs: Any) -> Exception:
        """Retry the task as Celery does, but do not lose it if the broker is down or an error occurs."""
        try:
            return super().retry(*args, **kwargs)
        except Reject as rejection:
            # Celery would drop the task here.
            if isinstance(rejection.reason, OperationalError) and self.acks_late:
                raise Reject(rejection.reason, requeue=True) from rejection
            raise rejection.reason from None

    def signature_from_request(
        self,
        request: Any = None,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        queue: str | None = None,
        **options: Any,
    ) -> Signature:
        """Return the signature of a retry, which goes to the queue that the task came from."""
        return super().signature_from_request(request, args, kwargs, queue or self._queue(), **options)

    def _queue(self) -> str | None:
        # Celery finds the queue by the routing key, and does not find it if a countdown on RabbitMQ has prefixed that
        # key.
        delivery = self.request.delivery_info or {}
        key = DELAY_LEVELS.sub("", delivery.get("routing_key") or "")
        queues = self.app.amqp.queues
        return key if key in queues else next((name for name in queues if queues[name].routing_key == key), None)

    def before_start(self, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Skip a durable task that has already ended: this is a second message, sent because the first was late.

        Also give up a task that kills its worker each time, and give back a task that Redis would redeliver while it
        runs.
        """
        # A message that is acknowledged before its task runs cannot be given back.
        if self.acks_late and self._was_held_too_long():
            raise Reject("It waited too long for a slot in this worker.", requeue=True)
        # These modules import models, which are not loaded yet when Celery asks for the class of its tasks.
        from . import deliveries, outbox

        if has_lost_its_worker(self.request):
            deliveries.count_return(task_id, self.request.retries or 0)
        row_id = self.request.get("outgoing")
        if row_id and not outbox.is_open(row_id):
            raise Ignore("It has ended already, or was taken back.")

    def _was_held_too_long(self) -> bool:
        """Return whether the message arrived so long ago that its visibility timeout may expire while the task runs."""
        visibility = self.app.conf.broker_transport_options.get("visibility_timeout")
        received_at = self.request.get("received_at")
        if received_at is None or visibility is None:
            return False
        # A worker holds any number of messages with a countdown, and all of them may become due at once.
        return monotonic() - received_at > max(visibility - self._time_limit(), visibility / 2)

    def _time_limit(self) -> float:
        """Return after how many seconds the task is killed, or 0 for never."""
        return (self.request.timelimit or (None,))[0] or self.time_limit or 0


def is_for_the_worker(error: BaseException, time_limit: float | None = None) -> bool:
    """Return whether an exception stops the worker or one of its processes, or is how gevent kills a task.

    `time_limit` tells Celery's own timeout on gevent from one that the function has set and let pass.
    """
    if isinstance(error, SystemExit):
        # A pool process that gets a signal exits in this way.
        return terminate_handler_fired() or isinstance(error, (WorkerShutdown, WorkerTerminate))
    gevent = sys.modules.get("gevent")
    if gevent and isinstance(error, gevent.Timeout):
        return time_limit is None or error.seconds == time_limit
    return bool(gevent) and isinstance(error, gevent.GreenletExit)


def as_failure(error: BaseException) -> Exception:
    """Return the exception, or an error in place of one with which Celery does not end a task."""
    if isinstance(error, Exception) and not isinstance(error, MemoryError):
        return error
    failure = RuntimeError(f"The task raised {error!r}.")
    failure.__cause__ = error
    return failure

"""What is different while a task runs: how it starts, is replaced, retried and ends."""

from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

from billiard.common import terminate_handler_fired
from celery.canvas import Signature
from celery.contrib.django.task import DjangoTask
from celery.exceptions import Ignore, Reject
from celery.result import allow_join_result
from django.db import transaction
from kombu.exceptions import OperationalError

from apps.tasks.broker.queues import DELAY_LEVELS

from . import canvas
from .message import was_redelivered


class RunningTask(DjangoTask):
    """The half of a task that a worker sees."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task, and then send what it was replaced by. What it calls itself has a request of its own."""
        request = self.request
        if request.called_directly or request.get("is_running") is not None:
            self.push_request(args=args, kwargs=kwargs)
            try:
                return self._run(args, kwargs)
            finally:
                self.pop_request()
        request.is_running, request.replacements = True, []
        try:
            result = self._run(args, kwargs)
        except Ignore:
            self._send_replacements(request.replacements)
            raise
        finally:
            request.is_running = False
        self._send_replacements(request.replacements)
        return result

    def _run(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Run the function. One that exits, or asks for too much memory, has failed; Celery would end the worker."""
        try:
            return self.run(*args, **kwargs)
        except (MemoryError, SystemExit) as error:
            # A process of the pool exits in this way, too, when it gets a signal.
            if isinstance(error, SystemExit) and terminate_handler_fired():
                raise
            raise RuntimeError(f"The task raised {error!r}.") from error

    def on_replace(self, sig: Signature) -> Any:
        """Have another task run in place of this one, with its id and, if it keeps its result, with one that is kept.

        It is sent when the function has been left, by the exception that this raises: a transaction around `replace`
        is rolled back by that. A broker that is away gets it later.
        """
        # What was said at the call, before what the task says itself; of its class the request has another default.
        ignored = vars(self.request).get("ignore_result")
        if not (self.ignore_result if ignored is None else ignored):
            canvas.keep_result_of(self.request.id, sig)
        replacements = self.request.get("replacements")
        if replacements is None or self.request.is_eager:
            # An eager one waits for the other, which Celery forbids to tasks by default.
            with allow_join_result():
                return super().on_replace(sig)
        replacements.append(sig)
        raise Ignore("Replaced by new task")

    def _send_replacements(self, replacements: Sequence[Signature]) -> None:
        if replacements:
            # All or nothing, the count of the parts of a chord included.
            with transaction.atomic():
                for replacement in replacements:
                    replacement.delay()

    def retry(self, *args: Any, **kwargs: Any) -> Exception:
        """Send the task again as Celery does, but without losing it to a broker that is away, or to a mistake."""
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
        # By its routing key alone Celery does not find it where a countdown on RabbitMQ has been put before that.
        delivery = self.request.delivery_info or {}
        key = DELAY_LEVELS.sub("", delivery.get("routing_key") or "")
        queues = self.app.amqp.queues
        return key if key in queues else next((name for name in queues if queues[name].routing_key == key), None)

    def before_start(self, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Leave a durable task alone that has ended: this is a second message, sent because the first one was late.

        Give up a task that ends the worker each time. Give back one that Redis would deliver again while it runs.
        """
        # What was acknowledged before it runs cannot be given back.
        if self.acks_late and self._was_held_too_long():
            raise Reject("It waited too long for a place in this worker.", requeue=True)
        # They import models, which are not loaded yet when Celery asks for the class of its tasks.
        from . import deliveries, outbox

        if was_redelivered(self.request):
            deliveries.count_return(task_id)
        row_id = self.request.get("outgoing")
        if row_id and not outbox.is_open(row_id):
            raise Ignore("It has ended already, or was taken back.")

    def _was_held_too_long(self) -> bool:
        """Return whether the message came so long ago that its visibility may time out while the task runs."""
        visibility = self.app.conf.broker_transport_options.get("visibility_timeout")
        received_at = self.request.get("received_at")
        if received_at is None or visibility is None:
            return False
        # Those with a countdown are held by the worker, as many as there are, and may all become due at once.
        limit = (self.request.timelimit or (None,))[0] or self.time_limit or 0
        return monotonic() - received_at > max(visibility - limit, visibility / 2)

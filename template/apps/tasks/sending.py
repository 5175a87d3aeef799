"""How a task is sent: when the transaction is committed, and with an answer for a broker that is away."""

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from numbers import Real
from time import monotonic
from typing import Any

from asgiref.sync import sync_to_async
from billiard.common import terminate_handler_fired
from celery import current_app, current_task
from celery.app.task import Context, get_actual_ignore_result
from celery.canvas import Signature
from celery.contrib.django.task import DjangoTask
from celery.exceptions import Ignore, Reject
from celery.result import AsyncResult, allow_join_result
from django.db import transaction
from kombu.exceptions import OperationalError
from kombu.serialization import dumps, loads
from kombu.utils.uuid import uuid

from . import canvas, clock
from .broker import is_rabbitmq
from .coroutines import call_where_queries_may_run

logger = logging.getLogger(__name__)

# What Celery writes before the routing key of a message that waits in RabbitMQ.
DELAY_LEVELS = re.compile(r"^(?:[01]\.){28}")
# True once a message of the commit at hand was not sent: the others do not try, which takes seconds for each.
_broker_is_away: ContextVar[bool] = ContextVar("_broker_is_away", default=False)


@dataclass(frozen=True)
class Message:
    """A task as it is handed to the broker, made of what JSON can say if the task is sent as JSON."""

    name: str
    task_id: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    options: dict[str, Any]

    @property
    def row_id(self) -> str | None:
        """The key of the row that remembers a durable task until its end."""
        return (self.options.get("headers") or {}).get("outgoing")


class ProjectTask(DjangoTask):
    """What every task of the project is: sent on commit, and written down where its message would be lost."""

    # True: a row remembers the task from its sending to its end, and it is sent again if its message got lost.
    durable = False
    # False: the task leaves no row when it has failed for good.
    keep_failed = True
    Request = "apps.tasks.failures:RecordingRequest"

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

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        producer: Any = None,
        after_commit: bool = False,
        on_failure: Callable[[], object] | None = None,
        **options: Any,
    ) -> AsyncResult:
        """Send the task: within a transaction once that is committed, else at once. `delay` comes here, too.

        A countdown counts from this call. One too long for the broker is waited for in the database.

        Raises ValueError for a time limit that Redis does not wait for, and OperationalError if the broker does not
        answer and nothing was committed yet. After a commit nothing is raised: `on_failure` is called or, without it,
        the task is sent later. `after_commit` asks for the same where there is no transaction.
        """
        # Imports models, which are not loaded yet when Celery asks for this class.
        from . import outbox

        self._refuse_to_outlast_a_message(options.get("time_limit"))
        task_id = task_id or uuid()
        if canvas.is_read(self.app, self.name, kwargs or {}, options):
            options.setdefault("ignore_result", False)
        is_retry = bool(options.get("retries"))
        if not is_retry and (headers := options.get("headers")):
            # Those of the task that runs here may be handed on: another task has a row of its own, or none.
            options["headers"] = {name: value for name, value in headers.items() if name != "outgoing"}
        in_transaction = transaction.get_connection().in_atomic_block
        # A retry is followed by an exception, so the transaction will never be committed.
        is_farewell = in_transaction and is_retry
        is_eager = self.app.conf.task_always_eager
        eta = due(options)
        is_far = not is_eager and outbox.is_far(eta)
        is_durable = self.durable and not (is_eager or is_retry)
        if is_far and is_farewell:
            raise ValueError(
                f"{self.name} cannot wait until {eta} from within a transaction, which its retry rolls back: "
                f"call retry() after the transaction, or with at most {outbox.longest_wait()}."
            )
        options |= _with_zones({"expires": self.expires, **options}, eta)
        lasting = {**options, "eta": eta} if eta else options
        if (is_farewell or not in_transaction) and not (is_far or is_durable or after_commit):
            try:
                return self._hand_over(args, kwargs, task_id=task_id, producer=producer, **options)
            except OperationalError as error:
                if not _task_has_returned():
                    raise
                # The next of a chain, the body of a chord or a callback: its sender is done, and nobody to tell.
                outbox.keep(self._message(args or (), kwargs or {}, task_id, lasting), error=str(error))
                return self._result(task_id, options)
        message = self._message(args or (), kwargs or {}, task_id, lasting)
        if is_durable:
            message.options["headers"] = {**(message.options.get("headers") or {}), "outgoing": uuid()}
        if is_far or is_durable:
            call_where_queries_may_run(partial(outbox.keep, message, durable=is_durable))
        if not is_far:
            _broker_is_away.set(False)
            publish = partial(self._publish, message, on_failure)
            # Without a transaction not by `on_commit`, which coroutines may not call.
            transaction.on_commit(publish) if in_transaction else publish()
        return self._result(task_id, options)

    def _hand_over(self, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None, **options: Any) -> AsyncResult:
        """Send the task as Celery does; if it is eager that runs it, and it may ask the database."""
        hand_over = partial(super().apply_async, args, kwargs, **in_whole_seconds(options))
        return call_where_queries_may_run(hand_over) if self.app.conf.task_always_eager else hand_over()

    def _result(self, task_id: str, options: Mapping[str, Any]) -> AsyncResult:
        """Return what stands for the result of a task that is not sent yet; of none that is kept, `get` is None."""
        result = self.AsyncResult(task_id)
        result.ignored = options.get("ignore_result", self.ignore_result)
        return result

    async def aapply_async(self, *args: Any, **options: Any) -> AsyncResult:
        """Do as `apply_async` does, from a coroutine that goes on meanwhile, in the transaction around it if any."""
        return await sync_to_async(self.apply_async)(*args, **options)

    async def adelay(self, *args: Any, **kwargs: Any) -> AsyncResult:
        """Do as `delay` does, from a coroutine that goes on meanwhile, in the transaction around it if any."""
        return await self.aapply_async(args, kwargs)

    def delay_on_commit(self, *args: Any, **kwargs: Any) -> None:
        """Do as `delay` does, which waits for the commit by itself."""
        self.apply_async(args, kwargs)

    def apply_async_on_commit(self, *args: Any, **kwargs: Any) -> None:
        """Do as `apply_async` does, which waits for the commit by itself."""
        self.apply_async(*args, **kwargs)

    def on_replace(self, sig: Signature) -> Any:
        """Have another task run in place of this one, with its id and, if it keeps its result, with one that is kept.

        It is sent when the function has been left, by the exception that this raises: a transaction around `replace`
        is rolled back by that. A broker that is away gets it later.
        """
        if not get_actual_ignore_result(self, self.request):
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
        if was_redelivered(self.request):
            from . import failures

            failures.count_return(task_id)
        row_id = self.request.get("outgoing")
        if row_id:
            from . import outbox

            if not outbox.is_open(row_id):
                raise Ignore("It has ended already, or was taken back.")

    def _refuse_to_outlast_a_message(self, time_limit: float | None) -> None:
        """Raise ValueError for a call with so long a limit that Redis would deliver its message again meanwhile.

        The limits of tasks and of the project are looked at by `manage.py check`.
        """
        visibility = self.app.conf.broker_transport_options.get("visibility_timeout")
        if time_limit and visibility and time_limit >= visibility:
            raise ValueError(
                f"{self.name} cannot be given {time_limit} s: Redis delivers it again after {visibility} s, and it "
                "runs twice. Lower the time_limit, or raise visibility_timeout in settings.py."
            )

    def _was_held_too_long(self) -> bool:
        """Return whether the message came so long ago that its visibility may time out while the task runs."""
        visibility = self.app.conf.broker_transport_options.get("visibility_timeout")
        received_at = self.request.get("received_at")
        if received_at is None or visibility is None:
            return False
        # Those with a countdown are held by the worker, as many as there are, and may all become due at once.
        limit = (self.request.timelimit or (None,))[0] or self.time_limit or 0
        return monotonic() - received_at > max(visibility - limit, visibility / 2)

    def _message(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], task_id: str, options: dict[str, Any]
    ) -> Message:
        """Return the message as it is now, whenever it is published and whatever becomes of the arguments meanwhile.

        Raises TypeError where they do not fit the function, and EncodeError where they cannot be sent.
        """
        # A task that is a class has no header.
        if self.typing and (check := getattr(self, "__header__", None)):
            check(*args, **kwargs)
        serializer = options.get("serializer") or self.serializer
        if self._dump_pydantic_arguments and serializer != "pickle":
            args, kwargs = self._dump_pydantic_arguments(args, kwargs)
        content_type, encoding, data = dumps((args, kwargs), serializer)
        args, kwargs = loads(data, content_type, encoding, accept=[content_type])
        # A connection is only lent, and seconds count from now.
        lasting = {name: options[name] for name in options.keys() - {"connection", "countdown", "publisher"}}
        expires = options.get("expires", self.expires)
        if isinstance(expires, Real):
            expires = clock.now() + timedelta(seconds=float(expires))
        if expires:
            lasting["expires"] = _moment(expires)
        return Message(self.name, task_id, args, kwargs, lasting)

    def _publish(self, message: Message, on_failure: Callable[[], object] | None) -> None:
        """Publish after a commit. Others wait to be called after it, so nothing that the broker does is raised."""
        from . import outbox

        try:
            if _broker_is_away.get():
                raise OperationalError("it did not take the message before this one")
            self._hand_over(message.args, message.kwargs, task_id=message.task_id, **message.options)
        except Exception as error:
            if self.app.conf.task_always_eager:
                raise
            _broker_is_away.set(isinstance(error, OperationalError))
            logger.error("%s[%s] was not sent: %s", self.name, message.task_id, error)
            if on_failure and not message.row_id:
                call_where_queries_may_run(on_failure)
            else:
                outbox.keep_unsent(message, error)


class RetryingTask(ProjectTask):
    """A base for tasks that talk to other systems: `@shared_task(base=RetryingTask, autoretry_for=(SomeError,))`.

    The errors named in `autoretry_for` are tried again after 1, 2, 4 … seconds, at most a minute, each shortened at
    random so that tasks that failed together do not come back together; after six retries the task has failed.
    """

    max_retries = 6
    retry_backoff = 1
    retry_backoff_max = 60
    retry_jitter = True


def due(options: Mapping[str, Any]) -> datetime | None:
    """Return when a task with these options is to run, None for as soon as possible."""
    if countdown := options.get("countdown"):
        return clock.now() + timedelta(seconds=countdown)
    return _moment(options.get("eta"))


def _moment(time: datetime | str | None) -> datetime | None:
    """Return a time with its zone; a task that is sent again has it as text."""
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    return time and clock.aware(time)


def _with_zones(options: Mapping[str, Any], eta: datetime | None) -> dict[str, datetime]:
    """Return those of the options that are moments, with a zone: one without Celery takes for UTC."""
    moments = {"eta": eta} if options.get("eta") else {}
    if isinstance(expires := options["expires"], datetime | str):
        moments["expires"] = _moment(expires)
    return moments


def in_whole_seconds(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options of a task with a full second to wait, where less is left for RabbitMQ: Celery refuses that."""
    eta = due(options)
    if eta and is_rabbitmq(current_app.conf.broker_url) and timedelta() < eta - clock.now() < timedelta(seconds=1):
        return {**options, "countdown": 1, "eta": None}
    return options


def was_redelivered(request: Context) -> bool:
    """Return whether the broker delivers the message of a task not for the first time."""
    return bool((request.delivery_info or {}).get("redelivered"))


def _task_has_returned() -> bool:
    """Return whether the function of the task at work here has ended, so that Celery sends what follows."""
    return bool(current_task) and current_task.request.get("is_running") is False


def send(task: ProjectTask, *args: Any, on_failure: Callable[[], object] | None = None, **kwargs: Any) -> None:
    """Send the task with these arguments once the transaction is committed; at once where there is none.

    A rollback sends nothing. If the broker does not answer, nothing is raised: `on_failure` is called, to write what
    people see into a row, or without it the task is sent as soon as the broker is back.
    """
    task.apply_async(args, kwargs, after_commit=True, on_failure=on_failure)

"""Sends tasks when the transaction is committed, and handles a broker that is down."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from numbers import Real
from typing import Any

from asgiref.sync import sync_to_async
from celery import current_task
from celery.exceptions import SoftTimeLimitExceeded
from celery.result import AsyncResult
from django.db import transaction
from kombu.exceptions import OperationalError
from kombu.serialization import dumps, loads
from kombu.utils.uuid import uuid

from apps.tasks.broker.parts import fitting
from apps.tasks.broker.priorities import broker_priority
from apps.web import clock

from . import canvas
from .coroutines import call_where_queries_may_run
from .message import Message, back_in_trace, due, in_whole_seconds, moment, trace_headers, with_request_id, with_zones
from .running import RunningTask

logger = logging.getLogger(__name__)

# True after a message of the current commit could not be sent. The others are then not tried, because each attempt
# takes seconds.
_broker_is_away: ContextVar[bool] = ContextVar("_broker_is_away", default=False)


class ProjectTask(RunningTask):
    """The base class of all tasks of the project: sent on commit, and stored if the message would otherwise be lost."""

    # If True, a row remembers the task until it has ended, and the task is sent again if its message gets lost.
    durable = False
    # If False, the task leaves no row when it has failed for good.
    keep_failed = True
    Request = fitting("apps.tasks.worker.failures:RecordingRequest")

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        *,
        after_commit: bool = False,
        on_failure: Callable[[], object] | None = None,
        **options: Any,
    ) -> AsyncResult:
        """Send the task: inside a transaction, once that is committed, else at once. `delay` calls this, too.

        A countdown counts from this call. If it is too long for the broker, the task waits in the database.

        Raises ValueError for a time limit beyond the visibility timeout of Redis, and OperationalError if the broker
        does not answer and nothing was committed. After a commit, nothing is raised: `on_failure` is called or, without
        it, the task is sent later. `after_commit` requests the same behaviour without a transaction.
        """
        # These modules import models, which are not loaded yet when Celery asks for this class.
        from . import outbox, unattended

        # Celery takes these by position, too.
        named = {"link": link, "link_error": link_error, "shadow": shadow}
        options |= {name: value for name, value in named.items() if value is not None}
        self._refuse_to_outlast_a_message(options.get("time_limit"))
        task_id = task_id or uuid()
        if canvas.is_read(self.app, self.name, kwargs or {}, options):
            options.setdefault("ignore_result", False)
        is_retry = bool(options.get("retries"))
        headers = with_request_id(options.get("headers"))
        if not is_retry:
            # The headers may be inherited from the running task, but another task has its own row or none.
            headers.pop("outgoing", None)
        # This call is one sending, however often it is attempted: Redis takes only one message of it.
        options["headers"] = headers | {"sending": uuid()}
        in_transaction = transaction.get_connection().in_atomic_block
        # An exception follows a retry, so the transaction will never be committed.
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
        options |= with_zones({"expires": self.expires, **options}, eta)
        lasting = {**options, "eta": eta} if eta else options
        if (is_farewell or not in_transaction) and not (is_far or is_durable or after_commit):
            try:
                result = self._hand_over(args, kwargs, task_id=task_id, producer=producer, **options)
            except OperationalError as error:
                if not _task_has_returned():
                    raise
                # This is the next task of a chain, the body of a chord, or a callback. Its sender has ended, so nobody
                # would see an error.
                outbox.keep(self._message(args or (), kwargs or {}, task_id, lasting), error=str(error))
                return self._result(task_id, options)
            unattended.raise_limit()
            return result
        message = self._message(args or (), kwargs or {}, task_id, lasting)
        if is_durable:
            message.options["headers"] = {**(message.options.get("headers") or {}), "outgoing": uuid()}
        if is_far or is_durable:
            call_where_queries_may_run(partial(outbox.keep, message, durable=is_durable))
        if not is_far:
            _broker_is_away.set(False)
            publish = partial(self._publish, message, on_failure)
            # Coroutines may not call `on_commit`, so it is avoided outside of a transaction.
            transaction.on_commit(publish) if in_transaction else publish()
        return self._result(task_id, options)

    def _hand_over(self, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None, **options: Any) -> AsyncResult:
        """Send the task as Celery does. If it is eager, that runs it, and it may use the database."""
        hand_over = partial(super().apply_async, args, kwargs, **in_whole_seconds(options))
        with back_in_trace():
            return call_where_queries_may_run(hand_over) if self.app.conf.task_always_eager else hand_over()

    def _result(self, task_id: str, options: Mapping[str, Any]) -> AsyncResult:
        """Return a stand-in for the result of a task that is not sent yet. If no result is kept, `get` returns None."""
        result = self.AsyncResult(task_id)
        result.ignored = options.get("ignore_result", self.ignore_result)
        return result

    async def aapply_async(self, *args: Any, **options: Any) -> AsyncResult:
        """Do what `apply_async` does without blocking the event loop, and in the surrounding transaction if any."""
        return await sync_to_async(self.apply_async)(*args, **options)

    async def adelay(self, *args: Any, **kwargs: Any) -> AsyncResult:
        """Do what `delay` does without blocking the event loop, and in the surrounding transaction if any."""
        return await self.aapply_async(args, kwargs)

    def delay_on_commit(self, *args: Any, **kwargs: Any) -> None:
        """Do what `delay` does, which waits for the commit by itself."""
        self.apply_async(args, kwargs)

    def apply_async_on_commit(self, *args: Any, **kwargs: Any) -> None:
        """Do what `apply_async` does, which waits for the commit by itself."""
        self.apply_async(*args, **kwargs)

    def _refuse_to_outlast_a_message(self, time_limit: float | None) -> None:
        """Raise ValueError for a call whose time limit is so long that Redis would redeliver its message meanwhile.

        `manage.py check` checks the limits of tasks and of the project.
        """
        visibility = self.app.conf.broker_transport_options.get("visibility_timeout")
        if time_limit and visibility and time_limit >= visibility:
            raise ValueError(
                f"{self.name} cannot be given {time_limit} s: Redis delivers it again after {visibility} s, and it "
                "runs twice. Lower the time_limit, or raise visibility_timeout in settings.py."
            )

    def _message(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], task_id: str, options: dict[str, Any]
    ) -> Message:
        """Return the message as it is now, whenever it is published and whatever happens to the arguments meanwhile.

        Raises TypeError if the arguments do not fit the function, and EncodeError if they cannot be sent.
        """
        # A task that is a class has no header.
        if self.typing and (check := getattr(self, "__header__", None)):
            check(*args, **kwargs)
        serializer = options.get("serializer") or self.serializer
        # Celery does the same to the arguments of a task that takes pydantic models.
        if (dump := getattr(self, "_dump_pydantic_arguments", None)) and serializer != "pickle":
            args, kwargs = dump(args, kwargs)
        content_type, encoding, data = dumps((args, kwargs), serializer)
        args, kwargs = loads(data, content_type, encoding, accept=[content_type])
        # A connection is only borrowed, and seconds count from now.
        lasting = {name: options[name] for name in options.keys() - {"connection", "countdown", "publisher"}}
        expires = options.get("expires", self.expires)
        if isinstance(expires, Real):
            expires = clock.now() + timedelta(seconds=float(expires))
        if expires:
            lasting["expires"] = moment(expires)
        if traced := trace_headers():
            lasting["headers"] = {**(lasting.get("headers") or {}), **traced}
        return Message(self.name, task_id, args, kwargs, lasting)

    def _publish(self, message: Message, on_failure: Callable[[], object] | None) -> None:
        """Publish after a commit. Other hooks run after this one, so errors of the broker are not raised."""
        from . import outbox, unattended

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
            # The limit of the task that sends this one.
            if isinstance(error, SoftTimeLimitExceeded):
                raise
        unattended.raise_limit()


class RetryingTask(ProjectTask):
    """A base for tasks that talk to other systems: `@shared_task(base=RetryingTask, autoretry_for=(SomeError,))`.

    The errors named in `autoretry_for` are retried after 1, 2, 4 … seconds, at most a minute. Each wait is shortened at
    random, so that tasks that failed together do not come back together. After six retries, the task has failed.
    """

    max_retries = 6
    retry_backoff = 1
    retry_backoff_max = 60
    retry_jitter = True


def _task_has_returned() -> bool:
    """Return whether the function of the current task has returned, so that Celery is sending what follows."""
    return bool(current_task) and current_task.request.get("is_running") is False


def send(
    task: ProjectTask,
    *args: Any,
    on_failure: Callable[[], object] | None = None,
    priority: int | None = None,
    **kwargs: Any,
) -> None:
    """Send the task with these arguments once the transaction is committed, or at once if there is none.

    A rollback sends nothing. If the broker does not answer, nothing is raised: `on_failure` is called, which can write
    what people see into a row. Without it, the task is sent as soon as the broker is back. The priority is that of
    Django's tasks, from -100 to 100, and a larger one is run sooner.
    """
    options = {} if priority is None else {"priority": broker_priority(priority)}
    task.apply_async(args, kwargs, after_commit=True, on_failure=on_failure, **options)

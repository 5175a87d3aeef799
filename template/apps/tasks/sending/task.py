"""How a task is sent: when the transaction is committed, and with an answer for a broker that is away."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from numbers import Real
from typing import Any

from asgiref.sync import sync_to_async
from celery import current_task
from celery.result import AsyncResult
from django.db import transaction
from kombu.exceptions import OperationalError
from kombu.serialization import dumps, loads
from kombu.utils.uuid import uuid

from apps.tasks.broker.parts import fitting
from apps.web import clock

from . import canvas
from .coroutines import call_where_queries_may_run
from .message import Message, due, in_whole_seconds, moment, with_zones
from .running import RunningTask

logger = logging.getLogger(__name__)

# True once a message of the commit at hand was not sent: the others do not try, which takes seconds for each.
_broker_is_away: ContextVar[bool] = ContextVar("_broker_is_away", default=False)


class ProjectTask(RunningTask):
    """What every task of the project is: sent on commit, and written down where its message would be lost."""

    # True: a row remembers the task from its sending to its end, and it is sent again if its message got lost.
    durable = False
    # False: the task leaves no row when it has failed for good.
    keep_failed = True
    Request = fitting("apps.tasks.worker.failures:RecordingRequest")

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
        options |= with_zones({"expires": self.expires, **options}, eta)
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
        # What Celery does to the arguments of a task that takes models of pydantic.
        if (dump := getattr(self, "_dump_pydantic_arguments", None)) and serializer != "pickle":
            args, kwargs = dump(args, kwargs)
        content_type, encoding, data = dumps((args, kwargs), serializer)
        args, kwargs = loads(data, content_type, encoding, accept=[content_type])
        # A connection is only lent, and seconds count from now.
        lasting = {name: options[name] for name in options.keys() - {"connection", "countdown", "publisher"}}
        expires = options.get("expires", self.expires)
        if isinstance(expires, Real):
            expires = clock.now() + timedelta(seconds=float(expires))
        if expires:
            lasting["expires"] = moment(expires)
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


def _task_has_returned() -> bool:
    """Return whether the function of the task at work here has ended, so that Celery sends what follows."""
    return bool(current_task) and current_task.request.get("is_running") is False


def send(task: ProjectTask, *args: Any, on_failure: Callable[[], object] | None = None, **kwargs: Any) -> None:
    """Send the task with these arguments once the transaction is committed; at once where there is none.

    A rollback sends nothing. If the broker does not answer, nothing is raised: `on_failure` is called, to write what
    people see into a row, or without it the task is sent as soon as the broker is back.
    """
    task.apply_async(args, kwargs, after_commit=True, on_failure=on_failure)

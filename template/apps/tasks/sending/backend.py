"""The backend of Django's task framework that has workers run the tasks.

Each task is registered under its dotted path and is sent as a ProjectTask, so what is promised of those applies: it is
sent on commit, waits in the outbox while the broker is down, and leaves a row if it fails for good.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial, wraps
from typing import Any

from celery import shared_task
from celery.app.task import Context
from celery.exceptions import Ignore, Reject, Retry, TaskRevokedError, TimeLimitExceeded, WorkerLostError
from celery.result import AsyncResult
from celery.signals import task_revoked
from celery.utils.functional import head_from_fun
from django.db import connection, transaction
from django.utils.asyncio import async_unsafe
from kombu.utils.uuid import uuid

from apps.background import execution, records
from apps.background.framework import (
    Task,
    TaskResult,
    TaskResultDoesNotExist,
    TaskResultStatus,
    task_enqueued,
)
from apps.background.immediate import IN_A_COROUTINE, AfterCommitBackend
from apps.background.options import options_of
from apps.background.storable import as_json
from apps.tasks.broker.priorities import broker_priority
from apps.web import clock

from .coroutines import refuse_async_on_gevent
from .task import RetryingTask

# The part of a task's time limit after which it may clean up.
SOFT_PART = 0.9
DEFAULT_QUEUE = "default"

# By dotted path. A backend lives in one thread, so it cannot hold them.
_registered: dict[str, "BackgroundTask"] = {}


class WorkerBackend(AfterCommitBackend):
    """Sends tasks to the broker. A name of a queue other than "default" is the name of a queue of Celery.

    With `"OPTIONS": {"immediate": True}`, tasks run as they do without Celery, which suits tests.
    """

    @property
    def runs_here(self) -> bool:
        """Whether tasks run in the process that enqueues them."""
        return bool(self.options.get("immediate"))

    def validate_task(self, task: Task) -> None:
        """Register the task with Celery, after Django's own checks. Raises InvalidTask if Django refuses it."""
        super().validate_task(task)
        register(task)

    @async_unsafe(IN_A_COROUTINE)
    def enqueue(self, task: Task, args: Any, kwargs: Any) -> TaskResult:
        """Send the task: inside a transaction, once that is committed, else at once.

        While the broker is down, the task is stored and sent later. Nothing is raised then. Raises TypeError if an
        argument cannot be expressed as JSON.
        """
        # This module imports models, which are not loaded yet when tasks are declared.
        from . import outbox

        if self.runs_here:
            return super().enqueue(task, args, kwargs)
        self.validate_task(task)
        result = records.new_result(task, uuid(), args, kwargs)
        if records.is_kept(result):
            # This process may end before the message is on its way.
            records.add(result, send_at=outbox.deadline(None))
        send(result)
        task_enqueued.send(type(self), task_result=result)
        if register(task).app.conf.task_always_eager and records.is_kept(result):
            transaction.on_commit(partial(_refresh, result))
        return result


def _refresh(result: TaskResult) -> None:
    # The task has run by now, and may have deleted its row.
    with suppress(TaskResultDoesNotExist):
        result.refresh()


class BackgroundTask(RetryingTask):
    """A task of Django's framework in a worker. What becomes of it is recorded in the row that `enqueue` wrote."""

    ignore_result = True
    # Django's framework does not compare arguments with the function, and the context is none of them.
    typing = False
    # What is run. Set for each task when it is registered.
    django_task: Any = None

    @property
    def priority(self) -> int | None:
        """The priority in the broker that the task is declared with."""
        return broker_priority(self.django_task.priority)

    @property
    def queue(self) -> str | None:
        """The queue that the task is declared with, or None for the default queue."""
        return _queue_of(self.django_task)

    def apply_async(self, *args: Any, **options: Any) -> AsyncResult:
        """Send the task as ProjectTask does. What the call does not name, as beat's does not, is as declared."""
        # The outbox knows only the options of the call.
        declared = {"priority": self.priority, "queue": self.queue}
        return super().apply_async(*args, **({name: value for name, value in declared.items() if value} | options))

    def run_function(self, args: Any, kwargs: Any) -> Any:
        """Run the function, and record each step. Raises what the function raises, and Retry if it is tried again."""
        request = self.request
        result = request.enqueued_result = self._result_of(request, args, kwargs)
        if result.status == TaskResultStatus.SUCCESSFUL:
            raise Ignore("It has ended already, and its message was delivered again.")
        execution.begin(WorkerBackend, result, request.hostname or "")
        try:
            value = super().run_function(args, kwargs)
        except Retry as retry:
            execution.postpone(result, retry.exc or retry)
            raise
        except Reject as rejection:
            # A retry, for example, that could not be sent: the message is delivered again.
            record = execution.postpone if rejection.requeue else partial(execution.fail, WorkerBackend)
            record(result, rejection.reason if isinstance(rejection.reason, BaseException) else rejection)
            raise
        except Exception as error:
            execution.fail(WorkerBackend, result, error)
            raise
        execution.succeed(WorkerBackend, result, value)
        return value

    def _result_of(self, request: Context, args: Any, kwargs: Any) -> TaskResult:
        """Return the result as its row has it, or a new one, with a row if the task keeps its result.

        A task has no row yet if beat has sent it, or if it failed long ago and somebody sends it again. Raises Ignore
        if the row was deleted.
        """
        is_kept = options_of(self.django_task).keep_result
        try:
            if is_kept:
                return records.load(request.id, self.django_task)
        except TaskResultDoesNotExist:
            if _header(request, "enqueued") == request.id and not _header(request, "failed_earlier"):
                raise Ignore("Its row was deleted: it was cancelled, or has ended long ago.") from None
        result = records.new_result(self.django_task, request.id, list(args), dict(kwargs))
        result.worker_ids.extend([request.hostname or ""] * (request.retries or 0))
        if is_kept:
            records.add(result)
        return result

    def record_end(self, request: Context, error: BaseException, traceback: str = "") -> None:
        """Record that the task has failed for good outside of its function: it was killed, revoked or never started."""
        # This imports models, which are not loaded yet when tasks are declared.
        from .deliveries import WorkerKiller

        # Any other error was raised by the function, and the process that ran it has recorded it.
        is_unseen = isinstance(error, (TaskRevokedError, TimeLimitExceeded, WorkerKiller, WorkerLostError))
        if not (is_unseen or options_of(self.django_task).keep_result):
            return
        # Somebody may have deleted the row.
        with suppress(Ignore):
            result = self._result_of(request, request.args or (), request.kwargs or {})
            if not result.is_finished:
                execution.fail(WorkerBackend, result, error, traceback)


def _header(request: Context, name: str) -> Any:
    # An eager task finds its headers in one place, and a worker in another.
    return request.get(name) or (request.headers or {}).get(name)


def register(task: Task) -> BackgroundTask:
    """Register the task with Celery under its dotted path, unless it is known. Return Celery's task."""
    path = task.module_path
    if path not in _registered:
        wanted = options_of(task)
        options: dict[str, Any] = {
            "durable": wanted.durable,
            "django_task": task,
            # Celery would describe the function below, which takes any arguments.
            "__header__": staticmethod(_check_of_arguments(task)),
        }
        if wanted.retry_for:
            options |= {"autoretry_for": wanted.retry_for, "max_retries": wanted.max_retries}
        if wanted.time_limit:
            options |= {"time_limit": wanted.time_limit, "soft_time_limit": wanted.time_limit * SOFT_PART}

        @wraps(task.func)
        def run(celery_task: BackgroundTask, *args: Any, **kwargs: Any) -> Any:
            refuse_async_on_gevent(task)
            return execution.call(celery_task.request.enqueued_result)

        _registered[path] = shared_task(run, name=path, bind=True, base=BackgroundTask, **options)
    return _registered[path]


def _queue_of(task: Task) -> str | None:
    return None if task.queue_name == DEFAULT_QUEUE else task.queue_name


def _check_of_arguments(task: Task) -> Callable[..., None]:
    """Return what raises TypeError for arguments that do not fit the function, or that `enqueue` would refuse."""
    fit = head_from_fun(task.func, bound=task.takes_context)

    def check(*args: Any, **kwargs: Any) -> None:
        fit(*args, **kwargs)
        as_json("An argument", [args, kwargs])

    return check


def send(result: TaskResult) -> None:
    """Send an enqueued task, now or after the commit. While the broker is down, the outbox stores it."""
    task, celery_task = result.task, register(result.task)
    options: dict[str, Any] = {"priority": broker_priority(task.priority)}
    # A call may also lead a task with a queue of its own to the default queue.
    if queue := _queue_of(task) or (celery_task.queue and celery_task.app.conf.task_default_queue):
        options["queue"] = queue
    if task.run_after:
        options["eta"] = clock.aware(task.run_after)
    if records.is_kept(result):
        # The running task may hand its headers on to others, which have other ids.
        options["headers"] = {"enqueued": result.id}
    celery_task.apply_async(result.args, result.kwargs, task_id=result.id, after_commit=True, **options)
    if records.is_kept(result):
        mark = partial(records.mark_sent, result.id)
        transaction.on_commit(mark) if transaction.get_connection().in_atomic_block else mark()


@task_revoked.connect
def record_revoked(sender: Any, request: Context, **kwargs: Any) -> None:
    """Record that a task was revoked. This runs in the worker's main process, which keeps no database connection."""
    if isinstance(sender, BackgroundTask):
        sender.record_end(request, TaskRevokedError("The task was revoked."))
        connection.close()

"""The rows of enqueued tasks: written by whoever enqueues and runs them, and read by `get_result`."""

import logging
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from time import monotonic
from traceback import format_exception
from typing import Any

from django.conf import settings
from django.db import DatabaseError
from django.utils import timezone
from django.utils.module_loading import import_string

from .framework import (
    InvalidTask,
    InvalidTaskBackend,
    Task,
    TaskError,
    TaskResult,
    TaskResultDoesNotExist,
    TaskResultStatus,
)
from .options import options_of
from .storable import as_json, as_text

logger = logging.getLogger(__name__)

# What is kept of the errors of a task that is tried again and again: the latest ones, and of each traceback as many
# characters of its beginning and of its end.
KEPT_ERRORS = 20
KEPT_CHARACTERS = 10_000

# How often a process deletes the rows that are too old.
PRUNE_SECONDS = 3600.0
_prune_again = 0.0


def new_result(task: Task, task_id: str, args: Any, kwargs: Any) -> TaskResult:
    """Return the result of a task that is about to be enqueued.

    Raises TypeError if an argument cannot be stored as JSON, and InvalidTask if no other process would find the task.
    """
    _refuse_another_name(task)
    return TaskResult(
        task=task,
        id=task_id,
        status=TaskResultStatus.READY,
        enqueued_at=timezone.now(),
        started_at=None,
        last_attempted_at=None,
        finished_at=None,
        args=as_json("An argument", args),
        kwargs=as_json("An argument", kwargs),
        backend=task.backend,
        errors=[],
        worker_ids=[],
    )


def _refuse_another_name(task: Task) -> None:
    # Only now, because the name is not bound yet when the decorator runs.
    try:
        found = import_string(task.module_path)
    except ImportError:
        found = None
    if getattr(found, "func", None) is not task.func:
        name = task.func.__name__
        raise InvalidTask(
            f"{task.module_path} is not this task, and a process that runs it looks there: declare it with @task above "
            f"the function and any other decorator, or bind it to the name of the function: {name} = task({name})."
        )


def is_kept(result: TaskResult) -> bool:
    """Return whether the task has a row."""
    return options_of(result.task).keep_result


def add(result: TaskResult, send_at: datetime | None = None) -> None:
    """Write the row of a task, in the transaction of the caller if there is one.

    With `send_at`, nothing else knows of the task, and it is sent on at this time. The time is a column value.
    """
    from .models import EnqueuedTask

    task = result.task
    EnqueuedTask.objects.create(
        id=result.id,
        path=task.module_path,
        backend=result.backend,
        queue_name=task.queue_name,
        priority=task.priority,
        run_after=task.run_after,
        args=result.args,
        kwargs=result.kwargs,
        status=result.status,
        enqueued_at=result.enqueued_at,
        send_at=send_at,
    )


def mark_sent(task_id: str) -> None:
    """Record that more than the row knows of the task. Nothing is raised, because the task has been sent."""
    from .models import EnqueuedTask

    try:
        EnqueuedTask.objects.filter(pk=task_id).update(send_at=None)
    except DatabaseError as error:
        logger.warning("It is not recorded that task %s was sent, so it may be sent again: %s", task_id, error)


def claim(task_id: str) -> bool:
    """Mark the row of a task as running. Return False if it is not ready, because another process was faster."""
    from .models import EnqueuedTask

    ready = EnqueuedTask.objects.filter(pk=task_id, status=TaskResultStatus.READY)
    return ready.update(status=TaskResultStatus.RUNNING, send_at=None) > 0


def withdraw(task_id: str) -> bool:
    """Delete the row of a task that was only written because the task had to wait. Return whether it was there."""
    from .models import EnqueuedTask

    return EnqueuedTask.objects.filter(pk=task_id, status=TaskResultStatus.READY).delete()[0] > 0


class UnknownTask(TaskResultDoesNotExist):
    """The row of a task is there, but the code does not have the task, or TASKS does not have its queue or backend."""


def load(task_id: str, task: Task | None = None) -> TaskResult:
    """Return the result of the task with this id. Raises TaskResultDoesNotExist if it has no row.

    The task is the one that the row names, or else the one that is given. Without either, raises UnknownTask.
    """
    from .models import EnqueuedTask

    row = EnqueuedTask.objects.filter(pk=task_id).first()
    if row is None:
        raise TaskResultDoesNotExist(task_id)
    return result_of(row, task)


def result_of(row: Any, task: Task | None = None) -> TaskResult:
    """Return the result that a row records, of the task that it names, or else of the one that is given.

    Raises UnknownTask if there is neither.
    """
    try:
        task = import_string(row.path).using(
            priority=row.priority, queue_name=row.queue_name, run_after=row.run_after, backend=row.backend
        )
    # The last one is a function: the task that was made of it has another name.
    except (ImportError, InvalidTask, InvalidTaskBackend, AttributeError) as error:
        if task is None:
            raise UnknownTask(f"{row} is unknown to this code: {error}") from error
    result = TaskResult(
        task=task,
        id=row.pk,
        status=TaskResultStatus(row.status),
        enqueued_at=row.enqueued_at,
        started_at=row.started_at,
        last_attempted_at=row.last_attempted_at,
        finished_at=row.finished_at,
        args=row.args,
        kwargs=row.kwargs,
        backend=row.backend,
        errors=[TaskError(**error) for error in row.errors],
        worker_ids=row.worker_ids,
    )
    object.__setattr__(result, "_return_value", row.return_value)
    return result


def known_results(rows: Iterable[Any]) -> Iterator[TaskResult]:
    """Yield the results that the rows record. A task that the code does not have waits on, and the log names it."""
    for row in rows:
        try:
            yield result_of(row)
        except UnknownTask as error:
            logger.error("A task waits on: %s", error)


def change(result: TaskResult, **values: Any) -> None:
    """Change a result and its row. Nothing is raised: the outcome of the task does not depend on its record."""
    from .models import EnqueuedTask

    # Whoever changes the result is running the task, so nobody has to send it.
    columns = {"send_at": None, **values}
    if "errors" in values:
        columns["errors"] = [_as_json(error) for error in values["errors"]]
    if "_return_value" in values:
        columns["return_value"] = columns.pop("_return_value")
    for name, value in values.items():
        # Results are frozen for those who read them. Django's own backends change them in the same way.
        object.__setattr__(result, name, value)
    if is_kept(result):
        try:
            EnqueuedTask.objects.filter(pk=result.id).update(**columns)
        except DatabaseError as error:
            logger.error("%s[%s] is not recorded as %s: %s", result.task.module_path, result.id, result.status, error)


def close(task_id: str, error: BaseException) -> None:
    """Record that the task with this id has failed, even if the code does not have the task."""
    from .models import EnqueuedTask

    EnqueuedTask.objects.filter(pk=task_id, status=TaskResultStatus.READY).update(
        status=TaskResultStatus.FAILED,
        finished_at=timezone.now(),
        errors=[_as_json(error_of(error))],
    )


def errors_with(result: TaskResult, error: BaseException, traceback: str = "") -> list[TaskError]:
    """Return the latest errors of a task, of which this exception is the last one."""
    return [*result.errors, error_of(error, traceback)][-KEPT_ERRORS:]


def error_of(error: BaseException, traceback: str = "") -> TaskError:
    """Return what is recorded of an exception, with its traceback unless that is given as text."""
    kind = type(error)
    text = as_text(traceback or "".join(format_exception(error)))
    if len(text) > 2 * KEPT_CHARACTERS:
        text = f"{text[:KEPT_CHARACTERS]}\n…\n{text[-KEPT_CHARACTERS:]}"
    return TaskError(exception_class_path=as_text(f"{kind.__module__}.{kind.__qualname__}"), traceback=text)


def _as_json(error: TaskError) -> dict[str, str]:
    return {"exception_class_path": error.exception_class_path, "traceback": error.traceback}


def prune_if_time() -> None:
    """Delete the rows that are too old, unless this process has just done so."""
    global _prune_again
    if monotonic() >= _prune_again:
        _prune_again = monotonic() + PRUNE_SECONDS
        prune()


def prune() -> int:
    """Delete the rows of the tasks that finished too long ago. Return how many there were."""
    from .models import EnqueuedTask

    oldest = timezone.now() - timedelta(days=settings.BACKGROUND_TASKS_KEPT_DAYS)
    return EnqueuedTask.objects.filter(finished_at__lt=oldest).delete()[0]

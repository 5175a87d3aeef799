"""The steps of a task while it runs. Each is recorded, and is followed by Django's signal for it."""

from typing import Any

from django.utils import timezone

from . import records
from .framework import (
    TaskContext,
    TaskResult,
    TaskResultStatus,
    task_finished,
    task_started,
)
from .storable import as_json


def begin(sender: type, result: TaskResult, worker_id: str) -> None:
    """Record that an attempt begins in the process with this id."""
    now = timezone.now()
    records.change(
        result,
        status=TaskResultStatus.RUNNING,
        started_at=result.started_at or now,
        last_attempted_at=now,
        worker_ids=[*result.worker_ids, worker_id],
    )
    task_started.send(sender, task_result=result)


def call(result: TaskResult) -> Any:
    """Call the function of the task, and return what it returns, as JSON. Raises what the function raises.

    Raises TypeError if the return value cannot be stored as JSON.
    """
    context = [TaskContext(task_result=result)] if result.task.takes_context else []
    return as_json("The return value", result.task.call(*context, *result.args, **result.kwargs))


def succeed(sender: type, result: TaskResult, value: Any) -> None:
    """Record that the task has returned this value."""
    records.change(result, status=TaskResultStatus.SUCCESSFUL, finished_at=timezone.now(), _return_value=value)
    task_finished.send(sender, task_result=result)


def fail(sender: type, result: TaskResult, error: BaseException, traceback: str = "") -> None:
    """Record that the task has failed for good. The traceback is that of the exception unless it is given as text."""
    records.change(
        result,
        status=TaskResultStatus.FAILED,
        finished_at=timezone.now(),
        errors=records.errors_with(result, error, traceback),
    )
    task_finished.send(sender, task_result=result)


def postpone(result: TaskResult, error: BaseException) -> None:
    """Record that an attempt has failed and that another one follows."""
    records.change(result, status=TaskResultStatus.READY, errors=records.errors_with(result, error))

"""Runs tasks in the process that enqueues them, after the commit."""

from functools import partial
from typing import Any

from django.db import transaction
from django.utils import timezone
from django.utils.asyncio import async_unsafe
from django.utils.crypto import get_random_string

from . import execution, records
from .framework import BaseTaskBackend, Task, TaskResult, TaskResultStatus, task_enqueued
from .isolation import isolated

IN_A_COROUTINE = "In a coroutine, call `await task.aenqueue(…)` instead of `task.enqueue(…)`."


class AfterCommitBackend(BaseTaskBackend):
    """Runs a task as soon as the transaction is committed, or at once if there is none, before `enqueue` returns.

    Django's own ImmediateBackend runs it inside the transaction. There, a task with a database error would break the
    transaction of the page, a rollback could not take back an e-mail, and events would come in another order than they
    do when another process runs the tasks.

    A task with `run_after` waits in the database until `manage.py run_due_tasks` runs it.
    """

    supports_async_task = True
    supports_defer = True
    supports_get_result = True
    # No task waits for another one.
    supports_priority = True
    # Whether tasks run in the process that enqueues them.
    runs_here = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        self.worker_id = f"{alias}-{get_random_string(12)}"

    @async_unsafe(IN_A_COROUTINE)
    def enqueue(self, task: Task, args: Any, kwargs: Any) -> TaskResult:
        """Run the task after the commit, and return its result.

        Outside of a transaction the task has ended by then. Nothing that the task raises is raised here: the result
        records it, and the log has the traceback.
        """
        self.validate_task(task)
        result = records.new_result(task, get_random_string(32), args, kwargs)
        is_deferred = task.run_after is not None and task.run_after > timezone.now()
        if records.is_kept(result) or is_deferred:
            records.add(result, send_at=timezone.now() if is_deferred else None)
        task_enqueued.send(type(self), task_result=result)
        if not is_deferred:
            transaction.on_commit(partial(self.run, result), robust=True)
        return result

    def get_result(self, result_id: str) -> TaskResult:
        """Return the result with this id. Raises TaskResultDoesNotExist if there is none, or its task is gone."""
        return records.load(result_id)

    def run(self, result: TaskResult) -> None:
        """Run the task now, and record what becomes of it. If it has a row and another process runs it, do nothing."""
        if records.is_kept(result) and not records.claim(result.id):
            return
        execution.begin(type(self), result, self.worker_id)
        try:
            value = isolated(execution.call, result)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            execution.fail(type(self), result, error)
        else:
            execution.succeed(type(self), result, value)
        # The transaction of the page is over, so it does not wait for this.
        records.prune_if_time()


def run_due() -> tuple[int, int]:
    """Run the tasks that wait in the database and are due. Return how many succeeded, and how many failed.

    The rows of tasks that finished too long ago are deleted first. Two processes that do this at once share the work.
    Tasks that were enqueued for other processes, none of which has started them, are run as well.
    """
    from .models import EnqueuedTask

    records.prune()
    counts = {TaskResultStatus.SUCCESSFUL: 0, TaskResultStatus.FAILED: 0, TaskResultStatus.READY: 0}
    ready = EnqueuedTask.objects.filter(status=TaskResultStatus.READY).exclude(run_after__gt=timezone.now())
    for result in records.known_results(ready.order_by("run_after", "enqueued_at")):
        if not records.is_kept(result) and not records.withdraw(result.id):
            continue
        result.task.get_backend().run(result)
        counts[result.status] += 1
    return counts[TaskResultStatus.SUCCESSFUL], counts[TaskResultStatus.FAILED]

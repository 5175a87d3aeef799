"""Counts how often the broker redelivers the message of a task because its worker has died.

On Redis, a living worker that gives a message back says so in it. RabbitMQ tells a worker that was stopped, or has lost
its connection, from one that was killed by nothing. So there, the worker excuses its tasks in the database beforehand.
"""

import logging
from collections.abc import Iterable

from django.conf import settings
from django.db import DatabaseError, connections
from django.db.models import F
from django.utils import timezone

from apps.tasks.models import ReturnedTask

logger = logging.getLogger(__name__)


class WorkerKiller(Exception):
    """A task was given up, because the processes or the workers that ran it have died."""


def count_return(task_id: str, retries: int = 0) -> None:
    """Count a redelivery before this attempt of the task is started, and raise WorkerKiller after too many.

    Each retry begins at nought. Its message also comes back if a worker is stopped that only held it for its countdown,
    so a task that is retried for ever would be given up after some deployments.

    A message is redelivered when the worker itself dies instead of a pool process: in a pool of threads or greenlets,
    where a task that crashes takes all others down with it, or when a container is stopped.
    """
    now, key = timezone.now(), _key(task_id, retries)
    try:
        if ReturnedTask.objects.filter(pk=key, excused=True).update(excused=False):
            return
        returned, _ = ReturnedTask.objects.update_or_create(
            task_id=key,
            defaults={"times": F("times") + 1, "last_returned_at": now},
            create_defaults={"times": 1, "last_returned_at": now},
        )
        returned.refresh_from_db()
    except DatabaseError as error:
        logger.warning("It was not counted that the message of task %s came back: %s", task_id, error)
        return
    if returned.times >= settings.LOST_WORKERS_PER_TASK:
        returned.delete()
        raise WorkerKiller(f"The task was started {returned.times} times, and each time its worker died.")


def excuse(attempts: Iterable[tuple[str, int]]) -> None:
    """Have the next return of these attempts, each a task's id and its retries, not count. Close the connection."""
    now = timezone.now()
    rows = [
        ReturnedTask(task_id=key, times=0, excused=True, last_returned_at=now)
        for key in {_key(task_id, retries) for task_id, retries in attempts}
    ]
    try:
        changed = ["excused", "last_returned_at"]
        ReturnedTask.objects.bulk_create(rows, update_conflicts=True, unique_fields=["task_id"], update_fields=changed)
    except DatabaseError as error:
        logger.warning("The return of %d tasks counts as if their worker had died: %s", len(rows), error)
    finally:
        connections.close_all()


def _key(task_id: str, retries: int) -> str:
    return f"{task_id[:240]}:{retries}" if retries else task_id[:255]

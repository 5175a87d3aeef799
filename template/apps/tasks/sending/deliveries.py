"""Counts how often the broker redelivers the message of a task."""

import logging

from django.conf import settings
from django.db import DatabaseError
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
    now = timezone.now()
    try:
        returned, _ = ReturnedTask.objects.update_or_create(
            task_id=f"{task_id[:240]}:{retries}" if retries else task_id,
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

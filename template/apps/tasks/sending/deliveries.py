"""Messages that the broker delivers once more, and what has to be counted about them."""

import logging

from django.conf import settings
from django.db import DatabaseError
from django.db.models import F
from django.utils import timezone

from apps.tasks.models import ReturnedTask

logger = logging.getLogger(__name__)


class WorkerKiller(Exception):
    """A task was given up, because the processes or the workers that ran it have died."""


def count_return(task_id: str) -> None:
    """Count that a message came back, before its task is started anew; raise WorkerKiller if that is enough.

    It comes back when not a process of the pool dies, but the worker: under a pool of threads or greenlets, where a
    task that crashes takes all others along, or when a container is stopped.
    """
    now = timezone.now()
    try:
        returned, _ = ReturnedTask.objects.update_or_create(
            task_id=task_id,
            defaults={"times": F("times") + 1, "last_returned_at": now},
            create_defaults={"times": 1, "last_returned_at": now},
        )
        returned.refresh_from_db()
    except DatabaseError as error:
        logger.warning("It was not counted that the message of task %s came back: %s", task_id, error)
        return
    if returned.times >= settings.LOST_WORKERS_PER_TASK:
        returned.delete()
        raise WorkerKiller(f"The task was started {returned.times} times, and the worker ended each time before it.")

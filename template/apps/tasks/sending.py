"""The one way to send a task: when the transaction is committed, and with an answer for a broker that is away."""

import logging
from collections.abc import Callable
from typing import Any

from celery import Task
from django.db import transaction
from kombu.exceptions import OperationalError

logger = logging.getLogger(__name__)


def send(task: Task, *args: Any, on_failure: Callable[[], object] | None = None, **kwargs: Any) -> None:
    """Send the task with these arguments once the transaction is committed; at once where there is none.

    A rollback sends nothing. If the broker does not answer, the error is logged and `on_failure` is called instead, to
    write what people see into a row; nothing is raised, because the transaction is committed by then and those who
    asked to be called after it come next.
    """

    def publish() -> None:
        try:
            task.apply_async(args, kwargs)
        except OperationalError as error:
            logger.error("%s was not sent, the broker does not answer: %s", task.name, error)
            if on_failure:
                on_failure()

    transaction.on_commit(publish)


class RetryingTask(Task):
    """A base for tasks that talk to other systems: `@shared_task(base=RetryingTask, autoretry_for=(SomeError,))`.

    The errors named in `autoretry_for` are tried again after 1, 2, 4 … seconds, at most a minute, each shortened at
    random so that tasks that failed together do not come back together; after six retries the task has failed.
    """

    max_retries = 6
    retry_backoff = 1
    retry_backoff_max = 60
    retry_jitter = True

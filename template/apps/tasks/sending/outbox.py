"""Stores tasks until the broker accepts them, until they are due soon, or until they have ended.

Each is a row of OutgoingTask, and `send_waiting` sends those that are due.
"""

import logging
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from celery import Task, current_app, shared_task
from celery.app.task import Context
from celery.exceptions import Retry, SoftTimeLimitExceeded
from celery.signals import task_postrun, task_retry, task_revoked
from celery.states import IGNORED, REJECTED, SUCCESS
from django.conf import settings
from django.db import DatabaseError, connection
from django.db.models import F
from django.utils import timezone
from kombu.exceptions import EncodeError, OperationalError
from kombu.utils.json import dumps, loads
from kombu.utils.uuid import uuid

from apps.tasks.models import OutgoingTask
from apps.web import clock

from .coroutines import call_where_queries_may_run
from .message import Message, in_trace, in_whole_seconds
from .unattended import raise_limit

logger = logging.getLogger(__name__)

BATCH = 100
# For this long, nobody else sends a row that a process has begun to send. A broker that is down is noticed earlier.
CLAIM = timedelta(minutes=1)


# Storing --------------------------------------------------------------------


def longest_wait() -> timedelta | None:
    """Return how long a worker may hold a message before it is due, or None for no limit.

    Redis gives a message to another worker after the visibility timeout, although the first one still holds it. Half of
    that timeout is for waiting, and the other half for running.
    """
    seconds = current_app.conf.broker_transport_options.get("visibility_timeout")
    return timedelta(seconds=seconds / 2) if seconds else None


def is_far(eta: datetime | None) -> bool:
    """Return whether a task is due so late that the broker cannot keep it until then."""
    wait = longest_wait()
    return bool(eta and wait and eta - clock.now() > wait)


def keep(message: Message, *, durable: bool = False, error: str = "") -> None:
    """Store the message, in the transaction of the caller if there is one.

    Raises TypeError if the message cannot be expressed as JSON.
    """
    eta = message.options.get("eta")
    send_at = deadline(eta) if durable else clock.at_once()
    if is_far(eta):
        send_at = clock.not_before(eta - longest_wait())
    text = dumps({"args": message.args, "kwargs": message.kwargs, "options": message.options})
    identity = {"pk": message.row_id} if durable else {}
    OutgoingTask.objects.create(
        **identity,
        name=message.name,
        task_id=message.task_id,
        message=text,
        durable=durable,
        send_at=send_at,
        error=error,
    )


def has(task_id: str) -> bool:
    """Return whether a message of the task with this id is stored."""
    return OutgoingTask.objects.filter(task_id=task_id).exists()


def keep_unsent(message: Message, error: Exception) -> None:
    """Store a message that the broker did not accept. Raises nothing, because the caller runs after a commit."""
    try:
        call_where_queries_may_run(partial(_keep_unsent, message, error))
    except (DatabaseError, EncodeError, TypeError):
        logger.exception("%s[%s] is lost, it could not be written down either", message.name, message.task_id)


def _keep_unsent(message: Message, error: Exception) -> None:
    if not (message.row_id and release(message.row_id, error)):
        keep(message, error=str(error))


def deadline(eta: datetime | None, attempts: int = 0) -> datetime:
    """Return when a durable task that has not ended is sent again, as a column value.

    The wait doubles with each attempt, up to 64 times the first wait.
    """
    seconds = settings.DURABLE_TASK_RESEND_SECONDS * 2 ** min(attempts, 6)
    now = clock.now()
    return clock.not_before(max(eta or now, now) + timedelta(seconds=seconds))


# Sending --------------------------------------------------------------------


@shared_task
def send_waiting() -> None:
    """Send the tasks that are due, until there are none left or the broker is down.

    Then send what was enqueued by processes that ended before they sent it. Two processes that do this at once share
    the work.
    """
    # It declares tasks, and needs what this module contains.
    from .stored import send_stored

    while rows := OutgoingTask.objects.filter(send_at__lte=timezone.now()).order_by("send_at")[:BATCH]:
        for row in rows:
            if not send_now(row):
                return
    send_stored()


def send_now(row: OutgoingTask) -> bool:
    """Send the task of a row, unless another process does so. Return False if the broker is down."""
    next_time = deadline(None, row.attempts + 1) if row.durable else clock.not_before(clock.now() + CLAIM)
    mine = OutgoingTask.objects.filter(pk=row.pk, send_at=row.send_at)
    if not mine.update(send_at=next_time, attempts=F("attempts") + 1, error=""):
        return True
    try:
        _publish(row)
    except OperationalError as error:
        logger.warning("%s[%s] waits on, the broker does not take it: %s", row.name, row.task_id, error)
        release(row.pk, error)
        return False
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:
        # Something is wrong with this task, such as a queue that does not exist. The others must not wait for it.
        logger.exception("%s[%s] waits on, it cannot be sent", row.name, row.task_id)
        later = clock.not_before(clock.now() + CLAIM * 2 ** min(row.attempts, 10))
        OutgoingTask.objects.filter(pk=row.pk).update(error=str(error), send_at=later)
    raise_limit()
    return True


def _publish(row: OutgoingTask) -> None:
    """Send the task of a row, unless it has expired."""
    call = loads(row.message)
    # Groups and chords add their tasks to the parent themselves.
    options = call["options"] | {"add_to_parent": False}
    if row.durable and not row.error:
        # Its message was taken and got lost, so this is another sending and not another attempt.
        options["headers"] = {**options["headers"], "sending": uuid()}
    if (expires := options.get("expires")) and clock.aware(expires) < clock.now():
        logger.info("%s[%s] is not sent any more, it expired at %s", row.name, row.task_id, expires)
        row.delete()
        return
    # The task's own method would store another row, and the task may have been renamed.
    with in_trace(row.name, options.get("headers") or {}):
        current_app.send_task(row.name, call["args"], call["kwargs"], task_id=row.task_id, **in_whole_seconds(options))
    if not row.durable:
        row.delete()
    elif eta := options.get("eta"):
        OutgoingTask.objects.filter(pk=row.pk).update(send_at=deadline(eta, row.attempts + 1))


def release(row_id: object, error: Exception) -> bool:
    """Have the row sent as soon as the broker is back. Return whether the row exists."""
    return OutgoingTask.objects.filter(pk=row_id).update(send_at=clock.at_once(), error=str(error)) > 0


# Durable tasks --------------------------------------------------------------


def is_open(row_id: str) -> bool:
    """Return whether the durable task of this row has not ended yet."""
    return OutgoingTask.objects.filter(pk=row_id).exists()


def forget(row_id: str | None) -> None:
    """Delete the row of a durable task, because the task has ended. Without an id, do nothing."""
    if row_id:
        OutgoingTask.objects.filter(pk=row_id).delete()


@task_postrun.connect
def forget_done(task: Task, state: str, retval: Any, **kwargs: Any) -> None:
    """Delete the row of a task that has succeeded or ignored itself, before its message is acknowledged.

    A failure is recorded first.
    """
    if state in (SUCCESS, IGNORED) or (state == REJECTED and not retval.requeue):
        forget(task.request.get("outgoing"))


@task_revoked.connect
def forget_revoked(request: Context, **kwargs: Any) -> None:
    """Delete the row of a revoked task. This runs in the worker's main process, which keeps no database connection."""
    if row_id := request.get("outgoing"):
        forget(row_id)
        connection.close()


@task_retry.connect
def expect_retry(request: Context, reason: Retry | None = None, **kwargs: Any) -> None:
    """Set when a retried task is due. This happens here because a transaction around retry() is rolled back."""
    row_id = request.get("outgoing")
    if row_id and reason:
        wait = reason.when
        eta = clock.now() + timedelta(seconds=wait) if isinstance(wait, int | float) else wait and clock.aware(wait)
        OutgoingTask.objects.filter(pk=row_id).update(send_at=deadline(eta))

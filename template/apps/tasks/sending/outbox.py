"""Tasks that are written down: until the broker takes them, until they are due soon, or until they have ended.

Each is a row of OutgoingTask, and `send_waiting` sends those whose time has come.
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

from apps.tasks.models import OutgoingTask
from apps.web import clock

from .coroutines import call_where_queries_may_run
from .message import Message, in_whole_seconds

logger = logging.getLogger(__name__)

BATCH = 100
# So long nobody else sends a row that somebody has begun to send; a broker that is away is noticed earlier.
CLAIM = timedelta(minutes=1)


# Writing down ---------------------------------------------------------------


def longest_wait() -> timedelta | None:
    """Return how long a worker may hold a message before its time; None for as long as it likes.

    Redis gives a message to another worker when its visibility timeout is over, although the first one still holds it.
    Half of that is for waiting, and the other half for running.
    """
    seconds = current_app.conf.broker_transport_options.get("visibility_timeout")
    return timedelta(seconds=seconds / 2) if seconds else None


def is_far(eta: datetime | None) -> bool:
    """Return whether a task is due so late that the broker cannot keep it until then."""
    wait = longest_wait()
    return bool(eta and wait and eta - clock.now() > wait)


def keep(message: Message, *, durable: bool = False, error: str = "") -> None:
    """Write the message down, in the transaction of the caller if there is one.

    Raises TypeError if the message cannot be said in JSON.
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


def keep_unsent(message: Message, error: Exception) -> None:
    """Have a message sent later that the broker did not take; raises nothing, as the caller is after a commit."""
    try:
        call_where_queries_may_run(partial(_keep_unsent, message, error))
    except (DatabaseError, EncodeError, TypeError):
        logger.exception("%s[%s] is lost, it could not be written down either", message.name, message.task_id)


def _keep_unsent(message: Message, error: Exception) -> None:
    if not (message.row_id and release(message.row_id, error)):
        keep(message, error=str(error))


def deadline(eta: datetime | None, attempts: int = 0) -> datetime:
    """Return when a durable task that has not ended is sent again, as a column takes it.

    Each time it waits twice as long, up to 64 times.
    """
    seconds = settings.DURABLE_TASK_RESEND_SECONDS * 2 ** min(attempts, 6)
    now = clock.now()
    return clock.not_before(max(eta or now, now) + timedelta(seconds=seconds))


# Sending --------------------------------------------------------------------


@shared_task
def send_waiting() -> None:
    """Send the tasks whose time has come, until there are none or the broker is away. Two at once share the work."""
    while rows := OutgoingTask.objects.filter(send_at__lte=timezone.now()).order_by("send_at")[:BATCH]:
        for row in rows:
            if not send_now(row):
                return


def send_now(row: OutgoingTask) -> bool:
    """Send the task of a row, unless somebody else does so; return False if the broker is away."""
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
        # A mistake in this one, such as a queue that does not exist: the others are not to wait for it.
        logger.exception("%s[%s] waits on, it cannot be sent", row.name, row.task_id)
        later = clock.not_before(clock.now() + CLAIM * 2 ** min(row.attempts, 10))
        OutgoingTask.objects.filter(pk=row.pk).update(error=str(error), send_at=later)
    return True


def _publish(row: OutgoingTask) -> None:
    """Send the task of a row, unless it has expired."""
    call = loads(row.message)
    # Groups and chords say this themselves.
    options = call["options"] | {"add_to_parent": False}
    if (expires := options.get("expires")) and clock.aware(expires) < clock.now():
        logger.info("%s[%s] is not sent any more, it expired at %s", row.name, row.task_id, expires)
        row.delete()
        return
    # Not by the task's own method, which would write another row; and a task may have another name by now.
    current_app.send_task(row.name, call["args"], call["kwargs"], task_id=row.task_id, **in_whole_seconds(options))
    if not row.durable:
        row.delete()
    elif eta := options.get("eta"):
        OutgoingTask.objects.filter(pk=row.pk).update(send_at=deadline(eta, row.attempts + 1))


def release(row_id: object, error: Exception) -> bool:
    """Have the row sent as soon as the broker is back; return whether it is there."""
    return OutgoingTask.objects.filter(pk=row_id).update(send_at=clock.at_once(), error=str(error)) > 0


# Durable tasks --------------------------------------------------------------


def is_open(row_id: str) -> bool:
    """Return whether the durable task of this row has not ended yet."""
    return OutgoingTask.objects.filter(pk=row_id).exists()


def forget(row_id: str | None) -> None:
    """Delete the row of a durable task, because the task has ended; without an id do nothing."""
    if row_id:
        OutgoingTask.objects.filter(pk=row_id).delete()


@task_postrun.connect
def forget_done(task: Task, state: str, retval: Any, **kwargs: Any) -> None:
    """Forget a task that has succeeded or dropped itself, before its message goes. A failure is kept first."""
    if state in (SUCCESS, IGNORED) or (state == REJECTED and not retval.requeue):
        forget(task.request.get("outgoing"))


@task_revoked.connect
def forget_revoked(request: Context, **kwargs: Any) -> None:
    """Forget a task that somebody has stopped; in the worker's main process, which keeps no connection."""
    if row_id := request.get("outgoing"):
        forget(row_id)
        connection.close()


@task_retry.connect
def expect_retry(request: Context, reason: Retry | None = None, **kwargs: Any) -> None:
    """Give a task that is tried again its time: here, since a transaction around retry() is rolled back."""
    row_id = request.get("outgoing")
    if row_id and reason:
        wait = reason.when
        eta = clock.now() + timedelta(seconds=wait) if isinstance(wait, int | float) else wait and clock.aware(wait)
        OutgoingTask.objects.filter(pk=row_id).update(send_at=deadline(eta))

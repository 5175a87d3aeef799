"""Sends the tasks of Django's framework of which nothing but their row knows."""

from django.db import transaction
from django.utils import timezone

from apps.background import records
from apps.background.framework import TaskResultStatus
from apps.background.models import EnqueuedTask

from . import outbox
from .backend import send


def send_stored() -> int:
    """Send the tasks of which nothing but their row knows. Return how many were sent.

    They were enqueued to run later while there was no worker, or by a process that ended before it sent them. A task
    that the code does not have waits on, and the log names it.
    """
    sent = 0
    unsent = EnqueuedTask.objects.filter(send_at__lte=timezone.now(), status=TaskResultStatus.READY)
    for row in unsent:
        if outbox.has(row.pk):
            records.mark_sent(row.pk)
            continue
        with transaction.atomic():
            is_mine = unsent.filter(pk=row.pk).update(send_at=outbox.deadline(None))
            for result in records.known_results([row] if is_mine else ()):
                if not records.is_kept(result):
                    records.withdraw(result.id)
                send(result)
                sent += 1
    return sent

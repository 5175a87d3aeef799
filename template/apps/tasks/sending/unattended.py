"""Finds queues that hold messages but have no worker: a mistyped name, or a worker that was never started.

Celery creates a queue for every name that a task is sent to, so such a message is accepted and waits forever. RabbitMQ
reports on a queue only if it is asked by name, so a name that is not in the settings is recorded when it is used.
"""

import logging
from collections.abc import Iterable
from contextvars import ContextVar
from datetime import timedelta
from functools import partial
from threading import Thread
from time import monotonic
from typing import Any

from celery import current_app
from celery.exceptions import SoftTimeLimitExceeded
from celery.signals import before_task_publish
from django.db import connections, transaction
from django.utils import timezone
from kombu import Queue

from apps.tasks.broker.connection import Connection
from apps.tasks.broker.options import answer_limits
from apps.tasks.broker.queues import configured_queues, queue_state, remedy
from apps.tasks.models import UnknownQueue

from .coroutines import call_where_queries_may_run

logger = logging.getLogger(__name__)

REPLY_SECONDS = 1.5
# The time between two checks of beat. If two checks in a row find a queue, its worker is not just restarting.
LOOK_SECONDS = 30.0
# How often a process records the same name, and how long the name of an empty queue is remembered.
NOTE_SECONDS = 3600.0
REMEMBERED = timedelta(days=7)

_note_again: dict[str, float] = {}
_limit: ContextVar[SoftTimeLimitExceeded | None] = ContextVar("_limit", default=None)


@before_task_publish.connect
def note(declare: Iterable[object] | None = None, **kwargs: Any) -> None:
    """Warn of a task that goes to a queue that is not in the settings, and remember the queue."""
    names = {queue.name for queue in declare or () if isinstance(queue, Queue)}
    for name in names - configured_queues():
        if monotonic() < _note_again.get(name, 0.0):
            continue
        logger.warning("A task goes to the queue %s, which the settings do not have. %s", name, remedy(name))
        # Inside a transaction, a failed query would cost the caller the whole transaction.
        is_within = transaction.get_connection().in_atomic_block
        call = transaction.on_commit if is_within else call_where_queries_may_run
        try:
            call(partial(_remember, name))
        except SoftTimeLimitExceeded as limit:
            _limit.set(limit)


def raise_limit() -> None:
    """Raise SoftTimeLimitExceeded if the limit of the running task was reached in `note`, where Celery swallows it."""
    if limit := _limit.get():
        _limit.set(None)
        raise limit


def _remember(name: str) -> None:
    try:
        UnknownQueue.objects.update_or_create(name=name, defaults={"sent_at": timezone.now()})
    except SoftTimeLimitExceeded:
        raise
    # The task is sent anyway.
    except Exception as error:
        logger.warning("The queue %s is not remembered: %r", name, error)
    else:
        _note_again[name] = monotonic() + NOTE_SECONDS


def known_queues() -> list[str]:
    """Return the queues of the settings, and those of other names that tasks were sent to."""
    return sorted({*configured_queues(), *UnknownQueue.objects.values_list("name", flat=True)})


def quick_connection() -> Connection:
    """Return a connection for questions, which gives up soon if the broker does not answer."""
    limits = answer_limits(current_app.conf.broker_url, REPLY_SECONDS)
    return current_app.connection_for_read(connect_timeout=REPLY_SECONDS, transport_options=limits)


def taken_queues(connection: Connection) -> list[str]:
    """Return the queues that the workers who answer take from, once for each worker."""
    inspect = current_app.control.inspect(timeout=REPLY_SECONDS, connection=connection)
    answers = (inspect.active_queues() or {}).values()
    return [queue["name"] for queues in answers if isinstance(queues, list) for queue in queues]


def unattended() -> dict[str, int]:
    """Return the queues that hold messages but have no worker, with the number of messages in each.

    On Redis the workers are asked, so a busy worker with the pool solo does not answer and does not count. Raises an
    error of the broker or of the database if one of them does not answer.
    """
    names = known_queues()
    with quick_connection() as connection:
        states = {name: queue_state(connection, name) for name in names}
        found = {name: messages for name, (messages, consumers) in states.items() if messages and not consumers}
        if any(states[name][1] is None for name in found):
            taken = taken_queues(connection)
            found = {name: messages for name, messages in found.items() if name not in taken}
    return found


class Watch:
    """The checks by the beat that holds the lease, so that one process logs a queue without a worker, and only once."""

    def __init__(self) -> None:
        self._next_look = monotonic() + LOOK_SECONDS
        self._seen = self._told = frozenset[str]()
        self._failed = False
        self._look_under_way: Thread | None = None

    def go_on(self) -> None:
        """Check if it is time, in a thread, because beat must not wait for workers.

        If a slow broker makes a check last longer, the next one waits: two at a time would count as two in a row.
        """
        if monotonic() < self._next_look or (self._look_under_way and self._look_under_way.is_alive()):
            return
        self._next_look = monotonic() + LOOK_SECONDS
        self._look_under_way = Thread(target=self._look, daemon=True)
        self._look_under_way.start()

    def _look(self) -> None:
        try:
            found = unattended()
            self.report(found)
            UnknownQueue.objects.filter(sent_at__lt=timezone.now() - REMEMBERED).exclude(name__in=found).delete()
            self._failed = False
        except Exception as error:
            if not self._failed:
                logger.warning("The queues could not be looked at: %r", error)
            self._failed = True
        finally:
            connections.close_all()

    def report(self, found: dict[str, int]) -> None:
        """Log each queue that two checks in a row have found, and log again when that is over."""
        lasting = found.keys() & self._seen
        for name in sorted(lasting - self._told):
            logger.error("No worker takes from the queue %s (%d waiting). %s", name, found[name], remedy(name))
        for name in sorted(self._told - lasting):
            logger.info("The queue %s is empty, or a worker takes from it.", name)
        self._seen, self._told = frozenset(found), frozenset(lasting)

"""Queues that hold messages and that no worker takes from: a name with a typo, or a worker that was never started.

Celery makes a queue of every name that is sent to, so such a message is accepted, and waits for ever. Looked at are the
queues of the settings, those that a process of this project has sent to, and on Redis whatever else is there.

A queue without a worker is no fault yet, since in a deploy each is so for a moment. It is one after a minute, which
the row of the queue measures: each look at /health/, and that of beat twice a minute, writes down what it finds.
"""

import logging
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from threading import Thread
from time import monotonic
from typing import Any, NamedTuple

from celery import current_app
from celery.signals import before_task_publish
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connections, transaction
from django.utils import timezone
from kombu import Connection, Queue
from kombu.transport import virtual

from .broker import answer_limits
from .models import SeenQueue
from .queues import configured_queues, remedy

logger = logging.getLogger(__name__)

REPLY_SECONDS = 1.5
# Longer than a worker needs to start again.
PATIENCE = timedelta(seconds=60)
# From one look of beat to the next; its first one comes so long after its start, when workers are there as well.
LOOK_SECONDS = 30.0
# How often a process warns of the same queue.
WARN_SECONDS = 3600.0
# So long an empty queue is remembered that the settings do not know.
REMEMBERED = timedelta(days=1)


@dataclass(frozen=True)
class Unattended:
    """A queue with messages and without a worker, and since when that is known."""

    name: str
    messages: int
    since: datetime

    @property
    def lasts(self) -> bool:
        """Whether it is so for longer than a deploy explains."""
        return timezone.now() - self.since > PATIENCE

    def __str__(self) -> str:
        return f"{self.name} ({self.messages} waiting, for {(timezone.now() - self.since).total_seconds():.0f} s)"


# Sending --------------------------------------------------------------------

_warned: dict[str, float] = {}


@before_task_publish.connect
def note_sending(declare: Iterable[object] | None = None, **kwargs: Any) -> None:
    """Warn of a task that goes to a queue that the settings do not know, and remember the queue."""
    for queue in declare or ():
        if isinstance(queue, Queue) and queue.name not in configured_queues():
            _note(queue.name)


def _note(name: str) -> None:
    if monotonic() < _warned.get(name, 0.0):
        return
    _warned[name] = monotonic() + WARN_SECONDS
    logger.warning("A task is sent to the queue %r, which CELERY_TASK_QUEUES does not name. %s", name, remedy(name))
    try:
        # A failed query would cost the transaction of the caller.
        transaction.on_commit(partial(_remember, name), robust=True)
    except SynchronousOnlyOperation:
        # The caller is a coroutine, from which Django takes no query.
        Thread(target=_remember_in_thread, args=(name,)).start()
    # What is sent must not fail because it cannot be remembered.
    except Exception as error:
        logger.warning("The queue %r is not remembered: %s", name, error)


def _remember(name: str) -> None:
    SeenQueue.objects.update_or_create(name=name, defaults={"seen_at": timezone.now()})


def _remember_in_thread(name: str) -> None:
    try:
        _remember(name)
    finally:
        connections.close_all()


# Looking --------------------------------------------------------------------


class QueueState(NamedTuple):
    """How many messages wait in a queue, and how many consumers it has; None where only workers can tell."""

    messages: int
    consumers: int | None


def queue_state(connection: Connection, name: str) -> QueueState:
    """Return what the broker knows of a queue; nothing waits in one that is not there."""
    # A channel for each, because RabbitMQ closes it when there is no such queue, as before the first worker.
    channel = connection.channel()
    if isinstance(channel, virtual.Channel):
        # Where a project's keys have a prefix of their own, kombu finds no queue on Redis to declare.
        return QueueState(channel._size(name), None)
    try:
        declared = channel.queue_declare(name, passive=True)
    except connection.channel_errors:
        return QueueState(0, 0)
    channel.close()
    return QueueState(declared.message_count, declared.consumer_count)


def look(*, discover: bool = False) -> list[Unattended]:
    """Return the queues that hold messages and that no worker takes from, and write down since when.

    With `discover` queues are looked for on Redis that no process of this project has sent to. That goes through all
    keys of the database, a thousand at a time.

    Raises an error of the broker or of the database if one does not answer.
    """
    rows = {row.name: row for row in SeenQueue.objects.all()}
    names = {*configured_queues(), *current_app.amqp.queues, *rows}
    limits = answer_limits(current_app.conf.broker_url, REPLY_SECONDS)
    with current_app.connection_for_read(connect_timeout=REPLY_SECONDS, transport_options=limits) as connection:
        if discover:
            names |= _queues_on_redis(connection)
        states = {name: queue_state(connection, name) for name in sorted(names)}
        alone = {name: state.messages for name, state in states.items() if state.messages and not state.consumers}
        if ask := {name for name in alone if states[name].consumers is None}:
            for name in _queues_of_workers(connection, ask):
                alone.pop(name, None)
    return _write_down(alone, rows)


def _write_down(alone: dict[str, int], rows: dict[str, SeenQueue]) -> list[Unattended]:
    now = timezone.now()
    attended = [row.pk for row in rows.values() if row.unattended_since and row.name not in alone]
    if attended:
        SeenQueue.objects.filter(pk__in=attended).update(unattended_since=None, seen_at=now)
    found = []
    for name, messages in alone.items():
        row = rows.get(name) or SeenQueue.objects.get_or_create(name=name, defaults={"seen_at": now})[0]
        if not row.unattended_since:
            row.unattended_since = now
            SeenQueue.objects.filter(pk=row.pk, unattended_since=None).update(unattended_since=now)
        found.append(Unattended(name, messages, row.unattended_since))
    return found


class _Enough(Exception):
    """What was asked is answered."""


def _queues_of_workers(connection: Connection, wanted: set[str]) -> set[str]:
    """Return from which queues workers take, as they say, until all that are wanted are among them.

    So the answer is quick where each queue has a worker, however many there are; only a queue without one takes all
    the time to hear.
    """
    found: set[str] = set()
    deadline = monotonic() + REPLY_SECONDS

    def hear(reply: dict[str, Any]) -> None:
        found.update(queue["name"] for queues in reply.values() if isinstance(queues, list) for queue in queues)
        if wanted <= found or monotonic() > deadline:
            raise _Enough

    with suppress(_Enough):
        current_app.control.inspect(timeout=REPLY_SECONDS, connection=connection, callback=hear).active_queues()
    return found


def _queues_on_redis(connection: Connection) -> set[str]:
    """Return the queues that anybody has declared on this Redis, but for those of answers and events."""
    if connection.transport.driver_type != "redis":
        return set()
    channel = connection.default_channel
    start = channel.global_keyprefix + channel.keyprefix_queue % ""
    pattern = re.sub(r"[\\*?\[\]]", r"\\\g<0>", start) + "*"
    with channel.conn_or_acquire() as client:
        # Not KEYS, during which Redis answers nobody.
        keys = {key.decode() if isinstance(key, bytes) else key for key in client.scan_iter(match=pattern, count=1000)}
    exchanges = {key.removeprefix(start) for key in keys}
    own = {exchange for exchange in exchanges if not exchange.endswith(".pidbox")} - {current_app.conf.event_exchange}
    return {queue for exchange in own for *_, queue in channel.get_table(exchange) if queue}


# Beat -----------------------------------------------------------------------


class Watch:
    """The regular look of the beat that holds the lease, so that it is one process that writes to the log."""

    def __init__(self) -> None:
        self._next_look = monotonic() + LOOK_SECONDS
        self._thread: Thread | None = None
        self._told: dict[str, float] = {}

    def go_on(self) -> None:
        """Look if it is time, in a thread: beat does not wait for workers."""
        if monotonic() < self._next_look or (self._thread and self._thread.is_alive()):
            return
        self._next_look = monotonic() + LOOK_SECONDS
        self._thread = Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        try:
            self.report(look(discover=True))
            forget_unused()
        except Exception as error:
            logger.warning("The queues could not be looked at: %r", error)
        finally:
            connections.close_all()

    def report(self, found: list[Unattended]) -> None:
        """Log each queue that is without a worker for long, every hour, and once when that is over."""
        lasting = {queue.name: queue for queue in found if queue.lasts}
        for name, queue in lasting.items():
            if monotonic() >= self._told.get(name, 0.0):
                self._told[name] = monotonic() + WARN_SECONDS
                logger.error("No worker takes from the queue %s. %s", queue, remedy(name))
        for name in self._told.keys() - lasting.keys():
            del self._told[name]
            logger.info("The queue %r is empty, or a worker takes from it.", name)


def forget_unused() -> None:
    """Forget the queues that were empty or had a worker for a day."""
    SeenQueue.objects.filter(unattended_since=None, seen_at__lt=timezone.now() - REMEMBERED).delete()

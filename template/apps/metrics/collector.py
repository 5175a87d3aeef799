"""The state of the queues, the outbox and beat, read whenever Prometheus asks.

Nothing is kept between two questions, so each process of the web server gives the same answer. A broker or a database
that is down, or that hangs, is an answer, too: `broker_up 0`.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial

from celery import current_app
from django.db import DatabaseError
from django.db.models import Min
from django.utils import timezone
from django_celery_beat.models import PeriodicTask
from prometheus_client.core import GaugeMetricFamily, Metric

from apps.tasks.beat.lease import seconds_since_renewal
from apps.tasks.broker.connection import Connection
from apps.tasks.broker.options import broker_error, is_answer
from apps.tasks.broker.queues import configured_queues, queue_state
from apps.tasks.models import FailedTask, OutgoingTask
from apps.tasks.sending.unattended import known_queues, quick_connection, taken_queues
from apps.web import clock
from apps.web.health import answers

from .waits import WAITS_SINCE

# By itself, Prometheus waits ten seconds for an answer.
TIMEOUT_SECONDS = 8.0

logger = logging.getLogger(__name__)


class StateCollector:
    """Collects what can be read in time."""

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics. Raises nothing, because a part that is down must not hide the others."""
        found = answers({f"metrics-{name}": partial(_read, name) for name in READERS}, TIMEOUT_SECONDS)
        for name in READERS:
            metrics = found.get(f"metrics-{name}")
            yield from [_up(name, False)] if metrics is None else metrics


def _read(name: str) -> list[Metric] | None:
    try:
        return READERS[name]()
    # Each driver has errors of its own, and all of them mean the same here.
    except Exception as error:
        logger.warning("The metrics of the %s cannot be read: %s", name, type(error).__name__)
        return None


def _up(name: str, value: bool) -> Metric:
    return GaugeMetricFamily(f"{name}_up", f"Whether the {name} can be used.", value=value)


# The broker -----------------------------------------------------------------


def read_broker() -> list[Metric]:
    """Return how many messages and consumers each queue has, and how long its oldest message has been waiting."""
    if current_app.conf.task_always_eager:
        return []
    error = broker_error()
    if error and not is_answer(error):
        return [_up("broker", False)]
    messages = GaugeMetricFamily("queue_messages", "Messages that wait in the queue.", labels=["queue"])
    oldest = GaugeMetricFamily(
        "queue_oldest_seconds", "How long the oldest message has been waiting, on Redis.", labels=["queue"]
    )
    consumers = GaugeMetricFamily("queue_consumers", "Workers that take from the queue.", labels=["queue"])
    with quick_connection() as connection:
        states = {name: queue_state(connection, name) for name in _queues()}
        taken = taken_queues(connection) if any(count is None for _, count in states.values()) else []
        for name, (length, count) in states.items():
            messages.add_metric([name], length)
            consumers.add_metric([name], taken.count(name) if count is None else count)
            if (seconds := oldest_seconds(connection, name)) is not None:
                oldest.add_metric([name], seconds)
    return [_up("broker", error is None), messages, oldest, consumers]


def _queues() -> list[str]:
    try:
        return known_queues()
    except DatabaseError:
        return sorted(configured_queues())


def oldest_seconds(connection: Connection, name: str) -> float | None:
    """Return how long the oldest message of a queue has been waiting: 0 if there is none, None if nobody knows.

    RabbitMQ shows no message without delivering it, which it counts. On Redis, the user needs the right +lindex.
    """
    if connection.transport.driver_type != "redis":
        return None
    from redis.exceptions import NoPermissionError

    channel = connection.default_channel
    try:
        with channel.conn_or_acquire() as client:
            # Each priority is a list, and its last item is the next one to be taken. Kombu does not prefix this key.
            keys = [channel._q_for_pri(name, priority) for priority in channel.priority_steps]
            heads = [client.lindex(f"{channel.global_keyprefix}{key}", -1) for key in keys]
    except NoPermissionError:
        return None
    if not any(heads):
        return 0.0
    since = [moment for head in heads if head and (moment := _waits_since(head))]
    return max(0.0, time.time() - min(since)) if since else None


def _waits_since(message: bytes) -> float | None:
    with suppress(AttributeError, TypeError, ValueError):
        return json.loads(message)["headers"].get(WAITS_SINCE)
    return None


# The database ---------------------------------------------------------------


def read_database() -> list[Metric]:
    """Return how many tasks wait in the outbox or have failed, and how long beat has been silent."""
    overdue = OutgoingTask.objects.filter(send_at__lte=timezone.now()).aggregate(first=Min("send_at"))["first"]
    silence = seconds_since_renewal()
    values = {
        "outbox_tasks": ("Tasks in the outbox.", OutgoingTask.objects.count()),
        "outbox_overdue_seconds": (
            "How long ago the outbox should have sent the task that it should have sent first.",
            (clock.now() - clock.passed(overdue)).total_seconds() if overdue else 0.0,
        ),
        "failed_tasks": ("Tasks that have failed for good, and were not sent again.", FailedTask.objects.count()),
        "scheduled_tasks": ("Enabled entries of the schedule.", PeriodicTask.objects.filter(enabled=True).count()),
        "beat_lease_seconds": (
            "How long ago a beat renewed its lease. Infinite if none ever did.",
            math.inf if silence is None else silence,
        ),
    }
    return [_up("database", True), *(GaugeMetricFamily(name, *about) for name, about in values.items())]


READERS: dict[str, Callable[[], list[Metric]]] = {"broker": read_broker, "database": read_database}

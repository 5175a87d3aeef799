"""What a worker does besides running tasks: it does not start where it would lose them, and leaves signs of life."""

import logging
from time import monotonic
from typing import Any

from billiard.common import REMAP_SIGTERM
from celery.bootsteps import StartStopStep
from celery.exceptions import WorkerShutdown
from celery.worker.consumer import Consumer

from . import alive
from .rows import held_for_long

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
PREFORK = "celery.concurrency.prefork"
# The limits that pools other than prefork do not enforce.
UNENFORCED = {
    "celery.concurrency.gevent": "CELERY_TASK_SOFT_TIME_LIMIT, and CELERY_TASK_TIME_LIMIT on a task that never waits",
    "celery.concurrency.solo": "CELERY_TASK_TIME_LIMIT and CELERY_TASK_SOFT_TIME_LIMIT",
    "celery.concurrency.thread": "CELERY_TASK_TIME_LIMIT and CELERY_TASK_SOFT_TIME_LIMIT",
}


class Conditions(StartStopStep):
    """Checks whether tasks are safe with this pool and this broker. If they are not, the worker does not start."""

    requires = ("celery.worker.consumer.connection:Connection",)

    def start(self, consumer: Consumer) -> None:
        """Check the broker at every connection, and the pool before the first one. Log what is wrong."""
        first = not consumer.restart_count
        dangers, warnings = _pool_problems(consumer) if first else ([], [])
        if consumer.connection.transport.driver_type == "redis":
            _examine(consumer)
            worse, bad = redis_problems(_redis_info(consumer))
            dangers, warnings = dangers + worse, warnings + bad
        for problem in warnings:
            logger.warning(problem)
        for problem in dangers:
            logger.critical(problem)
        # A worker that is already running continues, because tasks that nobody takes would be evicted just as soon.
        if dangers and first:
            raise WorkerShutdown(1)


def _pool_problems(consumer: Consumer) -> tuple[list[str], list[str]]:
    """Return the problems with which the worker must not start, and those that are only warnings."""
    pool = type(consumer.pool).__module__
    name = pool.rpartition(".")[2]
    dangers, warnings = [], []
    if REMAP_SIGTERM and pool != PREFORK:
        dangers.append(
            f"The pool {name} drops tasks when REMAP_SIGTERM={REMAP_SIGTERM} ends it; remove that from the environment."
        )
    if pool in UNENFORCED and (consumer.app.conf.task_time_limit or consumer.app.conf.task_soft_time_limit):
        warnings.append(
            f"The pool {name} does not enforce {UNENFORCED[pool]}: a task that hangs keeps its slot until the worker "
            "ends. Give every call to another system a timeout of its own, or use the pool prefork."
        )
    return dangers, warnings


def _examine(consumer: Consumer) -> None:
    """End the worker with a sentence if its Redis user lacks a right that a worker needs."""
    from redis.exceptions import NoPermissionError

    channel = consumer.connection.default_channel
    try:
        # Behind sentinels, the channel is kombu's own.
        if hasattr(channel, "examine"):
            channel.examine(everything=True)
    except NoPermissionError as error:
        logger.critical("%s", error)
        raise WorkerShutdown(1) from None


def _redis_info(consumer: Consumer) -> dict[str, Any]:
    try:
        with consumer.connection.default_channel.conn_or_acquire() as client:
            return client.info()
    except consumer.channel_errors as error:
        logger.warning("The broker does not show its maxmemory-policy (%s); see that it is noeviction.", error)
        return {}


def redis_problems(info: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return sentences about what makes a Redis lose tasks: those that forbid its use, and those that are warnings.

    This reads INFO, because hosted servers forbid CONFIG. What INFO does not show is assumed to be fine.
    """
    policy = info.get("maxmemory_policy", "noeviction")
    dangers, warnings = [], []
    if policy.startswith("allkeys"):
        dangers.append(
            f"The broker throws queued tasks away when its memory is full: its maxmemory-policy is {policy}. "
            "Set it to noeviction."
        )
    elif policy != "noeviction":
        warnings.append(
            f"The broker's maxmemory-policy is {policy}, which spares the queues but not what Celery keeps for a time "
            "beside them; set it to noeviction."
        )
    if not info.get("aof_enabled", 1):
        warnings.append(
            "The broker forgets queued tasks when it restarts, all since its last snapshot: set appendonly to yes."
        )
    return dangers, warnings


class Upkeep(StartStopStep):
    """Checks the connection every few seconds, and leaves a sign of life if tasks can arrive.

    The pool solo runs tasks in the loop that takes them, so it leaves no sign of life while a task is running.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Consumer, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._timer: Any = None

    def start(self, consumer: Consumer) -> None:
        """Start with each new connection."""
        # The timer of gevent and eventlet keeps running even if everything else hangs, so only the loop that takes
        # tasks may answer. Elsewhere, the timer is part of that loop.
        look = _look if consumer.hub else consumer.call_soon
        self._timer = consumer.timer.call_repeatedly(
            LOOK_SECONDS, look, (consumer,) if consumer.hub else (_look, consumer)
        )

    def stop(self, consumer: Consumer) -> None:
        """Stop with the connection."""
        if self._timer:
            self._timer.cancel()
        self._timer = None

    terminate = stop


def _look(consumer: Consumer) -> None:
    if is_held(consumer):
        logger.error("All slots are held by failed tasks whose rows cannot be written, and have been for long.")
    elif consumer.task_consumer and consumer.task_consumer.queues and takes_tasks(consumer):
        alive.touch("worker")


def is_held(consumer: Consumer) -> bool:
    """Return whether the worker takes no more tasks, because the messages that it may hold have failed for long."""
    # Unlike the current limit, this one does not count the messages whose time has not come.
    slots = consumer.initial_prefetch_count
    return 0 < slots <= held_for_long()


def takes_tasks(consumer: Consumer) -> bool:
    """Return whether the broker answers on the very connection that delivers the tasks.

    Raises a connection error if that connection is lost.
    """
    channel = consumer.task_consumer.channel
    match consumer.connection.transport.driver_type:
        case "redis":
            # Another release of kombu may not record when it asked. Being connected has to suffice then.
            if not hasattr(channel, "_brpop_sent_at"):
                return True
            # It asks every second, unless all of its slots are taken.
            waits_seconds = monotonic() - (channel._brpop_sent_at or 0.0)
            return waits_seconds < LOOK_SECONDS or not channel.qos.can_consume()
        case "amqp":
            # RabbitMQ pushes tasks, so a question of our own has to show that it answers.
            channel.queue_declare(consumer.task_consumer.queues[0].name, passive=True)
    return True

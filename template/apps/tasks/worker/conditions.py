"""What a worker of this project does beside its tasks: it refuses to lose them, and shows that it takes them."""

import logging
from time import monotonic
from typing import Any

from billiard.common import REMAP_SIGTERM
from celery.bootsteps import StartStopStep
from celery.exceptions import WorkerShutdown
from celery.worker.consumer import Consumer

from . import alive

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
PREFORK = "celery.concurrency.prefork"
# What each pool does without, as far as it is not prefork.
UNENFORCED = {
    "celery.concurrency.gevent": "CELERY_TASK_SOFT_TIME_LIMIT, and CELERY_TASK_TIME_LIMIT on a task that never waits",
    "celery.concurrency.solo": "CELERY_TASK_TIME_LIMIT and CELERY_TASK_SOFT_TIME_LIMIT",
    "celery.concurrency.thread": "CELERY_TASK_TIME_LIMIT and CELERY_TASK_SOFT_TIME_LIMIT",
}


class Conditions(StartStopStep):
    """Whether tasks are safe with this pool and this broker; a worker with which they are not does not start."""

    requires = ("celery.worker.consumer.connection:Connection",)

    def start(self, consumer: Consumer) -> None:
        """Look at the broker at every connection, and at the pool before the first one; log what is wrong."""
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
        # Once it runs, it goes on: tasks that nobody takes would be evicted no later.
        if dangers and first:
            raise WorkerShutdown(1)


def _pool_problems(consumer: Consumer) -> tuple[list[str], list[str]]:
    """Return the sentences for which the worker must not start, and those that are warnings."""
    pool = type(consumer.pool).__module__
    name = pool.rpartition(".")[2]
    dangers, warnings = [], []
    if REMAP_SIGTERM and pool != PREFORK:
        dangers.append(
            f"The pool {name} drops tasks when REMAP_SIGTERM={REMAP_SIGTERM} ends it; remove that from the environment."
        )
    if pool in UNENFORCED and (consumer.app.conf.task_time_limit or consumer.app.conf.task_soft_time_limit):
        warnings.append(
            f"The pool {name} does not enforce {UNENFORCED[pool]}: a task that hangs keeps its place until the worker "
            "ends. Give every call to another system a timeout of its own, or use the pool prefork."
        )
    return dangers, warnings


def _examine(consumer: Consumer) -> None:
    """End the worker with a sentence if Redis does not let its user do what a worker does."""
    from redis.exceptions import NoPermissionError

    channel = consumer.connection.default_channel
    try:
        # Behind sentinels it is kombu's own.
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
    """Return what makes a Redis lose tasks by its INFO, in sentences: what forbids its use, and what is a warning.

    Not by CONFIG, which hosted servers forbid. What INFO does not tell is taken for well.
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
    """A look at the connection every few seconds: the worker says that it is alive if tasks can come.

    On the pool solo, which runs tasks in the loop that takes them, it says nothing while one runs.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Consumer, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._timer: Any = None

    def start(self, consumer: Consumer) -> None:
        """Begin with each new connection."""
        # The timer of gevent and eventlet goes on by itself when nothing else does, so only the loop that takes the
        # tasks may answer. Elsewhere the timer is a part of that loop.
        look = _look if consumer.hub else consumer.call_soon
        self._timer = consumer.timer.call_repeatedly(
            LOOK_SECONDS, look, (consumer,) if consumer.hub else (_look, consumer)
        )

    def stop(self, consumer: Consumer) -> None:
        """End with the connection."""
        if self._timer:
            self._timer.cancel()
        self._timer = None

    terminate = stop


def _look(consumer: Consumer) -> None:
    if consumer.task_consumer and consumer.task_consumer.queues and takes_tasks(consumer):
        alive.touch("worker")


def takes_tasks(consumer: Consumer) -> bool:
    """Return whether the broker answers on the very connection that brings the tasks.

    Raises an error of the connection if it is lost.
    """
    channel = consumer.task_consumer.channel
    match consumer.connection.transport.driver_type:
        case "redis":
            # Another release of kombu may not note when it asked; that it is connected has to do then.
            if not hasattr(channel, "_brpop_sent_at"):
                return True
            # It asks every second, unless its places are all taken.
            waits_seconds = monotonic() - (channel._brpop_sent_at or 0.0)
            return waits_seconds < LOOK_SECONDS or not channel.qos.can_consume()
        case "amqp":
            # RabbitMQ is not asked for tasks, it sends them.
            channel.queue_declare(consumer.task_consumer.queues[0].name, passive=True)
    return True

"""Which queues the project has, how they are declared, and what waits in them."""

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from amqp.exceptions import NotFound
from celery import Celery, current_app
from celery.app.amqp import AMQP, Queues
from kombu import Producer, Queue
from kombu.transport import virtual
from kombu.transport.native_delayed_delivery import (
    bind_queue_to_native_delayed_delivery_exchange,
    declare_native_delayed_delivery_exchanges_and_queues,
)
from kombu.utils.objects import cached_property

from .connection import Connection
from .options import is_rabbitmq

# Deliveries after which RabbitMQ drops a message; 20 is its own limit, and each restart of a worker may count as one.
DELIVERY_LIMIT = 100
# Where a message with a countdown waits in RabbitMQ, and what Celery puts in front of its routing key for that.
DELAY_EXCHANGE = "celery_delayed_27"
DELAY_LEVELS = re.compile(r"^(?:[01]\.){28}")


class QuorumQueues(Queues):
    """Queues that RabbitMQ copies to several nodes and writes to disk before it confirms a message.

    This holds for every queue that stays, wherever it is named: the default queue, a route, CELERY_TASK_QUEUES.
    A queue that names a type of its own keeps it.
    """

    def __setitem__(self, name: str, queue: Queue) -> None:
        arguments = queue.queue_arguments or {}
        if "x-queue-type" not in arguments and queue.durable and not (queue.exclusive or queue.auto_delete):
            queue.queue_arguments = {"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT, **arguments}
        # Celery gives one key to all that have none, and each of them would get a copy of every message.
        queue.routing_key = queue.routing_key or name
        super().__setitem__(name, queue)


class ProjectAMQP(AMQP):
    """Celery's declarations; on RabbitMQ its queues are quorum queues, and no countdown ends nowhere."""

    Connection = Connection

    def __init__(self, app: Celery) -> None:
        super().__init__(app)
        self._reached_after_delay: set[str] = set()

    @cached_property
    def send_task_message(self) -> Callable[..., Any]:
        """The function that sends the message of a task."""
        send = self._create_task_sender()

        def send_task_message(
            producer: Producer, name: str, message: Any, exchange: Any = None, routing_key: Any = None, **options: Any
        ) -> Any:
            is_delayed = getattr(exchange, "name", exchange) == DELAY_EXCHANGE
            if is_delayed:
                self._lead_from_delay(producer, DELAY_LEVELS.sub("", routing_key))
            try:
                return send(producer, name, message, exchange=exchange, routing_key=routing_key, **options)
            except NotFound:
                # The broker has lost what it was told.
                self._reached_after_delay.clear()
                raise

        return send_task_message

    def _lead_from_delay(self, producer: Producer, key: str) -> None:
        """Have messages for this key reach their queue when their time has come.

        Celery leaves that to the worker of the queue. Before one has run, RabbitMQ drops such a message.
        """
        queue = next((queue for queue in self.queues.values() if queue.routing_key == key), None)
        if queue is None or queue.name in self._reached_after_delay:
            return
        connection = producer.connection
        kind = self.app.conf.broker_native_delayed_delivery_queue_type
        declare_native_delayed_delivery_exchanges_and_queues(connection, kind)
        queue(producer.channel).declare()
        bind_queue_to_native_delayed_delivery_exchange(connection, queue)
        self._reached_after_delay.add(queue.name)

    @property
    def queues_cls(self) -> type[Queues]:
        """The class of the collection of queues."""
        return QuorumQueues if is_rabbitmq(self.app.conf.broker_url) else Queues


def configured_queues() -> set[str]:
    """Return the names of the queues in the settings: those of CELERY_TASK_QUEUES, or else the default one."""
    queues: Any = current_app.conf.task_queues or [current_app.conf.task_default_queue]
    return set(queues if isinstance(queues, Mapping) else (getattr(queue, "name", queue) for queue in queues))


def remedy(name: str) -> str:
    """Return in a sentence what to do about a queue from which no worker takes."""
    known = configured_queues()
    if name in known:
        return f"Start a worker that takes from it: celery -A {current_app.main} worker -Q {name}."
    close = get_close_matches(name, known, n=1)
    correct = f"Correct the name to {close[0]}" if close else "Correct the name"
    if current_app.conf.task_queues:
        return f"{correct}; or add Queue({name!r}) to CELERY_TASK_QUEUES, and start a worker that takes from it."
    queues = ", ".join(f"Queue({each!r})" for each in [*known, name])
    return f"{correct}; or set CELERY_TASK_QUEUES to [{queues}], of kombu, and start a worker that takes from it."


def queue_state(connection: Connection, name: str) -> tuple[int, int | None]:
    """Return how many messages wait in a queue, and how many consumers it has: None on Redis, which does not know."""
    # A channel for each, because RabbitMQ closes it when there is no such queue, as before the first worker.
    channel = connection.channel()
    if isinstance(channel, virtual.Channel):
        # Where a project's keys have a prefix of their own, kombu finds no queue on Redis to declare.
        return channel._size(name), None
    try:
        declared = channel.queue_declare(name, passive=True)
    except connection.channel_errors:
        return 0, 0
    return declared.message_count, declared.consumer_count

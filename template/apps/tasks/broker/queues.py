"""The queues of the project: their names, how they are declared, and how many messages wait in them."""

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

# After this many deliveries, RabbitMQ drops a message. Its default is 20, and each restart of a worker may count as
# one.
DELIVERY_LIMIT = 100
# Where a message with a countdown waits in RabbitMQ, and what Celery puts in front of its routing key for that.
DELAY_EXCHANGE = "celery_delayed_27"
DELAY_LEVELS = re.compile(r"^(?:[01]\.){28}")


class QuorumQueues(Queues):
    """Queues that RabbitMQ copies to several nodes and writes to disk before it confirms a message.

    This applies to every permanent queue, wherever it is declared: as the default queue, in a route or in
    CELERY_TASK_QUEUES. A queue that declares its own type keeps it.
    """

    def __setitem__(self, name: str, queue: Queue) -> None:
        arguments = queue.queue_arguments or {}
        if "x-queue-type" not in arguments and queue.durable and not (queue.exclusive or queue.auto_delete):
            queue.queue_arguments = {"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT, **arguments}
        # Celery gives the same routing key to all queues that have none. Each of them would get a copy of every
        # message.
        queue.routing_key = queue.routing_key or name
        super().__setitem__(name, queue)


class ProjectAMQP(AMQP):
    """Celery's declarations, with quorum queues on RabbitMQ and countdowns that always reach their queue."""

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
        # The levels of the delay are the same for all queues.
        if not self._reached_after_delay:
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
    """Return the names of the queues in the settings: those in CELERY_TASK_QUEUES, or else the default queue."""
    queues: Any = current_app.conf.task_queues or [current_app.conf.task_default_queue]
    return set(queues if isinstance(queues, Mapping) else (getattr(queue, "name", queue) for queue in queues))


def remedy(name: str) -> str:
    """Return a sentence that says what to do about a queue that no worker consumes."""
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
    """Return how many messages wait in a queue and how many consumers it has. On Redis, the latter is unknown: None."""
    # Each queue gets its own channel, because RabbitMQ closes the channel if the queue does not exist, as before the
    # first worker has started.
    channel = connection.channel()
    if isinstance(channel, virtual.Channel):
        # If a project's keys have a prefix, kombu finds no queue to declare on Redis.
        return channel._size(name), None
    try:
        declared = channel.queue_declare(name, passive=True)
    except connection.channel_errors:
        return 0, 0
    return declared.message_count, declared.consumer_count

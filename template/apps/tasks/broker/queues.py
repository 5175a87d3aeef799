"""How queues are declared on RabbitMQ."""

from celery.app.amqp import AMQP, Queues
from kombu import Queue

from .connection import Connection
from .options import is_rabbitmq

# Deliveries after which RabbitMQ drops a message; 20 is its own limit, and each restart of a worker may count as one.
DELIVERY_LIMIT = 100


class QuorumQueues(Queues):
    """Queues that RabbitMQ copies to several nodes and writes to disk before it confirms a message.

    This holds for every queue that stays, wherever it is named: the default queue, a route, CELERY_TASK_QUEUES.
    A queue that names a type of its own keeps it.
    """

    def __setitem__(self, name: str, queue: Queue) -> None:
        arguments = queue.queue_arguments or {}
        if "x-queue-type" not in arguments and queue.durable and not (queue.exclusive or queue.auto_delete):
            queue.queue_arguments = {"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT, **arguments}
        super().__setitem__(name, queue)


class ProjectAMQP(AMQP):
    """Celery's declarations; on RabbitMQ its queues are quorum queues."""

    Connection = Connection

    @property
    def queues_cls(self) -> type[Queues]:
        """The class of the collection of queues."""
        return QuorumQueues if is_rabbitmq(self.app.conf.broker_url) else Queues

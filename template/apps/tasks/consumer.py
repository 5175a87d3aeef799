"""The part of a worker that is connected to the broker: what it does when that is gone, or refuses it."""

import logging

from amqp.exceptions import AccessRefused
from celery.exceptions import WorkerShutdown
from celery.worker import state
from celery.worker.consumer import Consumer

from .errors import Refused

logger = logging.getLogger(__name__)


class SteadyConsumer(Consumer):
    """Celery's, which keeps what it runs through a lost connection, and ends with a sentence where waiting is vain."""

    def start(self) -> None:
        """Take tasks until the worker ends; raise WorkerShutdown if the broker refuses it."""
        try:
            super().start()
        except (AccessRefused, Refused) as error:
            logger.critical("%s", error)
            raise WorkerShutdown(1) from None

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Keep the messages of tasks that run on: given back, as the others are, they would run a second time."""
        if not self.app.conf.worker_cancel_long_running_tasks_on_connection_loss:
            for request in tuple(state.active_requests):
                # RabbitMQ, whose channels keep no list, gives them back by itself.
                qos = getattr(request.message.channel, "qos", None)
                if qos and not request.acknowledged and hasattr(qos, "keep"):
                    qos.keep(request.message.delivery_tag)
        super().on_connection_error_after_connected(exc)

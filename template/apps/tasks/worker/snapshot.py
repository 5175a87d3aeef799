"""Reads what other threads of a worker change: Celery keeps its requests in weak sets, which do not bear that."""

from collections.abc import Callable
from threading import Thread
from typing import TypeVar

from celery import Celery
from celery.worker import state
from celery.worker.request import Request

from apps.tasks.broker.options import is_rabbitmq
from apps.tasks.sending.deliveries import excuse

# Seconds that a worker which stops, or has lost its connection, waits for the database.
EXCUSE_SECONDS = 2
Result = TypeVar("Result")


def undisturbed(read: Callable[[], Result]) -> Result:
    """Call a function, again if another thread has changed a set while the function went through it."""
    while True:
        try:
            return read()
        except RuntimeError as error:
            if "changed size during iteration" not in str(error):
                raise


def running_requests() -> list[Request]:
    """Return the tasks that run now."""
    return undisturbed(lambda: list(state.active_requests))


def excuse_what_comes_back(app: Celery) -> None:
    """Record that what RabbitMQ is about to deliver again comes from a living worker. Redis has it in the message."""
    held = [each for each in list(state.requests.values()) if not each.acknowledged]
    if held and is_rabbitmq(app.conf.broker_url):
        attempts = [(each.id, each.request_dict.get("retries") or 0) for each in held]
        # A database that does not answer must not hold up the stop.
        thread = Thread(target=excuse, args=(attempts,), daemon=True)
        thread.start()
        thread.join(EXCUSE_SECONDS)

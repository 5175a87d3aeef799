"""Reads what other threads of a worker change: Celery keeps its requests in weak sets, which do not bear that."""

from collections.abc import Callable
from typing import TypeVar

from celery.worker import state
from celery.worker.request import Request

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

"""The two tasks of the SCHEDULED_TASKS example; replace them with yours, or put yours into an app's `tasks.py`."""

import logging

from celery import shared_task

logger = logging.getLogger(__name__)


@shared_task
def say_good_morning() -> None:
    """Write a greeting to the log of the worker."""
    logger.info("Good morning!")


@shared_task(ignore_result=False)
def add(x: float, y: float) -> float:
    """Return the sum of two numbers, and keep it: the home page reads it."""
    return x + y

"""The two example tasks in SCHEDULED_TASKS. This file goes with Celery, so write yours in the `tasks.py` of an app."""

import logging

from celery import shared_task

logger = logging.getLogger(__name__)


@shared_task
def say_good_morning() -> None:
    """Write a greeting to the log of the worker."""
    logger.info("Good morning!")


@shared_task(ignore_result=False)
def add(x: float, y: float) -> float:
    """Return the sum of two numbers. The result is kept because the home page reads it."""
    return x + y

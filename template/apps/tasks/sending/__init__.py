"""Sending: what your code calls to have a task run.

Promises that a task is sent when the transaction is committed and not before, and that a message which the broker does
not take is kept in the outbox until it does. Your code and Celery itself call it; it calls the broker alone.
"""

from .task import ProjectTask, RetryingTask, send

__all__ = ["ProjectTask", "RetryingTask", "send"]

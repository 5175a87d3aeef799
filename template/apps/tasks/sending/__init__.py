"""Sending: what your code calls to run a task.

This room promises that a task is sent when the transaction is committed and not before, and that a message that the
broker does not accept is kept in the outbox until it does. Your code and Celery itself call this room. It calls only
the room of the broker.
"""

from .task import ProjectTask, RetryingTask, send

__all__ = ["ProjectTask", "RetryingTask", "send"]

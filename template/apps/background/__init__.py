"""Background tasks: work that a page does not wait for, written against the task framework of Django.

`from apps.background import task` is all that your code needs. It works with Django 6.0, which contains the framework,
and with Django 5.2, for which the package django-tasks provides it. `TASKS` in the settings decides what runs the
tasks. Your code stays the same when that changes. The README in this folder shows how to write tasks.
"""

from .framework import InvalidTask, Task, TaskContext, TaskResult, TaskResultDoesNotExist, TaskResultStatus
from .options import task

__all__ = [
    "InvalidTask",
    "Task",
    "TaskContext",
    "TaskResult",
    "TaskResultDoesNotExist",
    "TaskResultStatus",
    "task",
]

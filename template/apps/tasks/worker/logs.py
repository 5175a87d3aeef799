"""Log lines about tasks: which task they belong to, and which request has sent it."""

import logging
from typing import Any

from celery import Task
from celery.signals import after_setup_logger, after_setup_task_logger, task_postrun, task_prerun
from django.conf import settings

from apps.web.logs import JsonFormatter, fields


class TaskJsonFormatter(JsonFormatter):
    """Writes each record as an object on one line. Celery's own lines about a task name it as well."""

    def own_fields(self, record: logging.LogRecord) -> dict[str, str]:
        """Return what the record says by itself. Celery's lines have the task, with its arguments, in their data."""
        data = getattr(record, "data", None)
        if not (isinstance(data, dict) and {"id", "name"} <= data.keys()):
            return super().own_fields(record)
        return {"task_id": data["id"], "task_name": data["name"]}


@after_setup_logger.connect
@after_setup_task_logger.connect
def write_json(logger: logging.Logger, **kwargs: Any) -> None:
    """Give the handlers of worker and beat, which Celery has just made, the format of the settings."""
    if settings.LOG_FORMAT == "json":
        for handler in logger.handlers:
            handler.setFormatter(TaskJsonFormatter())


@task_prerun.connect
def enter(task: Task, task_id: str, **kwargs: Any) -> None:
    """Have the lines of a task name it and its request."""
    request, outside = task.request, fields.get()
    identity = request.get("request_id") or outside.get("request_id")
    request.fields_outside = outside
    fields.set({**({"request_id": identity} if identity else {}), "task_id": task_id, "task_name": task.name})


@task_postrun.connect
def leave(task: Task, **kwargs: Any) -> None:
    """Have the lines after a task name what they named before it."""
    fields.set(task.request.get("fields_outside") or {})

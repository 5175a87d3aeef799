"""The record of the tasks that were enqueued: what `get_result` reads."""

from django.db import models

from .framework import TaskResultStatus


class EnqueuedTask(models.Model):
    """A task that was enqueued, and what has become of it.

    The row is written in the transaction that enqueues the task, so a rollback removes it. It contains the arguments
    and the return value, and is deleted BACKGROUND_TASKS_KEPT_DAYS after the task has finished.
    """

    id = models.CharField(primary_key=True, max_length=64, editable=False)
    path = models.CharField("task", max_length=255, db_index=True)
    backend = models.CharField(max_length=64)
    queue_name = models.CharField("queue", max_length=255)
    priority = models.SmallIntegerField()
    run_after = models.DateTimeField(null=True, blank=True)
    args = models.JSONField("positional arguments", default=list, blank=True)
    kwargs = models.JSONField("keyword arguments", default=dict, blank=True)
    status = models.CharField(max_length=10, choices=TaskResultStatus.choices, default=TaskResultStatus.READY)
    enqueued_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True, blank=True, help_text="When the first attempt began.")
    last_attempted_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True, db_index=True)
    worker_ids = models.JSONField(default=list, blank=True, help_text="One for each attempt.")
    errors = models.JSONField(default=list, blank=True, help_text="Of each attempt that failed.")
    return_value = models.JSONField(null=True, blank=True)
    send_at = models.DateTimeField(
        null=True, blank=True, help_text="When it is sent on, because nothing but this row knows of it."
    )

    class Meta:
        ordering = ["-enqueued_at"]
        indexes = [
            models.Index(fields=["send_at"], condition=models.Q(send_at__isnull=False), name="background_unsent"),
        ]

    def __str__(self) -> str:
        return f"{self.path} [{self.id}]"

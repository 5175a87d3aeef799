"""The tables in which the project stores what it has to remember about its tasks."""

from uuid import uuid4

from django.db import models
from django_celery_beat.models import PeriodicTask


class ScheduledTask(models.Model):
    """The mark on a periodic task that `bootstrap_celery_tasks` created or adopted, and may therefore change.

    It has its own table, because the only column of `PeriodicTask` for it would be `headers`, which people may edit or
    empty in the admin, and which travels to the workers with every message. This mark survives every edit in the admin,
    including a change of the task's name, and is deleted with the task.
    """

    name = models.CharField(max_length=200, unique=True, help_text="The key in SCHEDULED_TASKS.")
    periodic_task = models.OneToOneField(PeriodicTask, on_delete=models.CASCADE, related_name="scheduled_task")
    adopted = models.BooleanField(help_text="Made elsewhere, before the entry was: never deleted with it.")
    entry = models.JSONField(help_text="The entry as it was last written; what differs from it was edited since.")
    # The schedule's row, if the command created that as well. This is no foreign key, because there are four tables.
    schedule_kind = models.CharField(max_length=10, blank=True)
    schedule_id = models.IntegerField(null=True)

    def __str__(self) -> str:
        return f"SCHEDULED_TASKS[{self.name!r}]"


class BeatLease(models.Model):
    """Says which beat may send.

    It is one row whose counter the holder increments every few seconds while the others watch.
    """

    id = models.PositiveSmallIntegerField(primary_key=True, default=1)
    holder = models.CharField(max_length=200, blank=True, help_text="Empty if the last holder has ended.")
    counter = models.PositiveBigIntegerField(default=0)
    renewed_at = models.DateTimeField(null=True, help_text="By the database's clock; for people and the health page.")

    def __str__(self) -> str:
        return self.holder or "nobody"


class FailedTask(models.Model):
    """A task that has failed for good, with its message, which can be sent again.

    The row contains the task's arguments, including secrets and personal data, until the task is sent again or deleted,
    or FAILED_TASKS_KEPT_DAYS have passed.
    """

    task_id = models.CharField(max_length=255, unique=True)
    name = models.CharField("task", max_length=255, db_index=True)
    # As the sender wants them shown. The message contains them in full.
    args = models.TextField("positional arguments", blank=True)
    kwargs = models.TextField("keyword arguments", blank=True)
    exception = models.TextField()
    traceback = models.TextField(blank=True)
    tries = models.PositiveIntegerField(help_text="How often it was started.")
    first_failed_at = models.DateTimeField()
    last_failed_at = models.DateTimeField(db_index=True)
    worker = models.CharField(max_length=255)
    message = models.TextField(help_text="The message as the broker had it, in JSON.")

    class Meta:
        ordering = ["-last_failed_at"]

    def __str__(self) -> str:
        return f"{self.name or 'A message'} [{self.task_id}]"


class ReturnedTask(models.Model):
    """A task that was started, and whose message was redelivered because the worker died before the task had ended."""

    task_id = models.CharField(max_length=255, primary_key=True)
    times = models.PositiveIntegerField()
    excused = models.BooleanField(default=False, help_text="The next return is no sign of a death, and not counted.")
    last_returned_at = models.DateTimeField()

    def __str__(self) -> str:
        return self.task_id


class UnknownQueue(models.Model):
    """A queue that a task was sent to, but that is not in the settings."""

    name = models.CharField(max_length=255, primary_key=True)
    sent_at = models.DateTimeField()

    def __str__(self) -> str:
        return self.name


class OutgoingTask(models.Model):
    """A task that is stored because the broker did not accept it, it is due much later, or it must not be lost.

    The row of a durable task exists until the task has ended, and any other row until the broker has its message. To
    cancel the task, delete the row.
    """

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    name = models.CharField(max_length=255)
    task_id = models.CharField(max_length=255, db_index=True)
    message = models.TextField(help_text="Arguments and options, as JSON.")
    durable = models.BooleanField(help_text="Kept until the task has ended, and sent again if its message got lost.")
    attempts = models.PositiveIntegerField(default=0, help_text="How often it was sent from here.")
    error = models.TextField(blank=True, help_text="Why the last attempt failed.")
    created_at = models.DateTimeField(auto_now_add=True)
    send_at = models.DateTimeField(db_index=True, help_text="When it is sent, or sent again, from here.")

    class Meta:
        ordering = ("send_at",)

    def __str__(self) -> str:
        return f"{self.name}[{self.task_id}]"

    @property
    def reason(self) -> str:
        """Why the task is stored."""
        if self.error:
            return f"not taken: {self.error}"
        return "has not ended" if self.durable else "its time is far"

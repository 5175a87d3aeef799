"""What the project remembers about its scheduled tasks."""

from django.db import models
from django_celery_beat.models import PeriodicTask


class ScheduledTask(models.Model):
    """The mark on a periodic task that `bootstrap_celery_tasks` made, and so may change and delete.

    A table of its own, because `PeriodicTask` has no column for it but `headers`, which people may edit or empty in the
    admin, and which travels with every message to the workers. This mark survives any edit in the admin, a change of
    the task's name too, and is deleted with the task.
    """

    name = models.CharField(max_length=200, unique=True, help_text="The key in SCHEDULED_TASKS.")
    periodic_task = models.OneToOneField(PeriodicTask, on_delete=models.CASCADE, related_name="scheduled_task")
    entry = models.JSONField(help_text="The entry as it was last written; what differs from it was edited since.")
    # The schedule's row if the command made that as well. No foreign key: there are four tables.
    schedule_kind = models.CharField(max_length=10, blank=True)
    schedule_id = models.IntegerField(null=True)

    def __str__(self) -> str:
        return f"SCHEDULED_TASKS[{self.name!r}]"

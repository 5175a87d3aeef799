from datetime import timedelta

from celery import shared_task
from django.conf import settings
from django.utils import timezone

from apps.background import records
from apps.tasks.models import FailedTask, ReturnedTask


@shared_task
def prune_old_rows() -> None:
    """Delete the rows of tasks that ended BACKGROUND_TASKS_KEPT_DAYS ago, or that failed FAILED_TASKS_KEPT_DAYS ago."""
    records.prune()
    oldest = timezone.now() - timedelta(days=settings.FAILED_TASKS_KEPT_DAYS)
    FailedTask.objects.filter(last_failed_at__lt=oldest).delete()
    ReturnedTask.objects.filter(last_returned_at__lt=oldest).delete()

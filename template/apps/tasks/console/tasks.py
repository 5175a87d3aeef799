from datetime import timedelta

from celery import shared_task
from django.conf import settings
from django.utils import timezone

from apps.tasks.models import FailedTask, ReturnedTask


@shared_task
def prune_failed_tasks() -> None:
    """Delete the failed tasks that nobody has sent again for FAILED_TASKS_KEPT_DAYS."""
    oldest = timezone.now() - timedelta(days=settings.FAILED_TASKS_KEPT_DAYS)
    FailedTask.objects.filter(last_failed_at__lt=oldest).delete()
    ReturnedTask.objects.filter(last_returned_at__lt=oldest).delete()

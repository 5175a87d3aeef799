"""Who may only look at periodic tasks in the admin does nothing to them."""

import pytest

pytest.importorskip("celery")

from django.contrib.auth.models import Permission
from django.urls import reverse
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from apps.users.models import User

pytestmark = pytest.mark.django_db


@pytest.fixture
def task():
    every, _ = IntervalSchedule.objects.get_or_create(every=1, period="days")
    return PeriodicTask.objects.create(name="report", task="some.task", interval=every)


def disable(client, task, *permissions):
    """Try to disable the task as a member of the staff with these permissions; return whether it is enabled still."""
    user = User.objects.create_user("staff@example.com", is_staff=True)
    user.user_permissions.add(*Permission.objects.filter(codename__in=permissions))
    client.force_login(user)
    fields = {"action": "disable_tasks", "_selected_action": task.pk}
    client.post(reverse("admin:django_celery_beat_periodictask_changelist"), fields)
    task.refresh_from_db()
    return task.enabled


def test_who_may_change_tasks_disables_them(client, task):
    assert not disable(client, task, "view_periodictask", "change_periodictask")


def test_who_may_look_does_not(client, task):
    assert disable(client, task, "view_periodictask")

"""The admin's pages about tasks: they load no more than they show, and refuse what is not allowed."""

import pytest

pytest.importorskip("celery")

from django.contrib.auth.models import Permission
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from django_celery_beat.models import IntervalSchedule, PeriodicTask
from django_celery_results.models import TaskResult

from apps.background.models import EnqueuedTask
from apps.tasks.models import FailedTask, OutgoingTask
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


# Lists ----------------------------------------------------------------------

LONG = "x" * 1000
LISTS = {
    "background_enqueuedtask": lambda: EnqueuedTask.objects.create(
        id="1", priority=0, enqueued_at=timezone.now(), args=[LONG], return_value=LONG, errors=[{"traceback": LONG}]
    ),
    "django_celery_results_taskresult": lambda: TaskResult.objects.create(
        task_id="1", result=LONG, traceback=LONG, meta=LONG, task_args=LONG, task_kwargs=LONG
    ),
    "tasks_failedtask": lambda: FailedTask.objects.create(
        message=LONG, traceback=LONG, tries=1, first_failed_at=timezone.now(), last_failed_at=timezone.now()
    ),
    "tasks_outgoingtask": lambda: OutgoingTask.objects.create(message=LONG, durable=True, send_at=timezone.now()),
}


@pytest.mark.parametrize("name", LISTS)
def test_a_list_loads_no_long_column(admin_client, name):
    row = LISTS[name]()
    with CaptureQueriesContext(connection) as queries:
        page = admin_client.get(reverse(f"admin:{name}_changelist"))
    assert page.context["cl"].result_count == 1
    table = connection.ops.quote_name(row._meta.db_table)
    long = [field.column for field in row._meta.fields if LONG in str(getattr(row, field.attname))]
    read = [each["sql"] for each in queries if f"FROM {table}" in each["sql"]]
    assert long and read and not [column for column in long for sql in read if f'{table}."{column}"' in sql]
    assert LONG in admin_client.get(reverse(f"admin:{name}_change", args=[row.pk])).content.decode()

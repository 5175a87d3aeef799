"""The admin's pages about tasks: they load no more than they show, and refuse what is not allowed."""

import pytest

pytest.importorskip("celery")

from django.contrib.auth.models import Permission
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask
from django_celery_results.models import TaskResult

from apps.background.models import EnqueuedTask
from apps.tasks.beat.periodic import schedule_of
from apps.tasks.beat.timing import CRONTAB_FIELDS
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


# Schedules ------------------------------------------------------------------

NO_TASKS = {"periodictask_set-TOTAL_FORMS": 0, "periodictask_set-INITIAL_FORMS": 0}
CRONTAB = dict.fromkeys(CRONTAB_FIELDS, "*") | {"timezone": "UTC"} | NO_TASKS


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"day_of_week": "7"}, "Sunday is 0."),
        ({"day_of_week": "1-7"}, "Sunday is 0."),
        ({"day_of_month": "31", "month_of_year": "2"}, "never occurs in month_of_year"),
        ({"day_of_month": "30,31", "month_of_year": "2"}, "never occurs in month_of_year"),
        ({"day_of_month": "31", "month_of_year": "4,6,9,11", "day_of_week": "1"}, "never occurs in month_of_year"),
        ({"minute": "60"}, "minute"),
    ],
    ids=str,
)
def test_a_crontab_that_beat_cannot_use_is_refused(admin_client, fields, sentence):
    page = admin_client.post(reverse("admin:django_celery_beat_crontabschedule_add"), CRONTAB | fields)
    assert page.status_code == 200 and sentence in str(page.context["adminform"].form.errors)
    assert not CrontabSchedule.objects.filter(**fields).exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"day_of_month": "29", "month_of_year": "2"},
        {"day_of_month": "31", "month_of_year": "2,3"},
        {"day_of_week": "0,sat"},
        {"minute": "*/5", "hour": "8-18"},
    ],
    ids=str,
)
def test_a_crontab_that_beat_can_use_is_saved_and_occurs(admin_client, fields):
    admin_client.post(reverse("admin:django_celery_beat_crontabschedule_add"), CRONTAB | fields)
    row = PeriodicTask(crontab=CrontabSchedule.objects.get(**fields))
    assert schedule_of(row).next_after(timezone.now()) > timezone.now()


@pytest.mark.parametrize(("every", "status"), [("2147483647", 200), ("3000", 302)])
def test_an_interval_that_no_calendar_has_is_refused(admin_client, every, status):
    add = reverse("admin:django_celery_beat_intervalschedule_add")
    page = admin_client.post(add, {"every": every, "period": "days"} | NO_TASKS)
    assert page.status_code == status
    assert IntervalSchedule.objects.filter(every=every).exists() == (status == 302)

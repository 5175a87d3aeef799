"""Whoever switches Celery off is told first what waits."""

from io import StringIO

import pytest

pytest.importorskip("celery")

from celery import current_app
from django.core.management import CommandError, call_command
from django.utils import timezone
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from apps.tasks.models import FailedTask, OutgoingTask
from tests.background import declared

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def broker(monkeypatch):
    """A broker in memory, with no worker."""
    monkeypatch.setitem(current_app.conf, "broker_url", "memory://")
    monkeypatch.setattr("celery.app.control.Inspect._request", lambda *args, **options: None)
    with current_app.connection_for_write() as connection:
        yield connection


def waiting_tasks():
    out = StringIO()
    try:
        call_command("waiting_tasks", stdout=out)
    except CommandError as error:
        out.write(f"exit {error.returncode}: {error}")
    return out.getvalue()


def test_nothing_waits(broker):
    assert waiting_tasks() == "No task waits.\n"


def test_a_schedule_alone_is_no_task_that_waits(broker):
    interval = IntervalSchedule.objects.create(every=1, period="hours")
    PeriodicTask.objects.create(name="hourly", task="apps.shop.tasks.count", interval=interval)
    PeriodicTask.objects.create(name="never", task="apps.shop.tasks.rest", interval=interval, enabled=False)
    told = waiting_tasks()
    assert "apps.shop.tasks.count (1)" in told and "rest" not in told and told.endswith("No task waits.\n")


def test_the_length_of_each_queue_is_told(broker):
    broker.SimpleQueue("celery").put({"task": "one"})
    told = waiting_tasks()
    assert "queue celery" in told and "exit 1: Tasks wait." in told


def test_what_waits_in_the_database_is_told_by_name(broker):
    now = timezone.now()
    for _ in range(2):
        OutgoingTask.objects.create(name="apps.shop.tasks.ship", task_id="1", message="", durable=True, send_at=now)
    FailedTask.objects.create(task_id="2", name="apps.shop.tasks.pay", tries=1, first_failed_at=now, last_failed_at=now)
    told = waiting_tasks()
    assert "apps.shop.tasks.ship (2)" in told and "apps.shop.tasks.pay (1)" in told and "exit 1" in told


def test_tasks_that_can_run_without_celery_are_told(broker, settings):
    settings.TASKS = {"default": {"BACKEND": "apps.tasks.sending.backend.WorkerBackend", "QUEUES": []}}
    declared.add.enqueue(1)
    assert "run_due_tasks` runs these of them: tests.background.declared.add (1)" in waiting_tasks()


def test_a_broker_that_does_not_answer_is_told(monkeypatch):
    monkeypatch.setitem(current_app.conf, "broker_url", "redis://127.0.0.1:1/0")
    assert "exit 1: The broker does not answer" in waiting_tasks()

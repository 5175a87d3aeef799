"""What Prometheus reads from the web server."""

import json
import re
import time
from datetime import timedelta
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

pytest.importorskip("celery")

from django.utils import timezone
from django_celery_beat.models import IntervalSchedule, PeriodicTask
from kombu.exceptions import OperationalError

from apps.metrics import collector
from apps.metrics.waits import WAITS_SINCE
from apps.tasks.models import BeatLease, OutgoingTask
from apps.web import health

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def in_this_thread(monkeypatch):
    """Read in the thread of the test, which has its database."""
    monkeypatch.setattr(
        collector, "answers", lambda questions, timeout: {name: ask() for name, ask in questions.items()}
    )


@pytest.fixture
def read(client, settings):
    """`read()` returns what the page shows, by the name with its labels."""
    settings.DEBUG = True

    def read() -> dict[str, float]:
        page = client.get("/metrics").content.decode()
        return {name: float(value) for name, value in re.findall(r"^([a-z]\S*) (\S+)$", page, re.MULTILINE)}

    return read


def test_a_queue_shows_its_messages_and_that_nobody_takes_them(read, app_in_memory):
    app_in_memory.send_task("some.task")
    found = read()
    assert found["broker_up"] == 1
    assert found['queue_messages{queue="celery"}'] == 1
    assert found['queue_consumers{queue="celery"}'] == 0


def test_a_broker_that_is_down_is_an_answer(read, monkeypatch):
    monkeypatch.setattr(collector, "broker_error", lambda: OperationalError("Connection refused"))
    found = read()
    assert (found["broker_up"], found["database_up"]) == (0, 1)
    assert not [name for name in found if name.startswith("queue")]


def test_a_database_that_is_down_is_an_answer(read, monkeypatch, app_in_memory):
    def fail():
        raise OperationalError("server closed the connection")

    monkeypatch.setitem(collector.READERS, "database", fail)
    assert (read()["broker_up"], read()["database_up"]) == (1, 0)


def test_a_broker_that_hangs_is_an_answer(read, monkeypatch):
    monkeypatch.setattr(collector, "answers", lambda questions, timeout: {})
    assert read() == {"broker_up": 0, "database_up": 0}


def test_eager_tasks_need_no_broker(read, monkeypatch, app_in_memory):
    monkeypatch.setitem(app_in_memory.conf, "task_always_eager", True)
    assert "broker_up" not in read()


@pytest.fixture
def redis():
    """Return a client of Redis, and a connection that uses it."""
    client = MagicMock()
    channel = MagicMock(priority_steps=[0, 3], global_keyprefix="acme:")
    channel._q_for_pri = lambda name, priority: f"{name}{priority}"
    channel.conn_or_acquire.return_value.__enter__.return_value = client
    channel.conn_or_acquire.return_value.__exit__.return_value = False
    connection = SimpleNamespace(transport=SimpleNamespace(driver_type="redis"), default_channel=channel)
    return client, connection


def test_the_oldest_message_of_any_priority_counts(redis):
    client, connection = redis
    ages = {"acme:celery0": 60, "acme:celery3": 90}
    client.lindex = lambda key, index: json.dumps({"headers": {WAITS_SINCE: time.time() - ages[key]}}).encode()
    assert 90 <= collector.oldest_seconds(connection, "celery") < 90 + 60


@pytest.mark.parametrize("head, seconds", [(None, 0.0), (b'{"headers": {}}', None), (b"not of Celery", None)])
def test_an_empty_queue_has_no_age_and_a_message_without_a_moment_an_unknown_one(redis, head, seconds):
    client, connection = redis
    client.lindex.return_value = head
    assert collector.oldest_seconds(connection, "celery") == seconds


def test_a_user_of_redis_who_may_not_look_into_a_queue_hides_only_its_age(redis):
    client, connection = redis
    client.lindex.side_effect = pytest.importorskip("redis").exceptions.NoPermissionError("lindex")
    assert collector.oldest_seconds(connection, "celery") is None


def test_the_outbox_shows_how_late_it_is(read, app_in_memory):
    row = {"name": "some.task", "task_id": "1", "message": "{}", "durable": False}
    OutgoingTask.objects.create(**row, send_at=timezone.now() + timedelta(hours=1))
    assert (read()["outbox_tasks"], read()["outbox_overdue_seconds"]) == (1, 0)
    OutgoingTask.objects.create(**row, send_at=timezone.now() - timedelta(hours=1))
    found = read()
    assert found["outbox_tasks"] == 2 and 3600 <= found["outbox_overdue_seconds"] < 3700


def test_beat_shows_how_long_it_has_been_silent(read, app_in_memory):
    assert (read()["beat_lease_seconds"], read()["scheduled_tasks"]) == (float("inf"), 0)
    every = IntervalSchedule.objects.create(every=1, period="hours")
    PeriodicTask.objects.create(name="often", task="some.task", interval=every)
    BeatLease.objects.create(renewed_at=timezone.now() - timedelta(minutes=5))
    found = read()
    assert 299 < found["beat_lease_seconds"] < 400 and found["scheduled_tasks"] == 1


def test_production_asks_for_the_token(client, settings, monkeypatch):
    settings.ALLOWED_HOSTS = ["testserver"]
    assert client.get("/metrics").status_code == 404
    settings.HEALTH_TOKEN = "Sesame"
    assert client.get("/metrics").status_code == 401
    monkeypatch.setattr(collector, "READERS", {})
    assert client.get("/metrics", headers={"Authorization": "Bearer Sesame"}).status_code == 200


def test_both_parts_have_names_of_their_own_among_the_health_checks():
    assert not {f"metrics-{name}" for name in collector.READERS} & set(health.checks)

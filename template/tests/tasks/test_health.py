"""The health page knows about the broker, the queues and the workers."""

import pytest

pytest.importorskip("celery")

from celery import current_app
from celery.beat import BeatPidbox, Service
from celery.contrib.testing.worker import start_worker

from apps.tasks.console import health
from apps.web.health import Unhealthy, checks

# Long enough for a machine with other things to do.
PATIENCE_SECONDS = 60


@pytest.fixture
def nobody_listens(monkeypatch):
    """Name a broker on a port that nobody may listen on."""
    monkeypatch.setenv("CELERY_BROKER_URL", "amqp://user:secret@127.0.0.1:1//")


def test_they_are_on_the_page():
    assert {"broker", "queues", "workers"} <= set(checks)


def test_a_broker_that_is_away_is_reported(nobody_listens):
    with pytest.raises(Unhealthy, match="does not answer"):
        health.broker_accepts_connections()


def test_workers_cannot_be_asked_without_the_broker(nobody_listens):
    with pytest.raises(Unhealthy, match="without the broker"):
        health.a_worker_replies()


def test_the_broker_tells_how_many_tasks_wait(app_in_memory):
    assert health.broker_accepts_connections() == "waiting: celery 0"
    app_in_memory.send_task("some.task")
    assert health.broker_accepts_connections() == "waiting: celery 1"


def test_no_worker_is_reported(app_in_memory):
    with pytest.raises(Unhealthy, match="no worker answers"):
        health.a_worker_replies()


def test_beat_is_no_worker(app_in_memory):
    beat = BeatPidbox(Service(app_in_memory))
    beat.join_timeout = PATIENCE_SECONDS
    beat.start()
    try:
        # Until its thread listens, nobody hears the question.
        assert any(app_in_memory.control.inspect(timeout=1, limit=1).ping() for _ in range(30))
        with pytest.raises(Unhealthy, match="no worker answers"):
            health.a_worker_replies()
    finally:
        beat.stop()


def test_one_worker_is_enough(app_in_memory, monkeypatch):
    # The first answer ends the wait.
    monkeypatch.setattr(health, "REPLY_SECONDS", PATIENCE_SECONDS)
    with start_worker(app_in_memory, pool="solo", perform_ping_check=False, shutdown_timeout=PATIENCE_SECONDS):
        health.a_worker_replies()


@pytest.mark.django_db
def test_queues_cannot_be_looked_at_without_the_broker(nobody_listens):
    with pytest.raises(Unhealthy, match="without the broker"):
        health.each_queue_has_a_worker()


@pytest.mark.django_db(transaction=True)
def test_queues_that_no_worker_takes_from_are_reported(app_in_memory, monkeypatch):
    health.each_queue_has_a_worker()
    for queue in ("celery", "emials", "emials"):
        app_in_memory.send_task("some.task", queue=queue)
    monkeypatch.setattr("apps.tasks.sending.unattended.REPLY_SECONDS", 0.1)
    with pytest.raises(Unhealthy, match=r"no worker takes from celery \(1 waiting\), emials \(2 waiting\)"):
        health.each_queue_has_a_worker()


def test_tasks_that_run_at_once_need_none_of_them(nobody_listens, monkeypatch):
    monkeypatch.setitem(current_app.conf, "task_always_eager", True)
    health.broker_accepts_connections()
    health.each_queue_has_a_worker()
    health.a_worker_replies()

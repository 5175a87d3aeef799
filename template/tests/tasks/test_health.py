"""The health page knows about the broker and the workers."""

import pytest

pytest.importorskip("celery")

from celery import Celery, current_app
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


@pytest.fixture
def app_in_memory(monkeypatch):
    """Make an app with a broker inside this process the current one, and return it."""
    monkeypatch.setenv("CELERY_BROKER_URL", "memory://")
    project = current_app._get_current_object()
    app = Celery(project.main, set_as_current=True)
    # The default of a second between two looks would be longer than the health check waits.
    app.conf.broker_transport_options = {"polling_interval": 0.05}
    yield app
    project.set_current()


def test_both_are_on_the_page():
    assert {"broker", "workers"} <= set(checks)


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


def test_tasks_that_run_at_once_need_neither(nobody_listens, monkeypatch):
    monkeypatch.setitem(current_app.conf, "task_always_eager", True)
    health.broker_accepts_connections()
    health.a_worker_replies()

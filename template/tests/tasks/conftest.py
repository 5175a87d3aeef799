"""What the tests of tasks share."""

from types import SimpleNamespace

import pytest

pytest.importorskip("celery")

from celery import Celery, current_app
from kombu.exceptions import OperationalError
from kombu.transport import memory

from apps.tasks.sending import unattended


@pytest.fixture
def broker(monkeypatch):
    """Return a broker that keeps the messages in a list, and is away while `away` is true."""
    broker = SimpleNamespace(messages=[], calls=[], attempts=0, away=False)

    def send_task(app, name, args=None, kwargs=None, task_id=None, **options):
        broker.attempts += 1
        if broker.away:
            raise OperationalError("Connection refused")
        broker.messages.append(SimpleNamespace(name=name, args=args, kwargs=kwargs, task_id=task_id, options=options))
        broker.calls.append((name, args, kwargs))
        return app.AsyncResult(task_id)

    monkeypatch.setattr("celery.Celery.send_task", send_task)
    return broker


@pytest.fixture
def ten_minutes(monkeypatch):
    """Let the broker deliver a message again after ten minutes."""
    monkeypatch.setitem(current_app.conf.broker_transport_options, "visibility_timeout", 600)


@pytest.fixture
def app_in_memory(monkeypatch):
    """Make an app with an empty broker inside this process the current one, and return it."""
    monkeypatch.setenv("CELERY_BROKER_URL", "memory://")
    project = current_app._get_current_object()
    app = Celery(project.main, set_as_current=True)
    # The default of a second between two looks would be longer than the health check waits.
    app.conf.broker_transport_options = {"polling_interval": 0.05}
    # What other apps have sent.
    monkeypatch.setattr(unattended, "_note_again", {})
    memory.Channel.queues.clear()
    memory.Transport.global_state.clear()
    yield app
    project.set_current()
    # A worker makes its app that of all threads.
    project.set_default()

"""What the tests of tasks share."""

from types import SimpleNamespace

import pytest

pytest.importorskip("celery")

from celery import current_app
from kombu.exceptions import OperationalError


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

"""A worker is patient with its broker, and gives back what it cannot finish."""

from types import SimpleNamespace
from unittest.mock import Mock

import pytest

pytest.importorskip("celery")

from celery import Celery
from celery.signals import worker_shutting_down
from celery.worker import state

from apps.tasks import stopping
from apps.tasks.broker import WORKER_SECONDS


@pytest.fixture
def worker(monkeypatch):
    """A worker with two processes and a queue that are not there; `events` holds what happens to them."""
    monkeypatch.setattr(state, "should_terminate", None)
    monkeypatch.setattr(worker_shutting_down, "receivers", [])
    events = Mock()
    monkeypatch.setattr("os._exit", events.exit)
    monkeypatch.setattr("os.kill", lambda pid, number: events.kill(pid, number.name))
    app = Celery("stopping", broker="redis://127.0.0.1:1/0", set_as_current=False)
    pool = SimpleNamespace(_pool=SimpleNamespace(_pool=[SimpleNamespace(pid=11), SimpleNamespace(pid=12)]))
    consumer = SimpleNamespace(task_consumer=SimpleNamespace(channel=SimpleNamespace(qos=events)))
    return SimpleNamespace(app=app, pool=pool, consumer=consumer, events=events)


def happened(worker):
    return [(name, *args) for name, args, _ in worker.events.mock_calls]


KILLED = [("kill", 11, "SIGKILL"), ("kill", 12, "SIGKILL"), ("exit", 0)]


def test_a_worker_waits_longer_than_a_page(worker):
    stopping.Patience(worker)
    assert worker.app.conf.broker_transport_options["socket_timeout"] == WORKER_SECONDS
    assert worker.app.conf.broker_connection_timeout == WORKER_SECONDS


@pytest.mark.parametrize(("how", "given_back"), [("Warm", True), ("Cold", False)])
def test_when_its_time_is_over_it_gives_back_what_still_runs(worker, settings, monkeypatch, how, given_back):
    settings.WORKER_STOP_SECONDS = 7
    slept = []
    monkeypatch.setattr("_thread.start_new_thread", lambda run, arguments: run(*arguments))
    monkeypatch.setattr("time.sleep", slept.append)
    stopping.Patience(worker)
    worker_shutting_down.send(sender="worker", sig="SIGTERM", how=how, exitcode=0)
    assert slept == [7] * given_back
    assert (("restore_unacked",) in happened(worker)) == given_back


def test_processes_do_nothing_more_before_others_get_their_tasks(worker):
    stopping.give_back_and_leave(worker)
    stopped = [("kill", 11, "SIGSTOP"), ("kill", 12, "SIGSTOP")]
    assert happened(worker) == [*stopped, ("restore_unacked",), *KILLED]
    assert state.should_terminate


def test_a_pool_without_processes_gives_back_as_well(worker):
    worker.pool = SimpleNamespace()
    stopping.give_back_and_leave(worker)
    assert happened(worker) == [("restore_unacked",), ("exit", 0)]


def test_rabbitmq_gives_back_by_itself(worker):
    del worker.consumer.task_consumer.channel.qos
    stopping.give_back_and_leave(worker)
    assert happened(worker)[2:] == KILLED


def test_it_ends_even_if_the_broker_is_away(worker, caplog):
    worker.events.restore_unacked.side_effect = ConnectionError
    stopping.give_back_and_leave(worker)
    assert happened(worker)[-3:] == KILLED and "Not all could be given back" in caplog.text

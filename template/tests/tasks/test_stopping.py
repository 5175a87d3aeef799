"""A worker is patient with its broker, and gives back what it cannot finish."""

import importlib.util
import os
import signal
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

pytest.importorskip("celery")

from celery import Celery
from celery.bootsteps import RUN, TERMINATE
from celery.signals import worker_shutting_down
from celery.worker import state
from kombu import Message
from kombu.asynchronous import Hub

from apps.tasks.broker.options import WORKER_SECONDS
from apps.tasks.worker import stopping


def process(pid):
    """A process of a pool that has said nothing."""
    return SimpleNamespace(pid=pid, outq=SimpleNamespace(_reader=SimpleNamespace(poll=Mock(return_value=False))))


@pytest.fixture
def worker(monkeypatch):
    """A worker with two processes and a queue that are not there; `events` holds what happens to them."""
    monkeypatch.setattr(state, "should_terminate", None)
    monkeypatch.setattr(state, "active_requests", set())
    monkeypatch.setattr(worker_shutting_down, "receivers", [])
    events = Mock()
    monkeypatch.setattr("os._exit", events.exit)
    monkeypatch.setattr("os.kill", lambda pid, number: events.kill(pid, number.name))
    app = Celery("stopping", broker="redis://127.0.0.1:1/0", set_as_current=False)
    pool = SimpleNamespace(_pool=SimpleNamespace(_pool=[process(11), process(12)]))
    channel, blueprint = SimpleNamespace(qos=events), SimpleNamespace(state=TERMINATE)
    consumer = SimpleNamespace(task_consumer=SimpleNamespace(channel=channel), blueprint=blueprint)
    return SimpleNamespace(app=app, pool=pool, consumer=consumer, hub=Hub(), events=events)


def happened(worker):
    return [(name, *args) for name, args, _ in worker.events.mock_calls]


KILLED = [("kill", 11, stopping.KILL.name), ("kill", 12, stopping.KILL.name), ("exit", 0)]


def test_a_worker_waits_longer_than_a_page(worker):
    stopping.Patience(worker)
    assert worker.app.conf.broker_transport_options["socket_timeout"] == WORKER_SECONDS
    assert worker.app.conf.broker_connection_timeout == WORKER_SECONDS


def test_an_answer_that_the_broker_does_not_take_is_dropped(worker, monkeypatch, caplog):
    monkeypatch.setattr("kombu.pidbox.Node.reply", Mock(side_effect=ConnectionError("It takes nothing.")))
    stopping.Patience(worker)
    worker.consumer.connection_errors, worker.consumer.channel_errors = (ConnectionError,), ()
    worker.app.control.mailbox.Node("one", SimpleNamespace(consumer=worker.consumer)).reply({}, "to", "me", "1")
    assert "It takes nothing." in caplog.text


@pytest.mark.parametrize("pool", [SimpleNamespace(), SimpleNamespace(_pool=None), SimpleNamespace(_pool=object())])
def test_a_pool_without_processes_stays_as_it_is(worker, pool):
    worker.pool = pool
    stopping.Patience(worker).close(worker)


class Clock:
    """A clock that only a sleep moves on, and what happens at its seconds."""

    def __init__(self):
        self.seconds = 0
        self.at = {}

    def monotonic(self):
        return self.seconds

    def sleep(self, seconds):
        self.seconds += seconds
        self.at.get(self.seconds, bool)()


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(stopping, "time", clock)
    monkeypatch.setattr("_thread.start_new_thread", lambda run, arguments: run(*arguments))
    monkeypatch.setattr(state, "reserved_requests", set())
    return clock


def stop(worker, how="Warm"):
    stopping.Patience(worker)
    worker_shutting_down.send(sender="worker", sig="SIGTERM", how=how, exitcode=0)


def test_when_its_time_is_over_it_gives_back_what_still_runs(worker, settings, clock):
    settings.WORKER_STOP_SECONDS = 25
    state.reserved_requests.add("a task without an end")
    stop(worker)
    assert int(clock.seconds) == 25 and ("restore_unacked",) in happened(worker)


def test_when_it_has_nothing_to_do_and_the_broker_hangs_it_leaves_sooner(worker, settings, clock):
    settings.WORKER_STOP_SECONDS = 300
    state.reserved_requests.add("a task that ends")
    clock.at[20] = state.reserved_requests.clear
    stop(worker)
    assert 20 < int(clock.seconds) <= 20 + stopping.GOODBYE_SECONDS and happened(worker)[-1] == ("exit", 0)


def test_at_a_cold_stop_celery_ends_the_tasks_by_itself(worker, clock):
    stop(worker, how="Cold")
    assert not happened(worker)


@pytest.mark.skipif(os.name != "posix", reason="Windows cannot stop a process.")
def test_processes_do_nothing_more_before_others_get_their_tasks(worker):
    stopping.give_back_and_leave(worker)
    stopped = [("kill", 11, "SIGSTOP"), ("kill", 12, "SIGSTOP")]
    assert happened(worker) == [*stopped, ("restore_unacked",), *KILLED]
    assert state.should_terminate


class Taken(Message):
    """A message whose task has ended; its acknowledgement waits for the event loop."""

    def __init__(self, worker):
        super().__init__()
        self.worker = worker
        worker.hub.call_soon(self.ack_log_error)

    def ack_log_error(self):
        self.worker.events.acknowledge()


def test_what_has_ended_is_read_and_acknowledged_before_the_rest_is_given_back(worker):
    unread = worker.pool._pool._pool[1].outq._reader.poll
    # Its last word is read, and only then known to have an acknowledgement.
    unread.side_effect = [True, True, False]
    worker.events.kill.side_effect = lambda pid, name: Taken(worker) if (pid, name) == (12, "SIGSTOP") else None
    stopping.give_back_and_leave(worker)
    order = [what for what, *_ in happened(worker) if what != "kill"]
    assert order == ["acknowledge", "restore_unacked", "exit"]
    assert unread.call_count == 3


def test_what_ends_while_it_stops_is_acknowledged_at_once(worker, settings, clock):
    settings.WORKER_STOP_SECONDS = 25
    state.reserved_requests.add("a task without an end")
    clock.at[3] = lambda: Taken(worker)
    clock.at[4] = lambda: worker.events.later()
    stop(worker)
    assert happened(worker)[:2] == [("acknowledge",), ("later",)]


def test_the_connection_is_left_to_the_main_thread_until_the_consumer_has_stopped(worker):
    Taken(worker)
    worker.consumer.blueprint.state = RUN
    stopping.give_back_and_leave(worker)
    assert ("acknowledge",) not in happened(worker)


def test_results_of_all_processes_are_read_as_soon_as_they_are_there(worker):
    silent, talking = worker.pool._pool._pool
    talking.outq._reader.poll.return_value = True
    closed = process(13)
    closed.outq._reader.poll.side_effect = OSError
    read = Mock(return_value="read")
    worker.pool._pool._result_handler = SimpleNamespace(_flush_outqueue=read, check_timeouts=read)
    stopping.Patience(worker).close(worker)
    flush = worker.pool._pool._result_handler._flush_outqueue
    processes = {1: silent, 2: talking, 3: closed}
    assert worker.pool._pool._result_handler.check_timeouts is None
    # Celery knows what to do with a process that is gone.
    assert [flush(fd, None, processes, None) for fd in (1, 2, 3, 4)] == [None, "read", "read", "read"]


def test_a_pool_without_processes_gives_back_as_well(worker):
    worker.pool = SimpleNamespace()
    stopping.give_back_and_leave(worker)
    assert happened(worker) == [("restore_unacked",), ("exit", 0)]


def test_rabbitmq_gives_back_by_itself(worker):
    del worker.consumer.task_consumer.channel.qos
    stopping.give_back_and_leave(worker)
    assert happened(worker)[-3:] == KILLED


def test_it_leaves_when_acknowledging_fails_and_not_before_its_time(worker, settings, clock, monkeypatch):
    settings.WORKER_STOP_SECONDS = 25
    state.reserved_requests.add("a task without an end")
    monkeypatch.setattr(stopping, "_acknowledge", Mock(side_effect=RuntimeError("a mistake")))
    stop(worker)
    assert int(clock.seconds) == 25 and ("restore_unacked",) in happened(worker)


def test_it_ends_even_if_the_broker_is_away(worker, caplog):
    worker.events.restore_unacked.side_effect = ConnectionError
    stopping.give_back_and_leave(worker)
    assert happened(worker)[-3:] == KILLED and "Not all could be given back" in caplog.text


class Changing(set):
    """A set that another thread changes while somebody goes through it for the first time."""

    is_changed = False

    def __iter__(self):
        if not self.is_changed:
            self.is_changed = True
            raise RuntimeError("Set changed size during iteration")
        return super().__iter__()


class Running:
    """A task that runs."""

    _message = SimpleNamespace(delivery_tag="tag")

    def humaninfo(self):
        return "ship[1]"


def test_what_runs_is_given_back_while_another_thread_changes_the_set_of_it(worker, monkeypatch, caplog):
    worker.events._delivered = {}
    monkeypatch.setattr(state, "active_requests", Changing([Running()]))
    stopping.give_back_and_leave(worker)
    assert ("restore_unacked",) in happened(worker)
    # It came by a connection that was lost meanwhile.
    assert list(worker.events._delivered) == ["tag"] and "ship[1]" in caplog.text


@pytest.mark.parametrize("step", ["_read_results", "_tell", "_acknowledge", "in_words", "_has_result"])
def test_one_step_that_fails_stops_no_other(worker, monkeypatch, step):
    monkeypatch.setattr(state, "active_requests", Changing([Running()]))
    worker.events._delivered = {}
    monkeypatch.setattr(stopping, step, Mock(side_effect=RuntimeError("a mistake")))
    stopping.give_back_and_leave(worker)
    assert ("restore_unacked",) in happened(worker) and happened(worker)[-3:] == KILLED


def test_a_process_that_cannot_be_stopped_stops_no_giving_back(worker, monkeypatch):
    monkeypatch.setattr("os.kill", Mock(side_effect=[PermissionError, None, None]))
    stopping.give_back_and_leave(worker)
    assert happened(worker) == [("restore_unacked",), ("exit", 0)]


def test_it_ends_even_if_a_process_cannot_be_killed(worker, monkeypatch):
    monkeypatch.setattr("os.kill", Mock(side_effect=PermissionError))
    with pytest.raises(PermissionError):
        stopping.give_back_and_leave(worker)
    assert happened(worker)[-1] == ("exit", 0)


@pytest.fixture
def on_windows(monkeypatch):
    """The module as it is where these signals do not exist."""
    monkeypatch.delattr(signal, "SIGSTOP", raising=False)
    monkeypatch.delattr(signal, "SIGKILL", raising=False)
    spec = importlib.util.spec_from_file_location("apps.tasks.worker.stopping_on_windows", stopping.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_on_windows_a_worker_gives_back_and_leaves(worker, on_windows):
    worker.pool = SimpleNamespace()
    on_windows.give_back_and_leave(worker)
    assert happened(worker) == [("restore_unacked",), ("exit", 0)]


def test_on_windows_processes_are_ended_with_the_signal_that_is_there(worker, on_windows):
    on_windows.give_back_and_leave(worker)
    assert happened(worker) == [("restore_unacked",), ("kill", 11, "SIGTERM"), ("kill", 12, "SIGTERM"), ("exit", 0)]

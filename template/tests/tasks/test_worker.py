"""A worker does not start where tasks would be lost, and shows whether it takes any."""

import logging
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

pytest.importorskip("celery")

from celery import current_app
from celery.concurrency.prefork import TaskPool as Prefork
from celery.concurrency.solo import TaskPool as Solo
from celery.concurrency.thread import TaskPool as Threads
from celery.exceptions import WorkerShutdown

from apps.tasks.worker import alive
from apps.tasks.worker import conditions as worker

SAFE = {"maxmemory_policy": "noeviction", "aof_enabled": 1}
# What the monotonic clock shows, which stands still.
NOW = 1000.0


@pytest.fixture
def consumer(tmp_path, monkeypatch):
    """Return what the steps see of a worker on prefork that has just connected to a Redis where tasks are safe."""
    monkeypatch.setenv(alive.DIRECTORY_VARIABLE, str(tmp_path))
    monkeypatch.setattr(worker, "monotonic", lambda: NOW)
    channel = Mock(_brpop_sent_at=NOW)
    channel.conn_or_acquire = lambda: nullcontext(channel)
    channel.info.return_value = SAFE
    connection = SimpleNamespace(transport=SimpleNamespace(driver_type="redis"), default_channel=channel)
    return Mock(
        app=current_app,
        channel_errors=(PermissionError,),
        connection=connection,
        hub=object(),
        initial_prefetch_count=2,
        pool=object.__new__(Prefork),
        restart_count=0,
        task_consumer=SimpleNamespace(channel=channel, queues=[SimpleNamespace(name="celery")]),
    )


def start(consumer):
    worker.Conditions(consumer).start(consumer)


# Where tasks are safe --------------------------------------------------------


def test_a_safe_place_is_worth_no_word(consumer, caplog):
    start(consumer)
    assert not caplog.records


def test_a_redis_that_evicts_queues_is_refused(consumer, caplog):
    consumer.connection.default_channel.info.return_value = SAFE | {"maxmemory_policy": "allkeys-lru"}
    with pytest.raises(WorkerShutdown):
        start(consumer)
    assert "Set it to noeviction" in caplog.text


def test_a_worker_that_runs_already_does_not_end_for_it(consumer, caplog):
    consumer.connection.default_channel.info.return_value = SAFE | {"maxmemory_policy": "allkeys-lru"}
    consumer.restart_count = 1
    start(consumer)
    assert "Set it to noeviction" in caplog.text


@pytest.mark.parametrize("info", [{"maxmemory_policy": "volatile-lru"}, {"aof_enabled": 0}])
def test_a_redis_that_may_forget_is_a_warning(consumer, caplog, info):
    consumer.connection.default_channel.info.return_value = SAFE | info
    start(consumer)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_redis_that_tells_nothing_is_a_warning(consumer, caplog):
    consumer.connection.default_channel.info.side_effect = PermissionError("no INFO for you")
    start(consumer)
    assert "no INFO for you" in caplog.text


def test_what_a_hosted_redis_hides_is_no_reason_to_complain():
    assert worker.redis_problems({}) == ([], [])


@pytest.mark.parametrize("pool", [Solo, Threads])
def test_a_pool_without_time_limits_says_so(consumer, caplog, pool, monkeypatch):
    monkeypatch.setitem(current_app.conf, "task_time_limit", 300)
    consumer.pool = object.__new__(pool)
    start(consumer)
    assert "does not enforce CELERY_TASK_TIME_LIMIT" in caplog.text


def test_a_pool_that_drops_tasks_on_a_signal_is_refused(consumer, caplog, monkeypatch):
    monkeypatch.setattr(worker, "REMAP_SIGTERM", "SIGQUIT")
    start(consumer)
    consumer.pool = object.__new__(Threads)
    with pytest.raises(WorkerShutdown):
        start(consumer)
    assert "remove that from the environment" in caplog.text


# Signs of life ---------------------------------------------------------------


def test_a_worker_that_asks_for_tasks_is_alive(consumer):
    assert alive.problem("worker")
    worker._look(consumer)
    assert alive.problem("worker") is None


def test_a_worker_whose_redis_does_not_answer_is_not(consumer):
    channel = consumer.task_consumer.channel
    channel._brpop_sent_at -= 60
    channel.qos.can_consume.return_value = True
    worker._look(consumer)
    assert alive.problem("worker")


def test_a_worker_whose_places_are_taken_is_alive(consumer):
    channel = consumer.task_consumer.channel
    channel._brpop_sent_at -= 60
    channel.qos.can_consume.return_value = False
    worker._look(consumer)
    assert alive.problem("worker") is None


@pytest.mark.parametrize("held, slots, is_alive", [(1, 2, True), (2, 2, False), (9, 0, True)])
def test_a_worker_whose_places_are_held_by_failed_tasks_for_long_is_not(consumer, monkeypatch, held, slots, is_alive):
    consumer.initial_prefetch_count = slots
    monkeypatch.setattr(worker, "held_for_long", lambda: held)
    worker._look(consumer)
    assert (alive.problem("worker") is None) == is_alive


def test_a_worker_that_lost_rabbitmq_is_not(consumer):
    consumer.connection.transport.driver_type = "amqp"
    consumer.task_consumer.channel.queue_declare.side_effect = ConnectionError
    with pytest.raises(ConnectionError):
        worker._look(consumer)
    assert alive.problem("worker")


def test_the_looks_end_with_the_connection(consumer):
    step = worker.Upkeep(consumer)
    step.start(consumer)
    step.stop(consumer)
    consumer.timer.call_repeatedly.return_value.cancel.assert_called_once()

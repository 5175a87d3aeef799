"""Tasks are sent when what they read is committed, and a broker that is away is answered for."""

import logging
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

pytest.importorskip("celery")

from celery import shared_task
from django.db import transaction
from kombu.exceptions import OperationalError

from apps.tasks.sending import RetryingTask, send

pytestmark = pytest.mark.django_db(transaction=True)


class Busy(Exception):
    """What another system answers that is to be asked again."""


def call_other_system(): ...


@shared_task(name="tests.sending.greet")
def greet(name, times=1): ...


@shared_task(name="tests.sending.ask", base=RetryingTask, autoretry_for=(Busy,))
def ask():
    call_other_system()


@pytest.fixture
def broker(monkeypatch):
    """Return a broker that keeps the messages in a list, and is away while `away` is true."""
    broker = SimpleNamespace(messages=[], away=False)

    def apply_async(task, args, kwargs):
        if broker.away:
            raise OperationalError("Connection refused")
        broker.messages.append((task.name, tuple(args), kwargs))

    monkeypatch.setattr("celery.Task.apply_async", apply_async)
    return broker


@pytest.fixture
def other_system(monkeypatch):
    """Return what the task `ask` calls; its side effects are the answers."""
    mock = Mock()
    monkeypatch.setattr(f"{__name__}.call_other_system", mock)
    return mock


def test_a_task_is_sent_at_once_where_there_is_no_transaction(broker):
    send(greet, "Jane", times=2)
    assert broker.messages == [("tests.sending.greet", ("Jane",), {"times": 2})]


def test_a_task_is_sent_when_the_transaction_is_committed(broker):
    with transaction.atomic():
        send(greet, "Jane")
        assert broker.messages == []
    assert len(broker.messages) == 1


def test_a_rollback_sends_nothing(broker):
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        send(greet, "Jane")
        raise ZeroDivisionError
    assert broker.messages == []


def test_a_broker_that_is_away_is_answered_for(broker, caplog):
    broker.away = True
    told = []
    send(greet, "Jane", on_failure=partial(told.append, "not sent"))
    assert told == ["not sent"]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "tests.sending.greet" in caplog.text and "Jane" not in caplog.text


def test_a_broker_that_is_away_raises_nothing_and_holds_nobody_up(broker):
    broker.away = True
    called = []
    with transaction.atomic():
        send(greet, "Jane")
        transaction.on_commit(partial(called.append, "next"))
    assert called == ["next"]


def test_nothing_is_answered_for_where_all_is_well(broker):
    send(greet, "Jane", on_failure=pytest.fail)
    assert len(broker.messages) == 1


def test_a_task_that_talks_to_others_is_tried_again(other_system):
    other_system.side_effect = [Busy, Busy, None]
    assert ask.apply().successful()
    assert other_system.call_count == 3


def test_a_task_is_given_up_after_six_retries(other_system):
    other_system.side_effect = Busy
    assert isinstance(ask.apply().result, Busy)
    assert other_system.call_count == 7


def test_a_mistake_is_not_tried_again(other_system):
    other_system.side_effect = KeyError
    assert isinstance(ask.apply().result, KeyError)
    assert other_system.call_count == 1


def test_each_retry_waits_longer_by_a_random_part(other_system, monkeypatch):
    longest_waits = []
    monkeypatch.setattr("random.randrange", lambda end: longest_waits.append(end - 1) or 0)
    other_system.side_effect = [*[Busy] * 6, None]
    ask.apply()
    assert longest_waits == [1, 2, 4, 8, 16, 32]

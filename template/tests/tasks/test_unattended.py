"""A queue that the settings do not have is remembered when it is sent to, and named while no worker takes from it."""

import asyncio
import logging
from datetime import timedelta
from threading import Event

import pytest

pytest.importorskip("celery")

from django.db import transaction
from django.utils import timezone
from kombu import Queue

from apps.tasks.models import UnknownQueue
from apps.tasks.sending import unattended
from apps.tasks.sending.unattended import Watch

TYPO = "A task goes to the queue emials, which the settings do not have. Correct the name"


class Stop(Exception):
    """What rolls a transaction back."""


@pytest.fixture(autouse=True)
def app(app_in_memory, monkeypatch):
    """The app, whose workers answer at once if at all."""
    monkeypatch.setattr(unattended, "REPLY_SECONDS", 0.1)
    return app_in_memory


def remembered():
    return list(UnknownQueue.objects.values_list("name", flat=True))


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("queue", ["emials", Queue("emials")])
def test_a_queue_that_the_settings_do_not_have_is_told_of_and_remembered(app, caplog, django_assert_num_queries, queue):
    app.send_task("some.task", queue=queue)
    with django_assert_num_queries(0):
        app.send_task("some.task", queue=queue)
    assert caplog.text.count(TYPO) == 1
    assert remembered() == ["emials"]
    assert unattended.unattended() == {"emials": 2}


@pytest.mark.django_db
def test_a_queue_of_the_settings_costs_no_query(app, caplog, django_assert_num_queries):
    app.conf.task_queues = [Queue("celery"), Queue("reports")]
    with django_assert_num_queries(0):
        app.send_task("some.task")
        app.send_task("some.task", queue="reports")
    assert "A task goes to" not in caplog.text
    assert unattended.unattended() == {"celery": 1, "reports": 1}


@pytest.mark.django_db(transaction=True)
def test_a_transaction_that_is_rolled_back_takes_no_queue_with_it_for_good(app):
    with pytest.raises(Stop), transaction.atomic():
        app.send_task("some.task", queue="emials")
        raise Stop
    assert remembered() == []
    with transaction.atomic():
        app.send_task("some.task", queue="emials")
    assert remembered() == ["emials"]


@pytest.mark.django_db(transaction=True)
def test_a_coroutine_may_send_to_it(app):
    async def send():
        app.send_task("some.task", queue="emials")

    asyncio.run(send())
    assert remembered() == ["emials"]


def test_a_task_is_sent_though_the_database_fails(app, caplog):
    # A test that does not ask for the database gets an error from it.
    app.send_task("some.task", queue="emials")
    assert "The queue emials is not remembered" in caplog.text
    with app.connection_for_read() as connection:
        assert unattended.queue_state(connection, "emials") == (1, None)


# Beat -----------------------------------------------------------------------


def told(watch, caplog, *found):
    """What the log says after looks that found these queues."""
    caplog.clear()
    for each in found:
        watch.report(each)
    return caplog.messages


def test_what_two_looks_find_is_logged_once_and_when_it_is_over(caplog):
    caplog.set_level(logging.INFO)
    watch, left = Watch(), {"celery": 3}
    assert told(watch, caplog, left, {}, left) == []
    [message] = told(watch, caplog, left, left)
    assert message.startswith("No worker takes from the queue celery (3 waiting). Start a worker")
    assert told(watch, caplog, {}, {}) == ["The queue celery is empty, or a worker takes from it."]


def test_a_look_waits_until_the_one_before_has_ended(monkeypatch):
    looks, answered = [], Event()
    monkeypatch.setattr(unattended, "LOOK_SECONDS", 0)
    monkeypatch.setattr(Watch, "_look", lambda watch: (looks.append(1), answered.wait()))
    watch = Watch()
    watch.go_on()
    watch.go_on()
    answered.set()
    watch._look_under_way.join()
    assert len(looks) == 1
    watch.go_on()
    watch._look_under_way.join()
    assert len(looks) == 2


@pytest.mark.django_db(transaction=True)
def test_a_look_forgets_what_was_sent_to_long_ago_and_is_empty(app):
    app.send_task("some.task", queue="emials")
    UnknownQueue.objects.create(name="empty", sent_at=timezone.now())
    UnknownQueue.objects.create(name="old", sent_at=timezone.now())
    UnknownQueue.objects.exclude(name="empty").update(sent_at=timezone.now() - timedelta(days=8))
    Watch()._look()
    assert sorted(remembered()) == ["emials", "empty"]


@pytest.mark.django_db(transaction=True)
def test_looks_that_fail_are_logged_once(monkeypatch, caplog):
    monkeypatch.setenv("CELERY_BROKER_URL", "amqp://127.0.0.1:1//")
    watch = Watch()
    watch._look()
    watch._look()
    assert caplog.text.count("The queues could not be looked at") == 1

"""Tasks are sent when what they read is committed, and a broker that is away is answered for."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from unittest.mock import Mock

import pytest

pytest.importorskip("celery")

from celery import chord, current_app, group, shared_task
from celery.app.trace import trace_task
from celery.exceptions import Reject, Retry, SoftTimeLimitExceeded
from celery.signals import before_task_publish
from django.db import transaction
from django.utils import timezone
from kombu import Queue
from kombu.exceptions import EncodeError, OperationalError

from apps.tasks.models import OutgoingTask, UnknownQueue
from apps.tasks.sending import ProjectTask, RetryingTask, outbox, send, unattended
from apps.web import clock
from tests.background import declared

pytestmark = pytest.mark.django_db(transaction=True)


class Stop(Exception):
    """What rolls a transaction back."""


class Busy(Exception):
    """What another system answers that is to be asked again."""


def call_other_system(): ...


@shared_task(name="tests.sending.greet_twice")
def greet_twice(again=True):
    if again:
        greet_twice(again=False)
        greet.delay("Jane")


@shared_task(name="tests.sending.greet")
def greet(name, times=1): ...


@shared_task(name="tests.sending.ask", base=RetryingTask, autoretry_for=(Busy,))
def ask():
    call_other_system()


@pytest.fixture
def other_system(monkeypatch):
    """Return what the task `ask` calls; its side effects are the answers."""
    mock = Mock()
    monkeypatch.setattr(f"{__name__}.call_other_system", mock)
    return mock


@pytest.fixture
def running():
    """Return the task `greet` as it is while a worker runs it."""
    greet.push_request(id="some-task", called_directly=False, delivery_info={}, args=["Jane"], kwargs={})
    yield greet
    greet.pop_request()


def rolled_back(action):
    with pytest.raises(Stop), transaction.atomic():
        action()
        raise Stop


def test_what_celery_takes_by_position_is_not_lost(broker):
    greet.apply_async(("Jane",), {}, "id", None, ask.s(), greet.s(), "shadow")
    [message] = broker.messages
    assert [message.options[name] for name in ("link", "link_error", "shadow")] == [ask.s(), greet.s(), "shadow"]


# Surroundings ---------------------------------------------------------------


@shared_task(name="tests.sending.look_around", ignore_result=False)
def look_around():
    return declared.look_around.call()


def test_a_task_finds_and_leaves_its_thread_as_the_settings_say():
    request = {"delivery_info": {}, "id": "look"}
    declared.check_isolation(
        lambda: [
            trace_task(look_around, "look", [], {}, request, app=current_app).retval,
            trace_task(look_around, "look", [], {}, request, app=current_app).retval,
            look_around.apply().result,
        ]
    )


# On commit ------------------------------------------------------------------


def test_a_task_is_sent_at_once_where_there_is_no_transaction(broker):
    send(greet, "Jane", times=2)
    greet.delay("Jane")
    assert broker.calls == [("tests.sending.greet", ["Jane"], {"times": 2}), ("tests.sending.greet", ("Jane",), {})]


@pytest.mark.parametrize("way", [partial(send, greet), greet.delay, greet.delay_on_commit])
def test_a_task_is_sent_when_the_transaction_is_committed(broker, way):
    with transaction.atomic():
        way("Jane")
        assert broker.calls == []
    assert broker.calls == [("tests.sending.greet", ["Jane"], {})]


def test_a_group_is_sent_when_the_transaction_is_committed(broker):
    with transaction.atomic():
        group(greet.s("Jane"), greet.s("Joe")).delay()
        assert broker.calls == []
    assert len(broker.calls) == 2


def test_the_parts_of_a_chord_keep_their_results_for_it(broker):
    chord([greet.s("Jane"), greet.s("John")])(greet.si("both"))
    assert [message.options["ignore_result"] for message in broker.messages] == [False, False]


def test_a_rollback_sends_nothing(broker):
    rolled_back(partial(send, greet, "Jane"))
    rolled_back(partial(greet.delay, "Jane"))
    with transaction.atomic():
        rolled_back(partial(greet.delay, "Jane"))
    assert broker.calls == []


def test_the_id_is_known_before_the_commit(broker):
    with transaction.atomic():
        result = greet.delay("Jane")
    assert broker.messages[0].task_id == result.id


def test_a_change_after_the_call_does_not_count(broker):
    names = ["Jane"]
    with transaction.atomic():
        greet.delay(names)
        names.append("Joe")
    assert broker.messages[0].args == [["Jane"]]


@pytest.mark.parametrize(("arguments", "error"), [([object()], EncodeError), ([], TypeError)])
def test_a_bad_argument_is_told_where_it_is_passed(arguments, error):
    with transaction.atomic(), pytest.raises(error):
        greet.delay(*arguments)


def test_the_connection_of_a_group_is_not_kept_until_the_commit(broker):
    with transaction.atomic():
        greet.apply_async(["Jane"], producer=Mock(), connection=Mock())
    assert "connection" not in broker.messages[0].options and broker.messages[0].options["producer"] is None


def test_a_limit_that_redis_does_not_wait_for_is_refused_where_it_is_given(broker, ten_minutes):
    greet.apply_async(("Jane",), time_limit=599)
    with pytest.raises(ValueError, match="greet cannot be given 600 s: Redis delivers it again after 600 s"):
        greet.apply_async(("Jane",), time_limit=600)
    assert len(broker.messages) == 1


def test_seconds_count_from_the_call(broker):
    before = clock.now()
    with transaction.atomic():
        greet.apply_async(["Jane"], countdown=5, expires=60)
    options = broker.messages[0].options
    assert timedelta(seconds=5) <= options["eta"] - before < options["expires"] - before
    assert "countdown" not in options


@pytest.mark.parametrize("in_transaction", [True, False])
def test_rabbitmq_waits_for_a_second_where_less_is_left(broker, monkeypatch, in_transaction):
    monkeypatch.setattr(current_app.conf, "broker_url", "amqp://guest:guest@127.0.0.1:1//")
    with transaction.atomic() if in_transaction else nullcontext():
        greet.apply_async(["Jane"], countdown=0.9)
    # Celery raises ValueError at less.
    assert (broker.messages[0].options["countdown"], broker.messages[0].options["eta"]) == (1, None)


def test_another_thread_is_outside_of_the_transaction(broker):
    with transaction.atomic(), ThreadPoolExecutor() as threads:
        threads.submit(greet.delay, "Jane").result()
        assert len(broker.calls) == 1


def test_a_test_without_commits_may_capture_them(broker, django_capture_on_commit_callbacks):
    with transaction.atomic():
        with django_capture_on_commit_callbacks(execute=True):
            greet.delay_on_commit("Jane")
            send(greet, "Joe")
        assert len(broker.calls) == 2


def test_an_eager_task_runs_on_commit(monkeypatch, other_system):
    monkeypatch.setitem(current_app.conf, "task_always_eager", True)
    with transaction.atomic():
        ask.delay()
        assert not other_system.called
    assert other_system.called


def test_a_task_that_is_a_class_is_sent_when_the_transaction_is_committed(broker):
    class Greet(ProjectTask):
        name = "tests.sending.greet_as_class"

        def run(self, name): ...

    task = Greet()
    task.bind(current_app._get_current_object())
    with transaction.atomic():
        task.delay("Jane")
    assert broker.calls == [(task.name, ["Jane"], {})]


# A broker that is away ------------------------------------------------------


def test_without_a_transaction_it_is_told(broker):
    broker.away = True
    with pytest.raises(OperationalError):
        greet.delay("Jane")
    assert not OutgoingTask.objects.exists()


def test_it_is_answered_for(broker, caplog):
    broker.away = True
    told = []
    send(greet, "Jane", on_failure=partial(told.append, "not sent"))
    assert told == ["not sent"] and not OutgoingTask.objects.exists()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "tests.sending.greet" in caplog.text and "Jane" not in caplog.text


@pytest.mark.parametrize("way", [partial(send, greet), greet.delay])
def test_after_a_commit_the_message_is_kept_and_nobody_is_held_up(broker, way):
    broker.away = True
    called = []
    with transaction.atomic():
        way("Jane")
        transaction.on_commit(partial(called.append, "next"))
    assert called == ["next"]
    assert OutgoingTask.objects.get().name == "tests.sending.greet"


def test_a_coroutine_may_send_as_well(broker):
    async def view():
        send(greet, "Jane")

    broker.away = True
    asyncio.run(view())
    assert OutgoingTask.objects.get().name == greet.name


def test_of_many_messages_of_a_commit_only_one_waits_for_it(broker):
    broker.away = True
    with transaction.atomic():
        for name in ("Jane", "Joe", "Jim"):
            greet.delay(name)
    assert broker.attempts == 1 and OutgoingTask.objects.count() == 3
    broker.away = False
    with transaction.atomic():
        greet.delay("Joy")
    assert len(broker.calls) == 1


def test_a_message_that_cannot_be_kept_either_is_told(broker, caplog, monkeypatch):
    broker.away = True
    monkeypatch.setattr("apps.tasks.sending.outbox.dumps", Mock(side_effect=EncodeError))
    with transaction.atomic():
        result = greet.delay("Jane")
    assert f"tests.sending.greet[{result.id}] is lost" in caplog.text


def test_nothing_is_answered_for_where_all_is_well(broker):
    send(greet, "Jane", on_failure=pytest.fail)
    assert len(broker.calls) == 1


# What follows a task, while the broker is away ------------------------------


def run_by_worker(task, *args, **request):
    """Run the task as a worker does; return the state in which it ends, None for success."""
    request = {"id": "some-task", "delivery_info": {}, "args": args, "kwargs": {}, **request}
    info = trace_task(task, "some-task", args, {}, request, app=current_app).info
    return info and info.state


@pytest.mark.parametrize("place", ["callbacks", "chain"])
def test_it_is_sent_later_and_its_sender_has_not_failed(broker, place):
    broker.away = True
    assert run_by_worker(greet, "Jane", **{place: [greet.si("next")]}) is None
    assert OutgoingTask.objects.get().message.count('"next"') == 1


def test_the_body_of_a_chord_is_sent_later(broker):
    chord([greet.s("Jane"), greet.s("Joe")])(greet.si("both"))
    parts = list(broker.messages)
    broker.away = True
    for part in parts:
        request = {"id": part.task_id, "group": part.options["group_id"], "chord": part.options["chord"]}
        trace_task(
            greet, part.task_id, part.args, {}, {"delivery_info": {}, "ignore_result": False} | request, app=current_app
        )
    assert OutgoingTask.objects.get().message.count('"both"') == 1


def test_a_task_that_runs_is_told_even_after_a_call_of_its_own_function(broker):
    broker.away = True
    assert run_by_worker(greet_twice) == "FAILURE"
    assert not OutgoingTask.objects.exists()


# Retries --------------------------------------------------------------------


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


def test_a_retry_survives_the_transaction_that_it_rolls_back(broker, running):
    with pytest.raises(Retry), transaction.atomic():
        running.retry(countdown=1)
    assert [message.task_id for message in broker.messages] == ["some-task"]


def test_a_retry_that_the_broker_does_not_take_goes_back_to_it(broker, running):
    broker.away = True
    with pytest.raises(Reject) as rejection:
        running.retry(countdown=1)
    assert rejection.value.requeue


def test_a_retry_of_a_task_that_was_acknowledged_early_is_a_failure_and_not_silence(broker, running, monkeypatch):
    broker.away = True
    monkeypatch.setattr(running, "acks_late", False)
    with pytest.raises(OperationalError):
        running.retry(countdown=1)


def test_a_mistake_in_a_retry_is_a_failure_and_not_silence(broker, running):
    with pytest.raises(TypeError):
        running.retry(args=[], kwargs={"nobody": 1})


# Long waits -----------------------------------------------------------------


def test_a_wait_that_the_broker_cannot_keep_is_waited_for_in_the_database(broker, ten_minutes):
    result = greet.apply_async(["Jane"], countdown=3600)
    row = OutgoingTask.objects.get()
    assert broker.calls == [] and row.task_id == result.id
    assert timedelta(minutes=54) < row.send_at - timezone.now() < timedelta(minutes=55)


def test_a_shorter_wait_is_the_broker_s(broker, ten_minutes):
    greet.apply_async(["Jane"], countdown=290)
    assert len(broker.calls) == 1


def test_a_broker_without_a_visibility_timeout_waits_as_long_as_it_takes(broker, monkeypatch):
    monkeypatch.delitem(current_app.conf.broker_transport_options, "visibility_timeout", raising=False)
    greet.apply_async(["Jane"], eta=timezone.now() + timedelta(days=7))
    assert len(broker.calls) == 1


def test_a_long_retry_waits_in_the_database_unless_a_transaction_takes_it_back(broker, running, ten_minutes):
    with pytest.raises(Retry):
        running.retry(countdown=3600)
    assert OutgoingTask.objects.get().task_id == "some-task"
    with transaction.atomic(), pytest.raises(ValueError, match=r"tests.sending.greet cannot wait.* call retry"):
        running.retry(countdown=3600)


def test_every_task_of_the_project_is_sent_like_this():
    assert isinstance(greet._get_current_object(), ProjectTask)


# Time limits and priorities ---------------------------------------------------


@pytest.mark.parametrize("is_committed", [False, True])
def test_the_soft_time_limit_of_a_task_that_sends_another_one_reaches_it(broker, monkeypatch, is_committed):
    monkeypatch.setattr("celery.Celery.send_task", Mock(side_effect=SoftTimeLimitExceeded))
    with pytest.raises(SoftTimeLimitExceeded), transaction.atomic() if is_committed else nullcontext():
        greet.delay("Jane")
    # What was committed still has its task: nobody knows whether the message is on its way.
    assert OutgoingTask.objects.count() == is_committed


@pytest.mark.parametrize("way", ["at once", "on commit", "outbox"])
def test_the_soft_time_limit_reaches_a_task_that_sends_to_an_unknown_queue(broker, monkeypatch, way):
    def send_task(*args, **options):
        before_task_publish.send(sender="", declare=[Queue("emials")])

    if way == "outbox":
        broker.away = True
        send(greet, "Jane")
    monkeypatch.setattr("celery.Celery.send_task", send_task)
    monkeypatch.setattr(unattended, "_note_again", {})
    monkeypatch.setattr(UnknownQueue.objects, "update_or_create", Mock(side_effect=SoftTimeLimitExceeded))
    with pytest.raises(SoftTimeLimitExceeded), transaction.atomic() if way == "on commit" else nullcontext():
        outbox.send_waiting() if way == "outbox" else greet.delay("Jane")
    # It is on its way.
    assert not OutgoingTask.objects.exists()


@pytest.mark.parametrize(("priority", "number"), [(None, None), (100, 1), (0, 3), (-100, 9)])
def test_send_takes_the_priorities_of_djangos_tasks(broker, priority, number):
    send(greet, "Jane", priority=priority)
    [message] = broker.messages
    assert message.options.get("priority") == number


@pytest.mark.parametrize("priority", [101, -101, 1.5, True])
def test_send_refuses_what_is_no_priority(broker, priority):
    with pytest.raises(ValueError, match="priority must be a whole number from -100 to 100"):
        send(greet, "Jane", priority=priority)

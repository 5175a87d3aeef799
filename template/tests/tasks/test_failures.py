"""A task that has failed for good is a row before its message goes, and can be sent again."""

import asyncio
import json
from contextlib import suppress
from datetime import timedelta
from io import StringIO
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

pytest.importorskip("celery")

from billiard.einfo import ExceptionInfo
from celery import current_app, shared_task
from celery.app.trace import trace_task
from celery.concurrency import solo
from celery.exceptions import Ignore, Reject, Retry, TimeLimitExceeded, WorkerLostError, WorkerShutdown
from celery.worker import state
from django.core.management import CommandError, call_command
from django.db import DataError, InterfaceError, ProgrammingError
from django.db import OperationalError as DatabaseIsAway
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext_lazy
from kombu import Message
from kombu.exceptions import OperationalError
from kombu.serialization import dumps

from apps.background.framework import task_finished
from apps.background.models import EnqueuedTask
from apps.tasks.console.tasks import prune_old_rows
from apps.tasks.models import FailedTask, OutgoingTask, ReturnedTask
from apps.tasks.sending import deliveries
from apps.tasks.worker import failures, readable, receiving, replay, rows, snapshot
from apps.users.models import User
from tests.background import declared

# Workers close their connections after each row, which a transaction around the test would not survive.
pytestmark = pytest.mark.django_db(transaction=True)


class Expected(Exception):
    """What a task raises in normal operation."""


shipped = []


@shared_task(name="tests.failures.ship", throws=(Expected,))
def ship(order, *, parcels=1):
    shipped.append(order)


@shared_task(name="tests.failures.be_raised")
def be_raised(error):
    raise ERRORS[error]


@shared_task(name="tests.failures.gossip", keep_failed=False)
def gossip(): ...


@pytest.fixture
def published(monkeypatch):
    """Return the list of what is published, which the broker takes unless `away` is set."""
    broker = SimpleNamespace(messages=[], away=False)

    def publish(producer, body, **options):
        if broker.away:
            raise OperationalError("Connection refused")
        broker.messages.append(SimpleNamespace(body=body, **options))

    monkeypatch.setattr("kombu.Producer.publish", publish)
    monkeypatch.setitem(current_app.conf, "broker_url", "memory://")
    return broker


@pytest.fixture
def make_request():
    """Return a function that makes the request of a message; `request.gone` tells how its message went."""

    def make(task=ship, args=(7,), kwargs=None, **headers):
        content_type, encoding, body = dumps((args, kwargs or {}, {"callbacks": None, "errbacks": None}), "json")
        headers = {
            "id": "some-id",
            "task": task.name,
            "argsrepr": repr(args),
            "kwargsrepr": repr(kwargs or {}),
        } | headers
        message = Message(
            body=body.encode(),
            content_type=content_type,
            content_encoding=encoding,
            headers=headers,
            properties={"correlation_id": "some-id", "priority": 3},
            delivery_info={"exchange": "", "routing_key": "parcels"},
        )
        gone = []
        request = failures.RecordingRequest(
            message,
            app=current_app._get_current_object(),
            task=task,
            hostname="celery@here",
            on_ack=lambda *args: gone.append("acknowledged"),
            on_reject=lambda logger, errors, requeue: gone.append("back" if requeue else "rejected"),
        )
        request.gone = gone
        return request

    return make


def raised(error):
    """Return the error as pools report it."""
    try:
        raise error
    except type(error):
        return ExceptionInfo()


@pytest.fixture
def failed(make_request):
    """Return the row of a task that has failed."""
    make_request(kwargs={"parcels": 2}).on_failure(raised(ValueError("no address")), return_ok=True)
    return FailedTask.objects.get()


# What becomes a row ---------------------------------------------------------


def test_the_row_says_what_failed_and_why(failed):
    assert (failed.name, failed.task_id, failed.args, failed.kwargs) == (ship.name, "some-id", "(7,)", "{'parcels': 2}")
    assert (failed.exception, failed.tries, failed.worker) == ("ValueError: no address", 1, "celery@here")
    assert "in raised" in failed.traceback


def test_the_row_comes_first_and_the_message_goes_then(make_request, monkeypatch):
    request = make_request()
    monkeypatch.setattr(request, "_on_ack", lambda *args: request.gone.append(FailedTask.objects.count()))
    request.on_failure(raised(ValueError()), return_ok=True)
    assert request.gone == [1]


@pytest.mark.parametrize("error", [Ignore(), Reject(), Reject(requeue=True), Retry(), Expected()])
def test_what_ends_otherwise_leaves_no_row(make_request, error):
    make_request().on_failure(raised(error), return_ok=True)
    assert not FailedTask.objects.exists()


def test_a_task_may_do_without(make_request):
    request = make_request(gossip, args=())
    request.on_failure(raised(ValueError()), return_ok=True)
    assert request.gone == ["acknowledged"]
    assert not FailedTask.objects.exists()


@pytest.mark.parametrize("pool_reports_twice", [True, False])
def test_a_time_limit_leaves_one_row(make_request, pool_reports_twice):
    request = make_request()
    if pool_reports_twice:
        request.on_failure(raised(TimeLimitExceeded(300)))
    request.on_timeout(soft=True, timeout=270)
    request.on_timeout(soft=False, timeout=300)
    assert request.gone == ["acknowledged"]
    assert FailedTask.objects.get().tries == 1


def test_retries_are_counted_and_a_second_failure_adds_up(make_request):
    for _ in range(2):
        make_request(retries=6).on_failure(raised(ValueError()), return_ok=True)
    failed = FailedTask.objects.get()
    assert failed.tries == 14
    assert failed.first_failed_at < failed.last_failed_at


def test_what_no_database_takes_as_text_is_written_all_the_same(make_request):
    make_request(args=("\x00",)).on_failure(raised(ValueError("\x00\udcff")), return_ok=True)
    assert FailedTask.objects.get().exception == "ValueError: \\x00\\udcff"


def test_a_durable_task_is_in_one_table_only(make_request):
    outgoing = OutgoingTask.objects.create(name=ship.name, task_id="some-id", send_at=timezone.now(), durable=True)
    make_request(outgoing=str(outgoing.pk)).on_failure(raised(ValueError()), return_ok=True)
    assert FailedTask.objects.exists() and not OutgoingTask.objects.exists()


# What becomes of the message ------------------------------------------------


@pytest.fixture
def later(monkeypatch):
    """Return the list of calls that wait for their time."""
    calls = []
    timer = SimpleNamespace(start=lambda: None)
    monkeypatch.setattr("threading.Timer", lambda seconds, call: calls.append(call) or timer)
    return calls


def test_a_message_stays_until_the_row_is_written(make_request, later, monkeypatch, caplog):
    request = make_request()
    with monkeypatch.context() as patch:
        patch.setattr(FailedTask.objects, "update_or_create", Mock(side_effect=DatabaseIsAway("disk full")))
        request.on_failure(raised(ValueError()), return_ok=True)
        assert request.gone == [] and "disk full" in caplog.text
    later.pop()()
    assert request.gone == ["acknowledged"]
    assert FailedTask.objects.exists()


@pytest.mark.parametrize("away", [InterfaceError("closed"), ProgrammingError("no table"), DatabaseIsAway("locked")])
def test_a_database_that_is_away_is_waited_for(make_request, later, monkeypatch, away):
    request = make_request()
    with monkeypatch.context() as patch:
        patch.setattr(FailedTask.objects, "update_or_create", Mock(side_effect=away))
        request.on_failure(raised(ValueError()), return_ok=True)
        assert request.gone == [] and len(later) == 1
    later.pop()()
    assert request.gone == ["acknowledged"] and FailedTask.objects.exists()


def test_a_row_that_the_database_refuses_is_replaced_by_a_smaller_one(make_request, later, monkeypatch, published):
    request, write = make_request(args=("\u2713",)), FailedTask.objects.update_or_create
    attempt = Mock(side_effect=[DataError("not in this encoding"), None])
    monkeypatch.setattr(FailedTask.objects, "update_or_create", lambda **row: attempt() or write(**row))
    request.on_failure(raised(ValueError("\u2713" * 999)), return_ok=True)
    assert request.gone == ["acknowledged"] and not later
    failed = FailedTask.objects.get()
    assert failed.exception.startswith("ValueError: \\u2713") and "not in this encoding" in failed.exception
    assert "\\u2713" in failed.args and replay.send_again(failed.pk)


def test_what_leaves_no_row_at_all_holds_no_message(make_request, later, monkeypatch, caplog):
    request = make_request()
    monkeypatch.setattr(FailedTask.objects, "update_or_create", Mock(side_effect=ValueError("a receiver's mistake")))
    request.on_failure(raised(ValueError()), return_ok=True)
    assert request.gone == ["acknowledged"] and not later
    assert "leaves no row" in caplog.text


def test_a_mistake_in_what_celery_does_at_the_end_holds_no_message(make_request, monkeypatch, caplog):
    request = make_request()
    monkeypatch.setattr(failures.Request, "on_failure", Mock(side_effect=ValueError("no result is stored")))
    request.on_failure(raised(ValueError()), return_ok=True)
    assert request.gone == ["acknowledged"] and "no result is stored" in caplog.text


def test_messages_that_are_held_for_long_are_counted(make_request, later, monkeypatch):
    request = make_request()
    with monkeypatch.context() as patch:
        patch.setattr(FailedTask.objects, "update_or_create", Mock(side_effect=DatabaseIsAway("locked")))
        request.on_failure(raised(ValueError()), return_ok=True)
        assert rows.held_for_long() == 0
        patch.setattr(rows, "PATIENCE_SECONDS", -1.0)
        assert rows.held_for_long() == 1
        later.pop()()
        assert rows.held_for_long() == 1
    later.pop()()
    assert not rows._held_since


def test_a_mistake_in_what_records_the_end_holds_no_message(make_request, later, monkeypatch, caplog):
    request = make_request()
    monkeypatch.setattr(ship, "record_end", Mock(side_effect=ValueError("a mistake")), raising=False)
    request.on_failure(raised(ValueError("no address")), return_ok=True)
    assert request.gone == ["acknowledged"] and not later
    assert FailedTask.objects.exists() and "a mistake" in caplog.text


def test_a_database_that_is_away_when_the_end_is_recorded_is_waited_for(make_request, later, monkeypatch):
    request = make_request()
    recorded = Mock(side_effect=[InterfaceError("connection already closed"), None])
    monkeypatch.setattr(ship, "record_end", recorded, raising=False)
    request.on_failure(raised(ValueError()), return_ok=True)
    assert request.gone == [] and not FailedTask.objects.exists()
    later.pop()()
    assert request.gone == ["acknowledged"] and FailedTask.objects.exists()


def test_a_task_that_lost_its_process_is_sent_again(make_request, published):
    request = make_request(retries=1)
    request.on_failure(raised(WorkerLostError("signal 9")))
    [message] = published.messages
    assert (message.headers["lost_workers"], message.headers["retries"]) == (1, 1)
    assert request.gone == ["acknowledged"]
    assert not FailedTask.objects.exists()


def test_a_task_that_kills_each_process_is_given_up(make_request, published, settings):
    settings.LOST_WORKERS_PER_TASK = 3
    request = make_request(lost_workers=2)
    request.on_failure(raised(WorkerLostError("signal 9")))
    assert request.gone == ["acknowledged"] and not published.messages
    failed = FailedTask.objects.get()
    assert failed.tries == 3 and "signal 9" in failed.exception


@pytest.mark.parametrize("error", [OperationalError("away"), AttributeError("a mistake")])
def test_a_message_goes_back_if_it_cannot_be_sent_again(make_request, monkeypatch, error):
    monkeypatch.setattr(failures, "publish", Mock(side_effect=error))
    request = make_request()
    request.on_failure(raised(WorkerLostError("signal 9")))
    assert request.gone == ["back"]


def test_a_process_that_dies_because_the_worker_ends_is_not_held_against_the_task(make_request, published, monkeypatch):
    monkeypatch.setattr(state, "should_terminate", 0)
    request = make_request(lost_workers=2)
    request.on_failure(raised(WorkerLostError("signal 9")))
    assert request.gone == ["back"] and not published.messages
    assert not FailedTask.objects.exists()


@pytest.fixture
def consumer(monkeypatch):
    """The part of a worker that receives messages, without a connection."""
    monkeypatch.setattr(receiving.Consumer, "on_close", lambda self: None)
    monkeypatch.setattr(receiving.Consumer, "on_connection_error_after_connected", lambda self, error: None)
    consumer = object.__new__(receiving.RecordingConsumer)
    consumer.connection_errors, consumer.channel_errors = (ConnectionError,), ()
    consumer.app = current_app
    consumer.pool, consumer.task_consumer = SimpleNamespace(), None
    return consumer


# Errors and messages from anywhere ------------------------------------------


class Odd(Exception):
    """An error whose text is whatever it is made of, and whose representation cannot be had."""

    def __str__(self):
        return self.args[0]() if callable(self.args[0]) else self.args[0]

    def __repr__(self):
        raise ValueError("no representation")


def break_down():
    raise ValueError("no text")


@pytest.mark.parametrize("text", [gettext_lazy("Delete"), None, 5, break_down])
def test_an_error_whose_text_cannot_be_read_leaves_a_row(make_request, later, text):
    request = make_request()
    request.on_failure(raised(Odd(text)), return_ok=True)
    assert request.gone == ["acknowledged"] and not later
    assert FailedTask.objects.get().exception.startswith("Odd: <its text cannot be read")


def test_a_task_without_a_readable_name_leaves_a_row(make_request, later, monkeypatch):
    request = make_request()
    monkeypatch.setattr(failures.Request, "humaninfo", Mock(side_effect=ValueError))
    request.on_failure(raised(ValueError("no address")), return_ok=True)
    assert request.gone == ["acknowledged"] and not later and FailedTask.objects.exists()


ERRORS = {
    "cancelled": asyncio.CancelledError(),
    "interrupted": KeyboardInterrupt(),
    "generator": GeneratorExit(),
    "exit": SystemExit(3),
    "memory": MemoryError(),
    "own": type("Own", (BaseException,), {})("its own"),
    "odd": Odd(None),
}


@pytest.fixture
def receive(monkeypatch):
    """Return a function that gives a message to a worker, whose pool runs it in this process, as threads do."""
    monkeypatch.setitem(current_app.conf, "broker_url", "memory://")
    app = current_app._get_current_object()
    for task in app.tasks.values():
        monkeypatch.setattr(task, "__trace__", None)
    pool, reserved, shipped[:] = solo.TaskPool(app=app), [], []
    consumer = receiving.RecordingConsumer(
        reserved.append,
        app=app,
        pool=pool,
        hostname="celery@here",
        timer=Mock(),
        controller=Mock(**{"state.revoked": set()}),
    )
    consumer.event_dispatcher, consumer.qos, consumer.connection = None, Mock(), None

    def receive(body=b"[[7], {}, {}]", **headers):
        given = {"id": "some-id", "task": ship.name} | headers
        message = Message(body, "tag", "application/json", "utf-8", headers=given, channel=Mock(no_ack_consumers=None))
        message.accept = {"application/json"}
        consumer.update_strategies()
        consumer.create_task_handler()(message)
        for request in reserved:
            # An exception that arrives here would stay in a thread.
            with suppress(Exception):
                request.execute_using_pool(pool)
        reserved.clear()
        return message

    return receive


def test_a_worker_runs_a_message(receive):
    assert receive().acknowledged
    assert shipped == [7] and not FailedTask.objects.exists()


@pytest.mark.parametrize("error", ERRORS)
def test_whatever_a_task_raises_it_has_failed_and_its_message_is_gone(receive, monkeypatch, error):
    told = Mock()
    monkeypatch.setattr(be_raised, "on_failure", told)
    assert receive(json.dumps([[error], {}, {}]).encode(), task=be_raised.name).acknowledged
    assert type(ERRORS[error]).__name__ in FailedTask.objects.get().exception
    told.assert_called_once()


@pytest.fixture
def receive_declared(receive, settings):
    """Return a function that does the same with a task of Django's framework, which has a row; it returns both."""
    settings.TASKS = {"default": {"BACKEND": "apps.tasks.sending.backend.WorkerBackend", "QUEUES": []}}

    def receive_declared(task, *args):
        columns = {"path": task.module_path, "backend": "default", "priority": 0, "enqueued_at": timezone.now()}
        EnqueuedTask.objects.create(id="some-id", args=args, **columns)
        message = receive(json.dumps([args, {}, {}]).encode(), task=task.module_path, enqueued="some-id")
        return message, EnqueuedTask.objects.get()

    return receive_declared


def test_whatever_a_task_of_the_framework_raises_it_has_failed_and_its_message_is_gone(receive_declared):
    message, row = receive_declared(declared.be_interrupted)
    assert message.acknowledged and "KeyboardInterrupt" in FailedTask.objects.get().exception
    assert row.status == "FAILED" and row.finished_at


def test_a_retry_that_cannot_be_sent_is_no_end(receive_declared, monkeypatch):
    finished = Mock()
    task_finished.connect(finished)
    monkeypatch.setattr("celery.Task.apply_async", Mock(side_effect=OperationalError("the broker is away")))
    message, row = receive_declared(declared.succeed_at, 3)
    message.channel.basic_reject.assert_called_once_with("tag", requeue=True)
    assert (row.status, row.finished_at, len(row.errors)) == ("READY", None, 1)
    assert "the broker is away" in row.errors[0]["traceback"] and "attempt 1" in row.errors[0]["traceback"]
    assert not finished.called and not FailedTask.objects.exists()


@pytest.mark.parametrize("end", [Ignore("I have seen to it."), Reject("Nobody wants it.", requeue=False)])
def test_a_task_of_the_framework_that_drops_its_message_has_ended(receive_declared, monkeypatch, end):
    monkeypatch.setattr(declared, "calls", Mock(append=Mock(side_effect=end)))
    message, row = receive_declared(declared.add, 1)
    assert message.acknowledged and (row.status, len(row.errors)) == ("FAILED", 1)


def test_whoever_calls_a_task_can_interrupt_it():
    with pytest.raises(KeyboardInterrupt):
        be_raised("interrupted")
    with pytest.raises(KeyboardInterrupt):
        be_raised.apply(args=["interrupted"])


@pytest.mark.parametrize("part", ["before_start", "on_success", "after_return"])
@pytest.mark.parametrize("error", [asyncio.CancelledError(), Reject(requeue=False), MemoryError()])
def test_whatever_comes_before_or_after_a_task_raises_its_message_is_gone(receive, monkeypatch, part, error):
    monkeypatch.setattr(ship.__class__, part, Mock(side_effect=error), raising=False)
    assert receive().acknowledged


def test_an_exception_that_ends_the_worker_does(receive, monkeypatch):
    monkeypatch.setitem(ERRORS, "own", WorkerShutdown(0))
    with pytest.raises(WorkerShutdown):
        receive(b'[["own"], {}, {}]', task=be_raised.name)


WRONG = ["x", "", 5, -1, 1.5, True, [], ["a"], [[]], {}, {"a": 1}, "\x00", "\ud800", 10**30, float("nan"), float("inf")]
TIMES = ["9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "2026-02-31T00:00:00", "2026-01-01"]


NAMES = (
    *readable.HEADERS, "id", "task", "eta", "expires", "argsrepr", "kwargsrepr", "lang", "origin", "ignore_result",
    "utc", "compression", "meth", "get", "headers", "delivery_info", "given_back", "callbacks", "reply_to",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:Exception raised outside body")
@pytest.mark.parametrize("names", [NAMES[start::3] for start in range(3)])
def test_a_header_may_be_anything(receive, later, names):
    for name in names:
        for value in (*WRONG, *TIMES):
            before = len(shipped) + FailedTask.objects.count()
            message = receive(**{"id": f"{name} {value!r}", name: value})
            assert message.acknowledged and not later, (name, value)
            # It has run, has left a row, or was too old.
            is_told = len(shipped) + FailedTask.objects.count() > before
            assert is_told or name in ("id", "expires"), (name, value)


def test_failed_tasks_may_have_any_header(later):
    names = (*readable.HEADERS, "id", "argsrepr", "kwargsrepr")
    for value in (*WRONG, {"tries": "x", "since": "bad"}, {"tries": 10**30, "since": TIMES[1]}):
        headers = {name: value for name in names} | {"id": repr(value)}
        rows.write_row(Message(b"", headers=headers), ValueError(), "", "celery@here")
    assert FailedTask.objects.count() == len(WRONG) + 2


BODIES = [
    "null", "[]", '{"a": 1}', "[[1], {}]", "5", '"abc"', "[1, 2, 3]", "[[], {}, []]", "[[], [], {}]", "", "{",
    '{"args": 5}', '{"args": [7]}', '{"args": [7], "kwargs": 5}', '[[7], {}, {"callbacks": 5}]',
    '[[7], {}, {"callbacks": [{}]}]',
    '[[7], {}, {"chain": 5}]', '[[7], {}, {"chain": [5]}]', '[[7], {}, {"errbacks": 5}]', '[[], {}, {"errbacks": 5}]',
    '[[], {}, {"errbacks": [{"task": 5}]}]', '[[7], {}, {"chord": 5}]', '[[7], {}, {"get": 5}]',
    '[[7], {"a": 1}, null]',
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Exception raised outside body")
@pytest.mark.parametrize("headers", [{}, {"task": None}, {"task": "nowhere"}])
def test_a_body_may_be_anything(receive, later, headers):
    for body in BODIES:
        before = len(shipped) + FailedTask.objects.count()
        assert receive(body.encode(), id=body, **headers).acknowledged and not later, body
        assert len(shipped) + FailedTask.objects.count() > before, body


def test_a_message_without_an_id_and_of_an_unknown_task_is_gone(receive):
    message = receive(b"[]", id=None, task="nowhere")
    assert message.acknowledged and "NotRegistered" in FailedTask.objects.get().exception


def test_a_worker_goes_on_where_celery_has_a_new_mistake(receive, monkeypatch):
    monkeypatch.setattr(failures.readable, "check", Mock(side_effect=ZeroDivisionError))
    assert receive().acknowledged and "ZeroDivisionError" in FailedTask.objects.get().exception


@pytest.mark.parametrize("status, then", [("READY", "FAILED"), ("SUCCESSFUL", "SUCCESSFUL")])
def test_a_task_of_the_framework_that_no_worker_knows_has_failed_in_its_row_too(
    consumer, make_request, monkeypatch, status, then
):
    monkeypatch.setattr(receiving.Consumer, "on_unknown_task", lambda self, body, message, error: None)
    consumer.hostname = "celery@here"
    for each in ("some-id", "another"):
        EnqueuedTask.objects.create(
            id=each, path="apps.gone", backend="default", priority=0, enqueued_at=timezone.now(), status=status
        )
    message = make_request(enqueued="some-id")._message
    consumer.on_unknown_task(None, message, KeyError("apps.gone"))
    assert {row.pk: row.status for row in EnqueuedTask.objects.all()} == {"some-id": then, "another": status}
    assert "NotRegistered" in FailedTask.objects.get().exception


def test_a_task_that_was_written_to_a_process_is_kept_and_one_that_waits_is_not(consumer):
    calls = [SimpleNamespace(_write_to=process, _accepted=False) for process in ("a process", "one that died", None)]
    # The second one waits for another process.
    consumer.pool._pool = SimpleNamespace(_cache=dict(enumerate(calls)), outbound_buffer=[calls[1]])
    consumer.on_close()
    assert [call._accepted for call in calls] == [True, False, False]


@pytest.mark.parametrize("pool", [SimpleNamespace(), SimpleNamespace(_pool=None), SimpleNamespace(_pool=object())])
def test_a_pool_without_processes_has_nothing_to_keep(consumer, pool):
    consumer.pool = pool
    consumer.on_close()


def test_what_goes_on_without_the_connection_is_not_given_to_others(consumer, make_request, monkeypatch, caplog):
    request, kept = make_request(), []
    monkeypatch.setattr(state, "active_requests", {request})
    request._message.delivery_tag = "tag"
    qos = SimpleNamespace(keep=kept.extend)
    consumer.task_consumer = SimpleNamespace(channel=SimpleNamespace(qos=qos))
    consumer.on_connection_error_after_connected(ConnectionError("It is gone."))
    assert kept == ["tag"] and "It is gone." in caplog.text
    # RabbitMQ, and a connection that was never complete.
    for task_consumer in (SimpleNamespace(channel=SimpleNamespace()), None):
        consumer.task_consumer = task_consumer
        consumer.on_connection_error_after_connected(ConnectionError())


def test_a_task_that_ends_whole_workers_is_given_up(settings):
    settings.LOST_WORKERS_PER_TASK = 3
    for _ in range(2):
        deliveries.count_return("some-id")
    with pytest.raises(deliveries.WorkerKiller, match="started 3 times"):
        deliveries.count_return("some-id")


@pytest.mark.parametrize("redelivered, given_back, times", [(False, None, 0), (True, None, 1), (True, True, 0)])
def test_only_messages_that_come_back_because_their_worker_has_died_are_counted(
    make_request, redelivered, given_back, times
):
    request = make_request(given_back=given_back).request_dict
    request["delivery_info"]["redelivered"] = redelivered
    trace_task(ship, "some-id", [7], {}, request, app=current_app)
    assert sum(ReturnedTask.objects.values_list("times", flat=True)) == times


def test_a_task_that_each_worker_excuses_is_not_given_up_and_one_that_kills_them_is(settings):
    settings.LOST_WORKERS_PER_TASK = 3
    for _ in range(5):
        deliveries.excuse([("some-id", 0), ("some-id", 0), ("another", 2)])
        deliveries.count_return("some-id")
    deliveries.count_return("some-id")
    deliveries.count_return("some-id")
    with pytest.raises(deliveries.WorkerKiller, match="started 3 times"):
        deliveries.count_return("some-id")


@pytest.mark.parametrize("url, excused", [("amqp://localhost", ["some-id:1"]), ("redis://localhost", [])])
def test_on_rabbitmq_a_living_worker_excuses_what_it_has_not_acknowledged(make_request, monkeypatch, url, excused):
    monkeypatch.setitem(current_app.conf, "broker_url", url)
    held, ended = make_request(retries=1), make_request()
    ended.acknowledged = True
    monkeypatch.setattr(state, "requests", {"held": held, "ended": ended})
    snapshot.excuse_what_comes_back(current_app)
    assert list(ReturnedTask.objects.values_list("pk", flat=True)) == excused


def test_a_task_that_is_retried_for_ever_outlives_any_number_of_stops(settings):
    settings.LOST_WORKERS_PER_TASK = 3
    for retries in range(6):
        deliveries.count_return("a" * 255, retries)
    # An attempt that comes back each time is given up none the less.
    deliveries.count_return("a" * 255, 5)
    with pytest.raises(deliveries.WorkerKiller):
        deliveries.count_return("a" * 255, 5)


@pytest.mark.parametrize("held_seconds, state", [(299, "SUCCESS"), (301, "REJECTED")])
def test_a_message_that_was_held_too_long_to_run_in_time_goes_back(
    make_request, ten_minutes, monkeypatch, held_seconds, state
):
    request = make_request().request_dict
    monkeypatch.setattr("apps.tasks.sending.running.monotonic", lambda: request["received_at"] + held_seconds)
    ended = trace_task(ship, "some-id", [7], {}, request, app=current_app)
    assert ended.info is None if state == "SUCCESS" else ended.info.state == state


def test_a_message_that_was_acknowledged_early_does_not_go_back(make_request, ten_minutes, monkeypatch):
    request = make_request().request_dict
    monkeypatch.setattr(ship, "acks_late", False)
    monkeypatch.setattr("apps.tasks.sending.running.monotonic", lambda: request["received_at"] + 301)
    assert trace_task(ship, "some-id", [7], {}, request, app=current_app).info is None


# Sent again -----------------------------------------------------------------


def test_the_message_is_the_same_but_starts_anew(failed, published):
    assert replay.send_again(failed.pk)
    [message] = published.messages
    args, kwargs, _ = json.loads(message.body)
    assert (args, kwargs, message.routing_key, message.priority) == ([7], {"parcels": 2}, "parcels", 3)
    assert (message.headers["id"], message.headers["retries"], message.headers["expires"]) == ("some-id", 0, None)
    assert not FailedTask.objects.exists()


def test_a_task_that_fails_again_goes_on_counting(failed, published, make_request):
    replay.send_again(failed.pk)
    headers = {name: published.messages[0].headers[name] for name in ("failed_earlier", "retries")}
    make_request(**headers).on_failure(raised(ValueError()), return_ok=True)
    again = FailedTask.objects.get()
    assert (again.tries, again.first_failed_at) == (2, failed.first_failed_at)


def test_bytes_that_are_no_text_survive(published):
    message = Message(body=b"\x80\x04\xff", content_type="application/data", content_encoding="binary")
    replay.publish(replay.pack(message))
    assert published.messages[0].body == b"\x80\x04\xff"


def test_a_broker_that_is_away_keeps_the_row(failed, published):
    published.away = True
    with pytest.raises(OperationalError):
        replay.send_again(failed.pk)
    assert FailedTask.objects.exists()


def test_who_comes_second_sends_nothing(failed, published):
    assert [replay.send_again(failed.pk), replay.send_again(failed.pk)] == [True, False]
    assert len(published.messages) == 1


# By command -----------------------------------------------------------------


def replay_command(*args):
    output = StringIO()
    call_command("replay_failed_tasks", *args, stdout=output)
    return output.getvalue()


@pytest.mark.parametrize("chosen", [[], ["some-id"], ["--task", ship.name], ["--since", "2026-01-31T09:00"]])
def test_the_command_sends_what_is_chosen(failed, published, chosen):
    assert replay_command(*chosen).endswith("1 sent.\n")
    assert len(published.messages) == 1


@pytest.mark.parametrize("chosen", [["--task", "another"], ["--since", "2999-01-01"]])
def test_the_command_leaves_the_others(failed, published, chosen):
    assert replay_command(*chosen) == "0 sent.\n"


def test_a_dry_run_sends_nothing(failed, published):
    assert "1 would be sent." in replay_command("--dry-run")
    assert not published.messages


def test_an_unknown_id_and_a_broker_that_is_away_are_told(failed, published):
    with pytest.raises(CommandError, match="has the id nobody"):
        replay_command("some-id", "nobody")
    published.away = True
    with pytest.raises(CommandError, match="The broker does not answer; 0 sent, the others kept"):
        replay_command()


# In the admin ---------------------------------------------------------------

LIST = "admin:tasks_failedtask_changelist"


def act(client, failed):
    return client.post(reverse(LIST), {"action": "send_again", "_selected_action": [failed.pk]}, follow=True)


def test_staff_reads_and_sends_again(admin_client, failed, published):
    page = admin_client.get(reverse("admin:tasks_failedtask_change", args=[failed.pk])).content.decode()
    assert "<pre>Traceback" in page and "no address" in page
    assert failed.name in admin_client.get(reverse(LIST), {"q": "no address"}).content.decode()
    assert "Sent again: 1." in act(admin_client, failed).content.decode()


def test_staff_is_told_that_the_broker_is_away(admin_client, failed, published):
    published.away = True
    assert "The broker does not answer" in act(admin_client, failed).content.decode()
    assert FailedTask.objects.exists()


def test_who_may_only_look_cannot_send(client, failed, published):
    user = User.objects.create_user("viewer@example.com", is_staff=True)
    user.user_permissions.add(*user.user_permissions.model.objects.filter(codename="view_failedtask"))
    client.force_login(user)
    assert b"send_again" not in client.get(reverse(LIST)).content
    act(client, failed)
    assert not published.messages


# In the end -----------------------------------------------------------------


def test_old_rows_are_pruned(failed, settings):
    prune_old_rows()
    assert FailedTask.objects.exists()
    FailedTask.objects.update(last_failed_at=timezone.now() - timedelta(days=settings.FAILED_TASKS_KEPT_DAYS, hours=1))
    prune_old_rows()
    assert not FailedTask.objects.exists()


def test_old_results_are_pruned_and_by_nobody_who_enqueues(settings, broker):
    settings.TASKS = {"default": settings.TASKS["default"] | {"OPTIONS": {}}}
    result = declared.add.enqueue(1)
    old = timezone.now() - timedelta(days=settings.BACKGROUND_TASKS_KEPT_DAYS, hours=1)
    EnqueuedTask.objects.filter(pk=result.id).update(finished_at=old)
    last = declared.add.enqueue(2)
    assert EnqueuedTask.objects.count() == 2
    prune_old_rows()
    assert EnqueuedTask.objects.get().pk == last.id

"""Nobody waits for ever for RabbitMQ to confirm a message, or sends more to one that takes nothing."""

import time
from threading import Event, Thread
from types import SimpleNamespace

import pytest

pytest.importorskip("celery")

from amqp.exceptions import Blocked, MessageNacked, NotFound
from celery.exceptions import SoftTimeLimitExceeded
from celery.worker.loops import _quick_drain
from kombu import Connection
from kombu.transport import TRANSPORT_ALIASES, pyamqp, resolve_transport

from apps.tasks.broker import rabbitmq_transport
from apps.tasks.broker.rabbitmq_transport import Channel

PATIENCE_SECONDS = 60


@pytest.mark.parametrize("scheme", ["amqp", "pyamqp", "amqps"])
def test_the_project_uses_these_channels(scheme):
    assert resolve_transport(TRANSPORT_ALIASES[scheme]).Connection.Channel is Channel


@pytest.mark.parametrize(("asked", "waited"), [({}, 0.5), ({"confirm_timeout": 3}, 3)])
def test_a_confirmation_is_waited_for_as_long_as_any_answer(monkeypatch, asked, waited):
    waits = []
    monkeypatch.setattr(
        pyamqp.Channel, "basic_publish_confirm", lambda *_, confirm_timeout: waits.append(confirm_timeout)
    )
    channel = object.__new__(Channel)
    channel.connection = SimpleNamespace(transport=SimpleNamespace(read_timeout=0.5))
    channel.basic_publish_confirm("message", **asked)
    assert waits == [waited]


def test_a_connection_that_is_gone_is_an_error_after_which_a_new_one_is_made():
    channel = object.__new__(Channel)
    channel.connection, channel._confirm_selected = None, True
    with pytest.raises(Connection("amqp://").recoverable_connection_errors):
        channel.basic_publish_confirm("message")


def test_after_an_alarm_a_probe_goes_before_the_next_message(monkeypatch):
    sent, alarms = [], [Blocked("full")]

    def publish(channel, message, routing_key, **options):
        sent.append(routing_key)
        if alarms:
            raise alarms.pop()

    monkeypatch.setattr(pyamqp.Channel, "basic_publish_confirm", publish)
    monkeypatch.setattr(rabbitmq_transport.Connection, "is_blocked", True)
    channel = object.__new__(Channel)
    channel.connection = SimpleNamespace(transport=SimpleNamespace(read_timeout=0.5), collect=lambda: None)
    with pytest.raises(Connection("amqp://").recoverable_connection_errors):
        channel.basic_publish_confirm("message", routing_key="celery")
    for _ in range(2):
        channel.basic_publish_confirm("message", routing_key="celery")
    assert sent == ["to.no.queue", "to.no.queue", "celery", "celery"]


@pytest.mark.parametrize("end", [TimeoutError, Blocked, SoftTimeLimitExceeded, KeyboardInterrupt])
def test_a_connection_is_closed_if_its_last_message_was_not_answered(monkeypatch, end):
    """A late confirmation would be taken for that of the next message."""
    assert collected_after(monkeypatch, end()) == [True]


@pytest.mark.parametrize("answer", [MessageNacked, NotFound])
def test_a_connection_is_kept_if_its_last_message_was_refused(monkeypatch, answer):
    assert collected_after(monkeypatch, answer()) == []


@pytest.fixture
def connection(monkeypatch):
    """A connection where something arrives when `arrival` is set; `readers` counts those that read at once."""

    def drain(connection, timeout):
        connection.readers += 1
        connection.is_read.set()
        assert connection.arrival.wait(PATIENCE_SECONDS)
        if connection.handle:
            connection.handle()
        connection.readers -= 1

    monkeypatch.setattr(pyamqp.Connection, "drain_events", drain)
    connection = rabbitmq_transport.Connection()
    connection.readers, connection.is_read, connection.arrival, connection.handle = 0, Event(), Event(), None
    return connection


@pytest.fixture
def reader(connection):
    """A thread that reads until something has arrived."""
    thread = Thread(target=connection.drain_events)
    thread.start()
    assert connection.is_read.wait(PATIENCE_SECONDS)
    yield thread
    connection.arrival.set()
    thread.join()


def test_only_one_reads_from_a_connection_and_what_it_reads_may_be_for_another(connection, reader):
    waiting = Thread(target=connection.drain_events)
    waiting.start()
    assert connection.readers == 1 and waiting.is_alive()
    connection.arrival.set()
    waiting.join(PATIENCE_SECONDS)
    assert not waiting.is_alive()


def test_whoever_waits_for_another_reader_does_so_no_longer_than_for_an_answer(connection, reader):
    for seconds in (0, 0.01):
        with pytest.raises(TimeoutError):
            connection.drain_events(seconds)
    assert connection.readers == 1


def test_others_learn_what_was_read_although_the_reader_reads_on(connection, reader):
    """The loop of a busy gevent worker never leaves its lock for so long that others notice."""
    has_learned = Event()

    def read_on():
        connection.handle = None
        connection.drain_events()
        assert has_learned.wait(PATIENCE_SECONDS)

    connection.handle = read_on
    waiting = Thread(target=connection.drain_events)
    waiting.start()
    while not connection._has_read._waiters:
        time.sleep(0.01)
    connection.arrival.set()
    waiting.join(PATIENCE_SECONDS)
    assert not waiting.is_alive()
    has_learned.set()


@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
def test_a_look_for_heartbeats_takes_no_longer_than_the_system_needs(monkeypatch, scheme):
    """Celery takes one after each message of a gevent worker."""
    waits = []
    monkeypatch.setattr(pyamqp.Connection, "drain_events", lambda connection, timeout: waits.append(timeout))
    connection = Connection(f"{scheme}://")
    connection._connection, connection._closed = rabbitmq_transport.Connection(), False
    monkeypatch.setattr(connection.transport, "verify_connection", lambda connection: True)
    _quick_drain(connection)
    connection.drain_events(timeout=2.0)
    assert waits == [rabbitmq_transport.LOOK_SECONDS, 2.0]


def test_who_reads_may_wait_for_another_answer_when_it_handles_what_has_arrived(connection):
    def ask_again():
        connection.handle = None
        connection.drain_events()
        seen.append(connection.readers)

    seen = []
    connection.handle = ask_again
    connection.arrival.set()
    connection.drain_events()
    assert seen == [1]


def collected_after(monkeypatch, end: BaseException) -> list[bool]:
    """Let a message end in this way; return whether its connection was closed."""

    def publish(*_, **options):
        raise end

    collected = []
    monkeypatch.setattr(pyamqp.Channel, "basic_publish_confirm", publish)
    monkeypatch.setattr(rabbitmq_transport.Connection, "is_blocked", False)
    channel = object.__new__(Channel)
    transport = SimpleNamespace(read_timeout=0.5)
    channel.connection = SimpleNamespace(transport=transport, collect=lambda: collected.append(True))
    with pytest.raises(type(end)):
        channel.basic_publish_confirm("message", routing_key="celery")
    return collected

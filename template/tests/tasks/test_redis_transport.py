"""Redis is asked for messages by the script that records them, and rung for those that wait."""

import json
import threading
from queue import Empty
from unittest.mock import MagicMock, Mock

import pytest

pytest.importorskip("celery")

from kombu import Connection

from apps.tasks.broker import redis_records, redis_transport

MESSAGE = {
    "body": "",
    "headers": {},
    "properties": {"delivery_tag": "tag", "delivery_info": {"exchange": "", "routing_key": "celery"}},
}


@pytest.fixture
def server(monkeypatch):
    """Return a double of what speaks to the server, which answers nothing yet."""
    server = MagicMock()
    server.pipeline.return_value.__enter__.return_value = server.pipeline.return_value
    monkeypatch.setattr(redis_transport.Channel, "_create_client", lambda self, asynchronous=False: server)
    server.parse_response.return_value = None
    return server


@pytest.fixture(autouse=True)
def nothing_untold():
    """Leave no acknowledgement to the next test."""
    yield
    redis_records.untold.clear()


@pytest.fixture
def channel(server):
    """Return a channel to the double."""
    transport = Connection("redis://127.0.0.1:1/0").transport
    channel = transport.create_channel(transport)
    # Nothing is given back when the tests end.
    channel.do_restore = False
    return channel


def ask(channel, server):
    """Let the channel ask once; return the first word of what it sent, and whether a message came."""
    channel._brpop_start()
    try:
        delivered = channel._brpop_read()
    except Empty:
        delivered = False
    return server.connection.send_command.call_args.args[0], delivered


def consume(channel, no_ack=False):
    received = []
    channel.basic_consume("celery", no_ack=no_ack, callback=received.append, consumer_tag="one")
    return received


def test_urls_of_redis_use_it():
    for scheme in ("redis", "rediss"):
        assert Connection(f"{scheme}://127.0.0.1:1/0").get_transport_cls() is redis_transport.Transport


def test_it_waits_for_a_bell_only_after_it_found_nothing(channel, server):
    consume(channel)
    assert [ask(channel, server)[0] for _ in range(3)] == ["EVAL", "BRPOP", "EVAL"]


def test_a_message_that_was_taken_is_not_recorded_again(channel, server):
    received = consume(channel)
    server.parse_response.return_value = (b"celery", json.dumps(MESSAGE).encode())
    assert ask(channel, server) == ("EVAL", True)
    assert [message.delivery_tag for message in received] == ["tag"]
    assert "tag" in channel.qos._delivered
    server.pipeline.return_value.hset.assert_not_called()


def end_task(channel, server):
    """Let the channel take a message, whose task ends; return the double of what acknowledges at once."""
    consume(channel)
    server.parse_response.return_value = (b"celery", json.dumps(MESSAGE).encode())
    ask(channel, server)
    server.parse_response.return_value = None
    return server.pipeline.return_value.zrem


def test_the_script_that_takes_the_next_message_acknowledges_what_has_ended_once(channel, server):
    at_once = end_task(channel, server)
    channel.qos.ack("tag")
    at_once.assert_not_called()
    ask(channel, server)
    assert server.connection.send_command.call_args.args[-1] == "tag"
    assert not redis_records.untold


def test_an_acknowledgement_that_got_no_answer_goes_with_the_next_script(channel, server):
    end_task(channel, server)
    channel.qos.ack("tag")
    server.parse_response.side_effect = ConnectionError
    with pytest.raises(ConnectionError):
        ask(channel, server)
    assert redis_records.untold == {"tag"}


def test_what_ends_while_a_bell_is_waited_for_is_acknowledged_at_once(channel, server):
    at_once = end_task(channel, server)
    ask(channel, server)
    channel._brpop_start()
    channel.qos.ack("tag")
    at_once.assert_called_once_with("unacked_index", "tag")
    assert not redis_records.untold


def test_what_has_ended_is_acknowledged_when_the_last_consumer_goes(channel, server):
    at_once = end_task(channel, server)
    channel.qos.ack("tag")
    channel.basic_cancel("one")
    at_once.assert_called_once_with("unacked_index", "tag")


def test_without_an_event_loop_a_free_slot_is_filled_at_once(channel, server, monkeypatch):
    transport, waited = channel.connection, []
    end_task(channel, server)
    channel.qos.prefetch_count = 1
    monkeypatch.setattr(redis_transport, "FULL_SECONDS", 60)
    monkeypatch.setattr(transport.cycle, "maybe_restore_messages", lambda: None)
    monkeypatch.setattr(redis_transport.redis.Transport, "drain_events", lambda *_, timeout: waited.append(timeout))
    task = threading.Timer(0.1, channel.qos.ack, ["tag"])
    task.start()
    transport.drain_events(Mock(client=Mock(transport_options={})), timeout=30)
    task.join()
    # If nobody had woken it, it would only have looked once.
    assert waited == [30]


def test_a_consumer_that_wants_no_record_gets_none(channel, server):
    consume(channel, no_ack=True)
    assert [ask(channel, server)[0] for _ in range(2)] == ["BRPOP", "BRPOP"]


def test_sending_rings_in_the_same_step(channel, server):
    channel._put("celery", MESSAGE)
    program, count, *arguments = server.eval.call_args.args
    assert (program, arguments[:count]) == (redis_transport.PUT, ["celery\x06\x163", "celery\x06\x16bell"])


def test_the_token_of_a_sending_lies_beside_its_queue(channel, server):
    channel._put("celery", {**MESSAGE, "headers": {"sending": "abc"}})
    _, count, *arguments = server.eval.call_args.args
    assert arguments[2:count] == ["celery\x06\x16sent-abc"]


def test_a_connection_that_was_given_up_is_an_error_of_the_connection(channel):
    # Kombu's own, an AttributeError, ends the worker.
    channel.connection.client = None
    with pytest.raises(channel.connection_errors):
        channel._connparams()


def test_without_an_event_loop_what_dead_workers_held_is_looked_for_although_redis_answers(channel, monkeypatch):
    transport = channel.connection
    looks, now = [], iter([1000, 1000, 1004, 1005, 1005])
    monkeypatch.setattr(redis_transport, "monotonic", lambda: next(now))
    monkeypatch.setattr(redis_transport.redis.Transport, "drain_events", lambda *_, **__: None)
    monkeypatch.setattr(transport.cycle, "maybe_restore_messages", lambda: looks.append(1))
    connection = Mock(client=Mock(transport_options={"unacked_restore_interval": 5}))
    for expected in (1, 1, 2):
        transport.drain_events(connection)
        assert len(looks) == expected

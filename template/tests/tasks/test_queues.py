"""On RabbitMQ every queue that stays is a quorum queue, and gets no message of another one.

On every broker, a message that cannot be sent is an error soon.
"""

import pytest

pytest.importorskip("celery")

from celery import Celery
from kombu import Producer, Queue
from kombu.exceptions import OperationalError

from apps.tasks.broker.queues import DELIVERY_LIMIT, ProjectAMQP

QUORUM = {"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT}


def queues(broker_url, **conf):
    app = Celery("queues", amqp=ProjectAMQP, broker=broker_url, set_as_current=False)
    app.conf.update(conf)
    return app.amqp.queues


def test_the_default_queue_is_one():
    assert queues("amqp://")["celery"].queue_arguments == QUORUM


def test_the_queue_of_a_route_is_one():
    assert queues("amqp://")["reports"].queue_arguments == QUORUM


def test_a_queue_of_the_settings_is_one_and_keeps_its_arguments():
    own = Queue("reports", queue_arguments={"x-max-length": 10})
    assert queues("amqp://", task_queues=[own])["reports"].queue_arguments == QUORUM | {"x-max-length": 10}


def test_a_queue_may_be_of_another_type():
    own = Queue("reports", queue_arguments={"x-queue-type": "classic"})
    assert queues("amqp://", task_queues=[own])["reports"].queue_arguments == {"x-queue-type": "classic"}


def test_a_queue_that_goes_with_its_worker_is_none():
    assert not queues("amqp://", task_queues=[Queue("own", auto_delete=True)])["own"].queue_arguments


def test_each_queue_has_a_key_of_its_own():
    found = queues("amqp://", task_queues=[Queue("celery"), Queue("reports"), Queue("own", routing_key="mine")])
    assert {name: queue.routing_key for name, queue in found.items()} == {
        "celery": "celery",
        "reports": "reports",
        "own": "mine",
    }


def test_redis_knows_no_types():
    assert not queues("redis://")["celery"].queue_arguments


@pytest.fixture
def away(monkeypatch):
    """Return an app whose broker is away, and which would wait for it forever, as a worker on gevent would."""
    pauses = iter(range(10))
    monkeypatch.setattr(
        "kombu.utils.functional.sleep", lambda seconds: next(pauses, None) is None and pytest.fail("It tries forever.")
    )
    app = Celery("away", amqp=ProjectAMQP, broker="redis://127.0.0.1:1/0", set_as_current=False)
    app.conf.update(broker_connection_timeout=None)
    yield app
    app.close()


def test_an_answer_to_a_remote_command_is_not_repeated_forever(away):
    with away.amqp.producer_pool.acquire() as producer, pytest.raises(producer.connection.connection_errors):
        producer.publish({}, retry=True)


def test_a_heartbeat_is_not_repeated_forever(away):
    with away.connection_for_write() as connection, pytest.raises(connection.connection_errors):
        Producer(connection, auto_declare=False).publish({}, retry=True)


def test_a_limit_of_the_sender_is_kept(away):
    with away.connection_for_write() as connection:
        tries = []
        send = connection.ensure(
            None, lambda: tries.append(1) or connection.transport.establish_connection(), max_retries=0
        )
        with pytest.raises(OperationalError):
            send()
    assert len(tries) == 1

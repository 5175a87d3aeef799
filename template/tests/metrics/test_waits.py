"""Each message says since when it waits for a worker."""

import time
from datetime import UTC, datetime, timedelta

import pytest

pytest.importorskip("celery")

from celery import current_app

from apps.metrics.waits import WAITS_SINCE, waits_since
from apps.tasks.worker.replay import _own_headers

BEFORE_EVERY_TEST = time.time()


def test_a_message_waits_from_now():
    assert BEFORE_EVERY_TEST <= waits_since({"eta": None}) <= time.time()


def test_a_message_that_is_due_later_waits_from_then():
    eta = datetime.now(UTC) + timedelta(hours=1)
    assert waits_since({"eta": eta.isoformat()}) == pytest.approx(eta.timestamp())


def test_a_countdown_on_rabbitmq_is_part_of_the_routing_key():
    levels = ".".join(f"{90:028b}")
    assert 90 <= waits_since({}, f"{levels}.celery") - BEFORE_EVERY_TEST < 90 + 3600


def test_a_message_that_was_due_long_ago_waits_from_now():
    assert waits_since({"eta": "2020-01-01T00:00:00+00:00"}) >= BEFORE_EVERY_TEST


def test_every_message_has_the_moment_and_loses_it_when_it_is_sent_again_after_a_failure(app_in_memory):
    app_in_memory.send_task("some.task")
    with current_app.connection_for_read() as connection:
        message = connection.SimpleQueue("celery").get(timeout=30)
    assert message.headers[WAITS_SINCE] >= BEFORE_EVERY_TEST
    assert WAITS_SINCE not in _own_headers(message.headers)

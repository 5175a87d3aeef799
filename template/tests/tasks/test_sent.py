"""What a test sends stays in its process, and the fixture `sent` shows it."""

import pytest

pytest.importorskip("celery")

from celery import chain, current_app, group, shared_task
from django.db import transaction
from django.test import TestCase, TransactionTestCase
from kombu.transport import memory

from apps.tasks.sending import outbox, send
from tests.background.declared import add as background_add


@shared_task(name="tests.sent.add")
def add(first, second=0): ...


@shared_task(name="tests.sent.charge", durable=True)
def charge(): ...


def test_a_message_stays_in_this_process():
    """Without the mark for a database: sending needs none."""
    add.delay(1, 2)
    assert current_app.connection_for_write().transport.driver_type == "memory"
    assert memory.Channel.queues[current_app.conf.task_default_queue].qsize() == 1


def test_the_broker_of_each_test_is_empty():
    assert memory.Channel.queues == {}


def test_what_is_sent_is_shown(sent):
    add.delay(1, second=2)
    add.apply_async([3], countdown=5)
    chain(add.s(4), add.s(5)).delay()
    group(add.s(6), add.s(7)).delay()
    assert sent == [
        (add.name, (1,), {"second": 2}),
        *((add.name, (number,), {}) for number in (3, 4, 6, 7)),
    ]


@pytest.mark.django_db(transaction=True)
def test_what_is_sent_after_a_commit_or_by_the_outbox_is_shown(sent):
    with transaction.atomic():
        send(add, 1)
        charge.delay()
        assert sent == []
    with transaction.atomic():
        add.delay(2)
        transaction.set_rollback(True)
    assert sent == [(add.name, (1,), {}), (charge.name, (), {})]
    outbox.OutgoingTask.objects.update(send_at="2026-01-01T00:00:00Z")
    outbox.send_waiting()
    assert sent[2:] == [(charge.name, (), {})]


@pytest.mark.django_db
def test_what_is_enqueued_is_shown_and_does_not_run(sent, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True):
        result = background_add.enqueue(1, 2)
    assert sent == [(background_add.module_path, (1, 2), {})]
    result.refresh()
    assert result.status == "READY"


class CapturedTest(TestCase):
    """Tests in the form of Django's."""

    def test_a_task_runs_and_a_message_stays(self):
        with self.captureOnCommitCallbacks(execute=True):
            add.delay(1)
            result = background_add.enqueue(1, 2)
        assert result.return_value == 3


class CommittedTest(TransactionTestCase):
    """The same with commits."""

    def test_a_task_runs_and_a_message_stays(self):
        add.delay(1)
        assert background_add.enqueue(1, 2).return_value == 3

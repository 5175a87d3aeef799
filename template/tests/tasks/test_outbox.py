"""What is written down is sent in the end; what is durable is forgotten when it has ended, and not before."""

from datetime import timedelta
from decimal import Decimal
from functools import partial
from uuid import uuid4

import pytest

pytest.importorskip("celery")

from celery import current_app, group, shared_task
from celery.app.trace import trace_task
from celery.exceptions import Ignore, Reject
from celery.signals import task_revoked
from django.db import transaction
from django.urls import reverse
from django.utils import timezone

from apps.tasks.models import OutgoingTask
from apps.tasks.sending import outbox, send
from apps.users.models import User
from apps.web import clock

pytestmark = pytest.mark.django_db(transaction=True)

EARLIER = timedelta(days=-1)
ENDS = {"drop": Reject(), "fail": ZeroDivisionError(), "leave": Ignore(), "requeue": Reject(requeue=True)}


@shared_task(name="tests.outbox.greet")
def greet(name): ...


@shared_task(name="tests.outbox.pay", bind=True, durable=True)
def pay(self, action=None):
    if action == "retry":
        self.retry(countdown=240)
    if action:
        raise ENDS[action]


@pytest.fixture
def unsent(broker):
    """Return a function that makes a row of a task which the broker did not take."""

    def make(*arguments, **options):
        broker.away = True
        with transaction.atomic():
            greet.apply_async(arguments or ["Jane"], **options)
        broker.away = False
        broker.attempts = 0
        return OutgoingTask.objects.latest("created_at")

    return make


def run(message):
    """Run a message as a worker does."""
    request = {"id": message.task_id, **message.options["headers"], "retries": 0, "delivery_info": {}}
    task = current_app.tasks[message.name]
    return trace_task(task, message.task_id, message.args, message.kwargs, request, app=current_app)


def move(**times):
    """Move times of all rows."""
    OutgoingTask.objects.update(**{name: timezone.now() + by for name, by in times.items()})


# Waiting messages -----------------------------------------------------------


def test_what_waits_is_sent_as_it_was_and_forgotten(broker, unsent):
    arguments = [{"id": uuid4(), "at": timezone.now(), "price": Decimal("9.99")}]
    row = unsent(*arguments, queue="slow")
    outbox.send_waiting()
    message = broker.messages[0]
    assert (message.name, message.args, message.task_id) == ("tests.outbox.greet", arguments, row.task_id)
    assert message.options["queue"] == "slow"
    assert not OutgoingTask.objects.exists()


def test_the_members_of_a_group_are_sent_as_well(broker):
    broker.away = True
    with transaction.atomic():
        group(greet.s("Jane"), greet.s("John")).apply_async()
    broker.away = False
    outbox.send_waiting()
    assert [message.args for message in broker.messages] == [["Jane"], ["John"]]


def test_what_is_not_due_waits(broker, unsent):
    unsent()
    move(send_at=timedelta(hours=1))
    outbox.send_waiting()
    assert broker.calls == [] and OutgoingTask.objects.exists()


def test_sending_stops_where_the_broker_is_away(broker, unsent):
    unsent("Jane")
    unsent("Joe")
    broker.away = True
    outbox.send_waiting()
    assert broker.attempts == 1
    broker.away = False
    outbox.send_waiting()
    assert len(broker.calls) == 2


def test_more_than_a_batch_is_sent(broker, unsent, monkeypatch):
    monkeypatch.setattr(outbox, "BATCH", 2)
    for _ in range(5):
        unsent()
    outbox.send_waiting()
    assert len(broker.calls) == 5


def test_two_at_once_send_once(broker, unsent):
    row = unsent()
    same = OutgoingTask.objects.get(pk=row.pk)
    assert outbox.send_now(row) and outbox.send_now(same)
    assert len(broker.calls) == 1


def test_a_mistake_in_one_message_holds_up_no_other(broker, unsent, monkeypatch, caplog):
    unsent("Jane")
    unsent("Joe")
    send_task = current_app.send_task

    def refuse_jane(name, args, *rest, **options):
        if args == ["Jane"]:
            raise KeyError("no such queue")
        return send_task(name, args, *rest, **options)

    monkeypatch.setattr(current_app._get_current_object(), "send_task", refuse_jane)
    outbox.send_waiting()
    assert broker.calls == [("tests.outbox.greet", ["Joe"], {})]
    assert "no such queue" in OutgoingTask.objects.get().reason and "no such queue" in caplog.text


def test_a_row_that_cannot_be_read_holds_up_no_other(broker, unsent):
    bad = unsent("John")
    unsent()
    OutgoingTask.objects.filter(pk=bad.pk).update(message="{", send_at=timezone.now() + EARLIER)
    outbox.send_waiting()
    assert [message.args for message in broker.messages] == [["Jane"]]
    assert "Expecting" in OutgoingTask.objects.get().error


def test_an_expiry_may_be_text_as_a_task_that_is_retried_has_it(broker, unsent):
    unsent(expires=(timezone.now() + timedelta(hours=1)).isoformat())
    outbox.send_waiting()
    assert len(broker.messages) == 1


def test_an_expired_message_is_not_sent_any_more(broker, unsent):
    unsent("Jane", expires=timezone.now() + EARLIER)
    outbox.send_waiting()
    assert broker.calls == [] and not OutgoingTask.objects.exists()


def test_a_long_wait_ends_at_its_time(broker, ten_minutes):
    greet.apply_async(["Jane"], countdown=3600)
    eta = clock.now() + timedelta(hours=1)
    move(send_at=EARLIER)
    outbox.send_waiting()
    assert abs(broker.messages[0].options["eta"] - eta) < timedelta(minutes=1)


# Durable tasks --------------------------------------------------------------


def test_a_durable_task_is_remembered_until_it_has_ended(broker):
    with transaction.atomic():
        pay.delay()
        assert OutgoingTask.objects.exists() and broker.calls == []
    assert OutgoingTask.objects.exists()
    run(broker.messages[0])
    assert not OutgoingTask.objects.exists()


def test_a_rollback_forgets_it(broker):
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        pay.delay()
        raise ZeroDivisionError
    assert not OutgoingTask.objects.exists()


@pytest.mark.parametrize("way", [pay.delay, partial(send, pay, on_failure=pytest.fail)])
def test_a_broker_that_is_away_is_no_error_for_it(broker, way):
    broker.away = True
    way()
    broker.away = False
    outbox.send_waiting()
    assert len(broker.calls) == 1 and OutgoingTask.objects.exists()


def test_it_is_sent_again_when_its_message_got_lost_each_time_later(broker, settings):
    settings.DURABLE_TASK_RESEND_SECONDS = 900
    pay.delay()
    outbox.send_waiting()
    assert len(broker.calls) == 1
    for minutes in (30, 60, 120):
        move(send_at=EARLIER)
        outbox.send_waiting()
        wait = OutgoingTask.objects.get().send_at - timezone.now()
        assert timedelta(minutes=minutes - 1) < wait <= timedelta(minutes=minutes)
    assert len({message.task_id for message in broker.messages}) == 1 and len(broker.calls) == 4


def test_its_second_message_does_nothing_when_the_first_one_is_done(broker):
    pay.delay("fail")
    outbox.forget(broker.messages[0].options["headers"]["outgoing"])
    assert run(broker.messages[0]).info.state == "IGNORED"


@pytest.mark.parametrize(
    ("action", "remembered"), [("drop", False), ("fail", True), ("leave", False), ("requeue", True), ("retry", True)]
)
def test_only_what_has_ended_is_forgotten(broker, action, remembered):
    pay.delay(action)
    run(broker.messages[0])
    assert OutgoingTask.objects.exists() == remembered


def test_a_retry_is_waited_for(broker, settings, ten_minutes):
    settings.DURABLE_TASK_RESEND_SECONDS = 900
    pay.delay("retry")
    run(broker.messages[0])
    assert OutgoingTask.objects.get().send_at - timezone.now() > timedelta(minutes=18)
    first, second = (message.options["headers"] for message in broker.messages)
    assert first["outgoing"] == second["outgoing"] and first["sending"] != second["sending"]


def test_a_time_to_come_is_waited_for(broker, settings, ten_minutes):
    settings.DURABLE_TASK_RESEND_SECONDS = 900
    pay.apply_async(eta=timezone.now() + timedelta(minutes=4))
    assert OutgoingTask.objects.get().send_at - timezone.now() > timedelta(minutes=18)


def test_a_long_wait_of_a_durable_task_is_one_row(broker, ten_minutes):
    pay.apply_async(countdown=86400)
    assert OutgoingTask.objects.get().send_at - timezone.now() < timedelta(days=1)
    move(send_at=EARLIER)
    outbox.send_waiting()
    assert OutgoingTask.objects.get().send_at - timezone.now() > timedelta(days=1)
    run(broker.messages[0])
    assert not OutgoingTask.objects.exists()


def test_a_revoked_task_is_forgotten(broker):
    pay.delay()
    task_revoked.send(sender=pay, request=broker.messages[0].options["headers"])
    assert not OutgoingTask.objects.exists()


def test_headers_that_a_durable_task_hands_on_do_not_tie_another_task_to_its_end(broker):
    pay.delay()
    greet.apply_async(["Jane"], headers={**broker.messages[0].options["headers"], "trace": "1"})
    headers = broker.messages[1].options["headers"]
    assert headers.pop("sending") != broker.messages[0].options["headers"]["sending"]
    assert headers == {"trace": "1"}


def test_a_message_without_a_row_of_its_own_runs():
    pay.apply(throw=True)


# The admin ------------------------------------------------------------------


def test_the_admin_tells_why_a_task_waits_and_sends_it_now(broker, unsent, client):
    client.force_login(User.objects.create_superuser("admin@example.com"))
    row = unsent()
    move(send_at=timedelta(days=1))
    page = reverse("admin:tasks_outgoingtask_changelist")
    assert "not taken: Connection refused" in client.get(page).content.decode()
    client.post(page, {"action": "send_now", "_selected_action": [row.pk]})
    assert len(broker.calls) == 1 and not OutgoingTask.objects.exists()

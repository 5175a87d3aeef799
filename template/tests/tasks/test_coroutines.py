"""A coroutine sends tasks as other code does, an async view above all."""

import asyncio
from functools import partial

import pytest

pytest.importorskip("celery")

from asgiref.sync import async_to_sync, sync_to_async
from celery import chord, current_app, shared_task
from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.models import Group
from django.db import transaction
from django.http import HttpResponse
from django.test import AsyncClient
from django.urls import include, path
from django_celery_results.models import ChordCounter

from apps.tasks.models import OutgoingTask
from apps.tasks.sending import send

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.urls(__name__)]


class Stop(Exception):
    """What rolls a transaction back."""


@shared_task(name="tests.coroutines.greet")
def greet(name): ...


@shared_task(name="tests.coroutines.charge", durable=True)
def charge(name): ...


@shared_task(name="tests.coroutines.count_groups", ignore_result=False)
def count_groups():
    return Group.objects.count()


CALLS = {
    "plain": lambda: greet.delay("Jane"),
    "send": lambda: send(greet, "Jane"),
    "durable": lambda: charge.delay("Jane"),
    "late": lambda: greet.apply_async(["Jane"], countdown=3600),
    "durable and late": lambda: charge.apply_async(["Jane"], countdown=3600),
    "chord": lambda: chord([greet.s("Jane"), greet.s("Joe")])(greet.si("both")),
    "eager": lambda: HttpResponse(count_groups.delay().result),
}


@login_not_required
async def call(request, name):
    """Call what is asked for."""
    called = CALLS[name]()
    return called if isinstance(called, HttpResponse) else HttpResponse()


@login_not_required
async def wait_for(request, name):
    """Send a task, and let others use the event loop meanwhile."""
    result = await {"plain": greet, "durable": charge}[name].adelay("Jane")
    return HttpResponse(result.id)


urlpatterns = [
    path("call/<name>/", call),
    path("wait-for/<name>/", wait_for),
    path("", include(settings.ROOT_URLCONF)),
]


def get(address):
    """Ask the project as an ASGI server does."""

    async def ask():
        return await AsyncClient().get(address)

    response = asyncio.run(ask())
    assert response.status_code == 200
    return response.content.decode()


@pytest.mark.parametrize(
    ("name", "messages", "rows"),
    [
        ("plain", 1, 0),
        ("send", 1, 0),
        ("durable", 1, 1),
        ("late", 0, 1),
        ("durable and late", 0, 1),
        ("chord", 2, 0),
    ],
)
def test_an_async_view_sends_a_task(broker, ten_minutes, name, messages, rows):
    get(f"/call/{name}/")
    assert (len(broker.messages), OutgoingTask.objects.count()) == (messages, rows)
    assert ChordCounter.objects.exists() == (name == "chord")


@pytest.mark.parametrize("name", ["send", "durable"])
def test_what_an_async_view_sends_waits_while_the_broker_is_away(broker, name):
    broker.away = True
    get(f"/call/{name}/")
    assert "Connection refused" in OutgoingTask.objects.get().error


def test_what_is_to_be_called_instead_may_ask_the_database(broker):
    async def view():
        send(greet, "Jane", on_failure=partial(Group.objects.create, name="not sent"))

    broker.away = True
    asyncio.run(view())
    assert Group.objects.get().name == "not sent"


def test_where_tasks_are_eager_an_async_view_runs_them(monkeypatch):
    monkeypatch.setitem(current_app.conf, "task_always_eager", True)
    Group.objects.create(name="one")
    assert get("/call/eager/") == "1"


@pytest.mark.parametrize(("name", "rows"), [("plain", 0), ("durable", 1)])
def test_a_view_may_wait_for_the_sending(broker, name, rows):
    task_id = get(f"/wait-for/{name}/")
    assert [message.task_id for message in broker.messages] == [task_id]
    assert OutgoingTask.objects.count() == rows


def test_one_that_waits_is_in_the_transaction_around_it(broker):
    async def notify():
        await charge.adelay("Jane")
        await greet.aapply_async(["Jane"], expires=60)

    with pytest.raises(Stop), transaction.atomic():
        async_to_sync(notify)()
        raise Stop
    assert broker.messages == [] and not OutgoingTask.objects.exists()
    with transaction.atomic():
        async_to_sync(notify)()
        assert broker.messages == []
    assert [message.name for message in broker.messages] == [charge.name, greet.name]


def test_what_a_view_does_in_a_transaction_of_its_own_is_sent_with_that(broker):
    def save():
        with transaction.atomic():
            charge.delay("Jane")
            assert broker.messages == []

    async def view():
        await sync_to_async(save)()

    asyncio.run(view())
    assert len(broker.messages) == OutgoingTask.objects.count() == 1

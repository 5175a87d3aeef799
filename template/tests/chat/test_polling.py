"""Without ASGI a worker writes the reply, and the page asks how far it is."""

import asyncio
from datetime import timedelta

import pytest

pytest.importorskip("celery")

from asgiref.sync import async_to_sync, sync_to_async
from django.urls import reverse
from django.utils import timezone
from kombu.exceptions import OperationalError

from apps.chat import live, replies
from apps.chat.models import Message
from apps.chat.tasks import write_reply


@pytest.fixture
def poll(page, reply):
    return lambda seen="": page.get(reverse("chat:poll", args=[reply.pk]), {"seen": seen})


def test_a_task_writes_the_reply(reply, answers, end):
    answers("Some ", "are.")
    write_reply.apply(args=[reply.pk])
    assert end() == ("done", "Some are.", "")


def test_what_was_seen_stays_whatever_ends_the_reply(poll, page, chat, reply, ending):
    @async_to_sync
    async def see_and_end():
        writing = asyncio.create_task(replies.write(await replies.claim(reply.pk)))
        while "Some" not in (await sync_to_async(poll)()).content.decode() and not writing.done():
            await asyncio.sleep(0.01)
        await ending(writing)

    see_and_end()
    html = page.get(reverse("chat:chat", args=[chat.pk])).content.decode()
    assert "<p>Some</p>" in html and "Try again" in html


def test_a_task_that_is_delivered_twice_asks_the_model_once(reply, model, end):
    write_reply.apply(args=[reply.pk])
    write_reply.apply(args=[reply.pk])
    assert model.replies_begun == 1
    assert end() == ("done", "Trains are **long**.", "")


def test_a_chat_that_was_deleted_is_no_error(chat, reply, model):
    chat.delete()
    assert write_reply.apply(args=[reply.pk]).successful()
    assert not model.requests


def test_without_a_broker_the_reply_says_so(reply, end, monkeypatch, django_capture_on_commit_callbacks):
    def refuse(*args, **kwargs):
        raise OperationalError("Connection refused")

    monkeypatch.setattr("celery.Task.apply_async", refuse)
    with django_capture_on_commit_callbacks(execute=True):
        live.begin(reply)
    assert end()[0] == "failed" and "queue of tasks" in end()[2]


def test_the_page_sees_the_text_grow_and_is_not_told_what_it_knows(poll, reply):
    Message.objects.filter(pk=reply.pk).update(state="writing", text="Some *are*")
    reply.refresh_from_db()
    assert "<em>are</em>" in poll().content.decode()
    assert poll(seen=reply.look).status_code == 204


def test_the_page_stops_asking_at_the_end(poll, reply):
    assert "hx-get" in poll().content.decode()
    Message.objects.filter(pk=reply.pk).update(state="done", text="Some are.")
    assert "hx-get" not in poll().content.decode()


def test_a_reply_that_nobody_takes_is_told(poll):
    Message.objects.update(updated_at=timezone.now() - timedelta(seconds=11))
    assert "Does a worker run?" in poll().content.decode()


def test_a_dead_worker_is_told(poll, reply):
    Message.objects.filter(pk=reply.pk).update(state="writing", updated_at=timezone.now() - timedelta(seconds=60))
    html = poll().content.decode()
    assert replies.SILENT in html and "Try again" in html


def test_the_replies_of_others_do_not_exist(client, other, reply):
    client.force_login(other)
    assert client.get(reverse("chat:poll", args=[reply.pk])).status_code == 404

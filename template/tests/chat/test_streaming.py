"""Under ASGI the web server writes the reply that a page opens: once, however often it is opened, and to its end."""

import asyncio
import threading
from contextlib import aclosing

import pytest

pytest.importorskip("celery")

from asgiref.sync import async_to_sync
from celery import current_app
from django.urls import reverse

from apps.chat import streaming
from apps.chat.models import Message


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(streaming, "SHOW_SECONDS", 0.01)
    monkeypatch.setattr(streaming, "FOLLOW_SECONDS", 0.01)


@pytest.fixture
def stream(async_client, user, reply):
    """`stream()` opens the stream of the reply and reads it to the end, or `until` a text is in it.

    With `then` it calls that at the text, and reads on.
    """
    async_client.force_login(user)

    async def read(until=None, then=None):
        response = await async_client.get(reverse("chat:stream", args=[reply.pk]))
        assert response.headers["Content-Type"] == "text/event-stream"
        events = []
        async with aclosing(response.streaming_content) as parts:
            async for part in parts:
                events.append(part.decode())
                if until and until in events[-1]:
                    if then is None:
                        break
                    then()
        return events

    return read


def test_the_text_grows_and_the_whole_message_comes_last(stream, answers, end):
    answers("**Some** ", "are.")
    events = async_to_sync(stream)()
    assert "<strong>Some</strong>" in events[0]
    assert events[-1].startswith("event: end\n") and "aria-busy" not in events[-1]
    assert end() == ("done", "**Some** are.", "")


def test_what_was_seen_stays_whatever_ends_the_reply(stream, page, chat, ending):
    @async_to_sync
    async def see_and_end():
        events = await stream(until="Some")
        assert events[-1].startswith("event: text\n")
        for writing in list(streaming._writers):
            await ending(writing)

    see_and_end()
    html = page.get(reverse("chat:chat", args=[chat.pk])).content.decode()
    assert "<p>Some</p>" in html and "Try again" in html


def test_every_line_of_an_event_is_marked():
    assert streaming.event("text", "one\ntwo") == "event: text\ndata: one\ndata: two\n\n"


def test_a_stream_that_is_opened_again_costs_nothing(stream, model):
    async_to_sync(stream)()
    assert async_to_sync(stream)()[-1].startswith("event: end\n")
    assert model.replies_begun == 1


def test_two_streams_at_once_ask_the_model_once_and_show_the_same(stream, answers):
    shown, both_show_it = [], asyncio.Event()
    asked = answers("Some ", both_show_it, "**are**.")

    def count():
        shown.append("Some")
        if len(shown) == 2:
            both_show_it.set()

    @async_to_sync
    async def both():
        return await asyncio.gather(stream("Some", count), stream("Some", count))

    first, second = both()
    assert len(asked) == 1
    assert "<strong>are</strong>" in first[-1] and "<strong>are</strong>" in second[-1]


def test_a_reply_goes_on_when_its_page_is_reloaded(stream, answers, end):
    page_is_closed = asyncio.Event()
    asked = answers("Some ", page_is_closed, "**are**.")

    @async_to_sync
    async def reload():
        await stream(until="Some")
        page_is_closed.set()
        return await stream()

    assert "<strong>are</strong>" in reload()[-1]
    assert end() == ("done", "Some **are**.", "") and len(asked) == 1


def test_markdown_that_takes_long_holds_nobody_up(stream, answers, monkeypatch):
    begun, others_go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(streaming, "to_html", lambda text: begun.set() or str(others_go_on.wait(30)))
    answers("Some ")

    @async_to_sync
    async def go_on():
        reading = asyncio.create_task(stream())
        while not (begun.is_set() or reading.done()):
            await asyncio.sleep(0.01)
        others_go_on.set()
        return await reading

    assert go_on()[0] == streaming.event("text", "True")


def test_stop_ends_the_stream(stream, answers, reply, saved):
    answers("Some ", None)

    @async_to_sync
    async def stopped():
        reading = asyncio.create_task(stream())
        await saved("Some ")
        await Message.objects.filter(pk=reply.pk).aupdate(state="stopped")
        return await asyncio.wait_for(reading, timeout=60)

    assert "Try again" in stopped()[-1]


def test_a_chat_that_is_deleted_ends_the_stream(stream, answers, chat, saved):
    answers("Some ", None)

    @async_to_sync
    async def deleted():
        reading = asyncio.create_task(stream())
        await saved("Some ")
        await chat.adelete()
        return await asyncio.wait_for(reading, timeout=60)

    assert deleted()[-1] == "event: end\ndata: \n\n"


def test_a_stream_too_many_ends_at_once_and_is_opened_again_later(stream, answers, monkeypatch):
    monkeypatch.setattr(streaming, "STREAMS_AT_ONCE", 2)
    all_are_there = asyncio.Event()
    answers("Some ", all_are_there, "text.")

    @async_to_sync
    async def three():
        two = [asyncio.create_task(stream("Some", lambda: None)) for _ in range(2)]
        while sum(streaming._open.values()) < 2:
            await asyncio.sleep(0.01)
        third = await stream()
        all_are_there.set()
        return third, await asyncio.gather(*two)

    third, others = three()
    assert third == ["retry: 15000\n\n"]
    assert all("Some text." in each[-1] for each in others)
    assert not streaming._open and not streaming._watch.readers


def test_one_query_serves_all_who_follow(stream, answers, monkeypatch):
    monkeypatch.setattr(streaming, "STREAMS_AT_ONCE", 50)
    all_are_there, looks = asyncio.Event(), []
    texts = streaming._texts
    monkeypatch.setattr(streaming, "_texts", lambda ids: looks.append(tuple(ids)) or texts(ids))
    asked = answers("Some ", all_are_there, "text.")

    @async_to_sync
    async def many():
        readers = [asyncio.create_task(stream()) for _ in range(50)]
        while sum(streaming._watch.readers.values()) < 49 and not any(each.done() for each in readers):
            await asyncio.sleep(0.01)
        looks.clear()
        await asyncio.sleep(0.1)
        seen = len(looks)
        all_are_there.set()
        return seen, await asyncio.gather(*readers)

    seen, ends = many()
    assert len(asked) == 1 and seen < 100
    assert all("Some text." in each[-1] for each in ends)


def test_the_replies_of_others_do_not_exist(client, other, reply):
    client.force_login(other)
    assert client.get(reverse("chat:stream", args=[reply.pk])).status_code == 404


def test_no_task_writes_replies():
    assert "apps.chat.tasks.write_reply" not in current_app.tasks

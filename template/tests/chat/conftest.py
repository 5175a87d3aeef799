import asyncio
from datetime import timedelta
from unittest.mock import AsyncMock

import pytest

pytest.importorskip("celery")

from asgiref.sync import sync_to_async
from django.urls import reverse
from django.utils import timezone

from apps.chat import ai, replies
from apps.chat.models import Chat, Message
from apps.users.models import User

from .model_server import model_server


@pytest.fixture(autouse=True)
def no_model_is_asked(monkeypatch, settings):
    """Whatever .env says: without a model chats echo, and a test that asks one fails before it costs anything."""
    settings.DEFAULT_AI_MODEL = ""
    settings.CHAT_REPLIES_PER_HOUR = 100
    monkeypatch.setattr("pydantic_ai.models.ALLOW_MODEL_REQUESTS", False)
    monkeypatch.setattr("apps.chat.ai.ECHO_SECONDS", 0)
    monkeypatch.setattr(replies, "SAVE_SECONDS", 0.02)


@pytest.fixture
def user(db):
    return User.objects.create_user("ada@example.com")


@pytest.fixture
def other(db):
    return User.objects.create_user("bob@example.com")


@pytest.fixture
def page(client, user):
    """A browser that is signed in."""
    client.force_login(user)
    return client


@pytest.fixture
def chat(user):
    return Chat.objects.create(owner=user, name="Trains")


@pytest.fixture
def reply(chat):
    """A reply that waits."""
    return replies.ask(chat, "Are trains long?")[1]


@pytest.fixture
def model(monkeypatch, settings):
    """A model that answers by HTTP; return its server."""
    with model_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("pydantic_ai.models.ALLOW_MODEL_REQUESTS", True)
        settings.DEFAULT_AI_MODEL = "openai-chat:trains"
        yield server


@pytest.fixture
def answers(monkeypatch):
    """`answers(*pieces)` decides what every answer is made of, and returns the list of the conversations so far.

    Pieces are texts, errors to raise, events to wait for, and None for a wait without end.
    """

    def decide(*pieces):
        asked = []

        async def answer(turns):
            asked.append(turns)
            for piece in pieces:
                if piece is None:
                    await asyncio.Event().wait()
                elif isinstance(piece, asyncio.Event):
                    await piece.wait()
                elif isinstance(piece, Exception):
                    raise piece
                else:
                    yield piece

        monkeypatch.setattr("apps.chat.ai.answer", answer)
        return asked

    return decide


@pytest.fixture
def saved(reply):
    """`await saved(text)` waits until the text of the reply is in the database."""

    async def wait(text):
        while not await Message.objects.filter(pk=reply.pk, text=text).aexists():
            await asyncio.sleep(0.01)

    return wait


@pytest.fixture
def end(reply):
    """Return a function that reads how the reply has ended: state, text and error."""
    return lambda: Message.objects.values_list("state", "text", "error").get(pk=reply.pk)


@pytest.fixture(params=["stop", "stop without JavaScript", "failure", "time is over", "silence", "shutdown", "kill"])
def ending(request, page, chat, reply, answers, settings, monkeypatch):
    """Return each thing in turn that ends a reply after its first words, "Some ": `await ending(writing)` does it.

    `writing` is the task that writes. It rarely saves, so that what it shows and what it has saved may differ.
    """
    monkeypatch.setattr(replies, "SAVE_SECONDS", 0.3)
    # To read the conversation may take longer than a reply may here.
    monkeypatch.setattr(replies, "turns_before", AsyncMock(return_value=[]))
    settings.CHAT_REPLY_SECONDS = 0.6 if request.param == "time is over" else 60
    model_fails = asyncio.Event()
    answers("Some ", model_fails, ai.ModelFailed("The model is ill."))

    def stop(**headers):
        page.post(reverse("chat:stop", args=[reply.pk]), headers=headers)

    def be_silent():
        Message.objects.update(updated_at=timezone.now() - timedelta(seconds=replies.SILENT_SECONDS + 1))
        replies.close_silent(chat=chat)

    async def end(writing):
        match request.param:
            case "stop":
                await sync_to_async(stop)(**{"HX-Request": "true"})
            case "stop without JavaScript":
                await sync_to_async(stop)()
            case "failure":
                model_fails.set()
            case "silence":
                await sync_to_async(be_silent)()
            case "shutdown":
                writing.cancel()
            case "kill":
                # It saves nothing any more, and its sign of life ends.
                monkeypatch.setattr(replies.Draft, "save", AsyncMock(return_value=False))
                await sync_to_async(be_silent)()
        await asyncio.wait_for(asyncio.gather(writing, return_exceptions=True), timeout=60)

    return end

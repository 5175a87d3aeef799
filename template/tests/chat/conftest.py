import asyncio

import pytest

pytest.importorskip("celery")

from apps.chat import replies
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

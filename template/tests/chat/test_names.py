"""A chat has a name: a short first message at once, else by a task, whatever becomes of the chat meanwhile."""

from datetime import timedelta
from unittest.mock import AsyncMock

import pytest

pytest.importorskip("celery")

from celery import current_app
from django.urls import reverse
from django.utils import timezone

from apps.background.immediate import AfterCommitBackend
from apps.chat import ai, replies
from apps.chat.models import Chat
from apps.chat.tasks import name_chat
from apps.tasks.sending.backend import register

LONG = "Are trains in general longer than the planes that fly above them?"


@pytest.fixture
def sent(monkeypatch):
    """The names of the tasks that were enqueued, none of which runs, and none of those that are sent."""
    names = []
    monkeypatch.setattr("celery.Task.apply_async", lambda *args, **options: None)
    monkeypatch.setattr(AfterCommitBackend, "enqueue", lambda self, task, *arguments: names.append(task.name))
    return names


@pytest.fixture
def start(page, django_capture_on_commit_callbacks):
    """`start(text)` starts a chat on the page and returns it."""

    def start(text):
        with django_capture_on_commit_callbacks(execute=True):
            page.post(reverse("chat:index"), {"text": text})
        return Chat.objects.get()

    return start


@pytest.fixture
def unnamed(user):
    chat = Chat.objects.create(owner=user)
    replies.ask(chat, LONG)
    return chat


def run(chat):
    """Run the task as a worker does, with its retries."""
    return register(name_chat).apply(args=[str(chat.pk)])


def test_a_short_first_message_is_the_name_and_needs_no_task(start, sent):
    assert start("Are trains long?").name == "Are trains long?"
    assert not sent


def test_a_longer_one_is_named_by_a_task(start, sent):
    assert start(LONG).name == ""
    assert sent == ["name_chat"]


def test_the_model_names(unnamed, model):
    run(unnamed)
    unnamed.refresh_from_db()
    assert unnamed.name == "Trains of Europe"


def test_a_chat_that_was_deleted_is_no_error(unnamed, model):
    Chat.objects.all().delete()
    assert run(unnamed).successful()
    assert not model.requests


def test_a_chat_that_is_deleted_while_the_model_thinks_is_no_error(unnamed, monkeypatch):
    async def name(question):
        await Chat.objects.all().adelete()
        return "Trains"

    monkeypatch.setattr(ai, "name_for", name)
    assert run(unnamed).successful()
    assert not Chat.objects.exists()


def test_a_name_given_by_hand_stays(unnamed, model):
    Chat.objects.update(name="Mine")
    run(unnamed)
    unnamed.refresh_from_db()
    assert unnamed.name == "Mine" and not model.requests


def test_a_model_that_fails_again_and_again_leaves_the_first_words(unnamed, model, monkeypatch):
    model.status = 400
    run(unnamed)
    unnamed.refresh_from_db()
    assert unnamed.name == "Are trains in general longer than…"
    assert len(model.requests) == 3


@pytest.mark.parametrize("error", [RuntimeError("secret"), OSError("no DNS")])
def test_whatever_fails_there_is_a_name_in_the_end(unnamed, monkeypatch, error):
    monkeypatch.setattr(ai, "name_for", AsyncMock(side_effect=error))
    assert run(unnamed).successful()
    unnamed.refresh_from_db()
    assert unnamed.name == "Are trains in general longer than…"


def test_without_a_worker_the_page_gets_a_name_after_a_minute(page, unnamed):
    url = reverse("chat:name", args=[unnamed.pk])
    assert page.get(url).status_code == 204
    Chat.objects.update(asked_at=timezone.now() - timedelta(minutes=2))
    html = page.get(url).content.decode()
    assert "Are trains in general longer than…" in html and "hx-get" not in html


def test_the_task_is_registered_under_its_name():
    register(name_chat)
    assert "apps.chat.tasks.name_chat" in current_app.tasks

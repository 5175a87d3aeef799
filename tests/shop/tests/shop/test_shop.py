"""The tests that the user has written for the app. They do not know what runs tasks."""

import asyncio
from datetime import timedelta

import pytest
from django.core.management import call_command
from django.db import transaction
from django.utils import timezone

from apps.background import TaskResultDoesNotExist
from apps.background.models import EnqueuedTask
from apps.shop import tasks
from apps.shop.models import Note


@pytest.mark.django_db(transaction=True)
def test_a_task_returns_a_value_and_is_found_by_its_id():
    result = tasks.write.enqueue("Milk")
    assert tasks.write.get_result(result.id).return_value == "Milk"
    assert Note.objects.get().text == "Milk"


@pytest.mark.django_db(transaction=True)
def test_a_task_knows_its_attempt():
    assert tasks.write_attempt.enqueue("Milk").return_value == [1, ["Milk"], "RUNNING"]


@pytest.mark.django_db(transaction=True)
def test_a_coroutine_enqueues_and_is_enqueued():
    async def enqueue():
        return await tasks.write_in_a_coroutine.aenqueue("Milk")

    assert asyncio.run(enqueue()).return_value == "Milk"


@pytest.mark.django_db(transaction=True)
def test_an_error_is_recorded():
    [error] = tasks.sell_out.enqueue("Milk").errors
    assert error.exception_class is tasks.SoldOut and "Milk" in error.traceback


@pytest.mark.django_db(transaction=True)
def test_a_task_runs_after_the_commit():
    with transaction.atomic():
        result = tasks.write.enqueue("Milk")
        assert not Note.objects.exists()
    assert Note.objects.exists()
    assert tasks.write.get_result(result.id).status == "SUCCESSFUL"


@pytest.mark.django_db(transaction=True)
def test_a_rollback_enqueues_nothing():
    with transaction.atomic():
        result = tasks.write.enqueue("Milk")
        transaction.set_rollback(True)
    assert not Note.objects.exists()
    with pytest.raises(TaskResultDoesNotExist):
        tasks.write.get_result(result.id)


@pytest.mark.django_db(transaction=True)
def test_a_deferred_task_waits():
    tasks.write_later.using(run_after=timezone.now() + timedelta(days=1)).enqueue("Milk")
    call_command("run_due_tasks")
    assert not Note.objects.exists()
    EnqueuedTask.objects.update(run_after=timezone.now())
    call_command("run_due_tasks")
    assert Note.objects.get().text == "Milk"


def test_the_page_enqueues_and_shows_the_result(client, db, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True):
        answer = client.post("/shop/", {"text": "Milk"})
    assert "SUCCESSFUL: <strong>Milk</strong>" in client.get(answer.url).content.decode()
    assert client.get("/shop/unknown/").status_code == 404


def test_the_function_can_be_called(db):
    assert tasks.square.call(3) == 9

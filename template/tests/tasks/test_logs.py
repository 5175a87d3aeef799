"""The log lines of a task name it and the request that has sent it."""

import json
import logging

import pytest

pytest.importorskip("celery")

from celery import shared_task
from celery.app.trace import trace_task
from django.db import transaction

from apps.tasks.models import OutgoingTask
from apps.tasks.worker import logs
from apps.web.logs import fields

pytestmark = pytest.mark.django_db(transaction=True)

seen = []


@shared_task(name="tests.logs.look")
def look():
    seen.append(dict(fields.get()))


@shared_task(name="tests.logs.hand_on")
def hand_on():
    look.delay()


@shared_task(name="tests.logs.pay", durable=True)
def pay(): ...


@pytest.fixture
def in_request():
    """Be in a request with an id."""
    token = fields.set({"request_id": "abc-1"})
    yield
    fields.reset(token)


def run(task, **headers):
    request = {"id": "1", "retries": 0, "delivery_info": {}, **headers}
    trace_task(task, "1", (), {}, request=request, app=task.app)


def test_a_task_is_sent_with_the_id_of_its_request(broker, in_request):
    look.delay()
    with transaction.atomic():
        look.delay()
    assert [message.options["headers"]["request_id"] for message in broker.messages] == ["abc-1"] * 2


def test_a_task_that_waits_in_the_outbox_keeps_the_id(broker, in_request):
    broker.away = True
    look.apply_async(after_commit=True)
    pay.delay()
    stored = [json.loads(row.message)["options"]["headers"]["request_id"] for row in OutgoingTask.objects.all()]
    assert stored == ["abc-1"] * 2


def test_without_a_request_a_task_is_sent_without_an_id(broker):
    look.delay()
    assert "request_id" not in (broker.messages[0].options.get("headers") or {})


def test_the_lines_of_a_task_name_it_and_its_request_and_those_after_it_do_not():
    seen.clear()
    run(look, request_id="abc-1")
    assert seen == [{"request_id": "abc-1", "task_id": "1", "task_name": "tests.logs.look"}]
    assert fields.get() == {}


def test_a_task_hands_the_id_on(broker):
    run(hand_on, request_id="abc-1")
    assert broker.messages[0].options["headers"]["request_id"] == "abc-1"


def test_celerys_own_lines_name_the_task_and_not_its_arguments():
    record = logging.makeLogRecord({"msg": "received", "data": {"id": "1", "name": "tests.logs.look", "args": "(7,)"}})
    line = json.loads(logs.TaskJsonFormatter().format(record))
    assert (line["task_id"], line["task_name"]) == ("1", "tests.logs.look") and "args" not in line


@pytest.mark.parametrize("form, kind", [("json", logs.TaskJsonFormatter), ("plain", logging.Formatter)])
def test_a_worker_has_the_format_of_the_settings(settings, form, kind):
    settings.LOG_FORMAT = form
    logger, handler = logging.Logger("some"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter())
    logger.addHandler(handler)
    logs.write_json(logger=logger)
    assert type(handler.formatter) is kind

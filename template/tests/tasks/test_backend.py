"""Tasks of Django's framework are sent as Celery's are, and their rows say what has become of them."""

import sys
from datetime import timedelta
from types import SimpleNamespace

import pytest

pytest.importorskip("celery")

from billiard.exceptions import TimeLimitExceeded
from celery import current_app
from celery.app.task import Context
from django.core.management import call_command
from django.db import transaction
from django.utils import timezone
from kombu.exceptions import OperationalError

from apps.background import Task, TaskResultStatus, execution, records
from apps.background.models import EnqueuedTask
from apps.tasks.broker.priorities import broker_priority
from apps.tasks.models import OutgoingTask
from apps.tasks.sending import backend
from apps.tasks.sending.backend import WorkerBackend, record_revoked, register
from apps.tasks.sending.outbox import send_waiting
from apps.tasks.sending.stored import send_stored
from apps.users.models import User
from tests.background import declared

pytestmark = pytest.mark.django_db(transaction=True)
PATH = "tests.background.declared"
WORKERS = {"BACKEND": "apps.tasks.sending.backend.WorkerBackend", "QUEUES": []}


@pytest.fixture(autouse=True)
def workers(settings):
    """Have workers run the tasks."""
    settings.TASKS = {"default": WORKERS}
    declared.calls.clear()


@pytest.fixture
def eager(monkeypatch):
    """Run the tasks here, as a worker would."""
    monkeypatch.setitem(current_app.conf, "task_always_eager", True)


@pytest.fixture
def sent(monkeypatch):
    """The messages that the broker got: a name, the arguments and the options of each."""
    messages = []

    def take(task, args=None, kwargs=None, **options):
        messages.append((task.name, list(args), dict(kwargs), options))

    monkeypatch.setattr("celery.Task.apply_async", take)
    return messages


def row(result):
    return EnqueuedTask.objects.get(pk=result.id)


# Sending --------------------------------------------------------------------


def test_each_task_is_registered_under_its_dotted_path():
    assert {name for name in current_app.tasks if name.startswith(PATH)} == {
        each.module_path for each in vars(declared).values() if isinstance(each, Task)
    }


def test_the_message_carries_the_name_the_arguments_and_the_id(sent):
    result = declared.add.enqueue(2, y=3)
    [(name, args, kwargs, options)] = sent
    assert (name, args, kwargs, options["task_id"]) == (f"{PATH}.add", [2], {"y": 3}, result.id)
    assert (result.status, row(result).status) == ("READY", "READY")


def test_a_task_is_sent_on_commit_and_not_after_a_rollback(sent):
    with transaction.atomic():
        declared.add.enqueue(1)
        assert not sent
    with pytest.raises(declared.Refused), transaction.atomic():
        declared.add.enqueue(2)
        raise declared.Refused
    assert [args for _, args, *_ in sent] == [[1]]
    assert EnqueuedTask.objects.count() == 1


def test_while_the_broker_is_down_a_task_waits_in_the_outbox(monkeypatch):
    def refuse(*args, **options):
        raise OperationalError("Connection refused")

    monkeypatch.setattr("celery.Task.apply_async", refuse)
    result = declared.add.enqueue(1)
    waiting = OutgoingTask.objects.get()
    assert (waiting.task_id, waiting.name, row(result).status) == (result.id, f"{PATH}.add", "READY")


def test_the_queue_and_the_priority_are_those_of_the_task(sent):
    declared.hurry.enqueue()
    declared.add.enqueue(1)
    declared.add.using(priority=-60).enqueue(1)
    options = [(each[3].get("queue"), each[3]["priority"]) for each in sent]
    assert options == [("urgent", 1), (None, 3), (None, 9)]


def test_a_task_that_beat_sends_goes_to_its_queue_and_back_to_the_default_one_if_a_call_says_so(broker):
    beat_sends(declared.hurry)
    declared.hurry.using(queue_name="default").enqueue()
    broker.away = True
    with transaction.atomic():
        beat_sends(declared.hurry)
    broker.away = False
    OutgoingTask.objects.update(send_at=timezone.now())
    send_waiting()
    assert [message.options.get("queue") for message in broker.messages] == ["urgent", "celery", "urgent"]


def beat_sends(task):
    register(task).apply_async((), {}, producer=None)


@pytest.mark.parametrize(
    ("url", "levels"),
    [("redis://localhost", [1, 1, 3, 6, 6, 9, 9]), ("amqp://localhost", [5, 5, None, None, None, None, None])],
)
def test_a_larger_priority_comes_first_on_each_broker(monkeypatch, url, levels):
    monkeypatch.setitem(current_app.conf, "broker_url", url)
    assert [broker_priority(each) for each in (100, 1, 0, -1, -50, -51, -100)] == levels


def test_a_deferred_task_is_due_at_its_time_however_far(sent):
    soon, far = timezone.now() + timedelta(seconds=30), timezone.now() + timedelta(days=90)
    declared.add.using(run_after=soon).enqueue(1)
    assert sent[0][3]["eta"] == soon
    declared.add.using(run_after=far).enqueue(2)
    assert len(sent) == 1 and OutgoingTask.objects.get().reason == "its time is far"


def test_what_a_task_asks_for_is_asked_of_celery(sent):
    declared.remember.enqueue("jane@example.com")
    assert OutgoingTask.objects.get().durable
    quick, again = register(declared.be_quick), register(declared.succeed_at)
    assert (quick.time_limit, quick.soft_time_limit) == (20, 18)
    assert (again.max_retries, again.autoretry_for) == (2, (declared.Refused,))


def test_what_waited_while_celery_was_off_is_sent_by_the_release(sent, settings):
    settings.TASKS = {"default": WORKERS | {"OPTIONS": {"immediate": True}}}
    due = timezone.now() + timedelta(seconds=60)
    result = declared.add.using(run_after=due).enqueue(1)
    settings.TASKS = {"default": WORKERS}
    for _ in range(2):
        call_command("bootstrap_celery_tasks", verbosity=0)
    [(name, args, _, options)] = sent
    assert (name, args, options["task_id"], options["eta"]) == (f"{PATH}.add", [1], result.id, due)


def test_what_waited_without_keeping_its_result_leaves_no_row_when_it_is_sent(sent, settings):
    settings.TASKS = {"default": WORKERS | {"OPTIONS": {"immediate": True}}}
    declared.leave_nothing.using(run_after=timezone.now() + timedelta(seconds=60)).enqueue(1)
    settings.TASKS = {"default": WORKERS}
    assert send_stored() == 1
    assert len(sent) == 1 and not EnqueuedTask.objects.exists()


@pytest.mark.parametrize("column", [{"queue_name": "gone"}, {"path": f"{PATH}.gone"}, {"path": f"{PATH}.later"}])
def test_what_waited_and_is_unknown_now_stops_no_release_and_no_other_task(sent, settings, caplog, column):
    settings.TASKS = {"default": WORKERS | {"OPTIONS": {"immediate": True}}}
    results = [declared.add.using(run_after=timezone.now() + timedelta(seconds=60)).enqueue(1) for _ in range(2)]
    EnqueuedTask.objects.filter(pk=results[0].id).update(**column)
    settings.TASKS = {"default": WORKERS | {"QUEUES": ["default"]}}
    assert send_stored() == 1
    assert [options["task_id"] for *_, options in sent] == [results[1].id]
    assert results[0].id in caplog.text and row(results[0]).send_at


def pass_time():
    """Let the time come at which a message that may be missing is sent again."""
    EnqueuedTask.objects.filter(send_at__isnull=False).update(send_at=timezone.now())


def test_a_task_whose_process_ends_before_its_message_is_sent_is_sent_once_and_not_too_soon(sent, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(backend, "send", lambda result: None)
        result = declared.hurry.enqueue()
    send_waiting()
    assert not sent
    pass_time()
    for _ in range(2):
        send_waiting()
    [(name, _, _, options)] = sent
    assert (name, options["task_id"], options["queue"]) == (f"{PATH}.hurry", result.id, "urgent")
    assert options["headers"]["enqueued"] == result.id


@pytest.mark.parametrize("task", [declared.add, declared.remember], ids=["plain", "durable"])
def test_a_task_that_was_sent_is_not_sent_again(sent, task):
    task.enqueue("jane@example.com")
    with transaction.atomic():
        task.enqueue("joe@example.com")
        assert row_times() != [None, None]
    assert row_times() == [None, None]
    send_waiting()
    assert len(sent) == 2


def row_times():
    return list(EnqueuedTask.objects.values_list("send_at", flat=True))


@pytest.mark.parametrize("column", [{"status": "RUNNING"}, {"status": "SUCCESSFUL"}])
def test_a_task_that_a_worker_has_taken_is_not_sent_again(sent, monkeypatch, column):
    monkeypatch.setattr(records, "mark_sent", lambda task_id: None)
    declared.add.enqueue(1)
    EnqueuedTask.objects.update(**column)
    pass_time()
    send_waiting()
    assert len(sent) == 1


def test_a_task_that_is_tried_again_is_not_sent_by_its_row(sent, monkeypatch):
    monkeypatch.setattr(records, "mark_sent", lambda task_id: None)
    result = declared.add.enqueue(1)
    execution.begin(WorkerBackend, result, "worker")
    execution.postpone(result, declared.Refused())
    assert (row(result).status, row(result).send_at) == ("READY", None)


@pytest.mark.parametrize("task", [declared.add.using(run_after=timezone.now() + timedelta(days=90)), declared.remember])
def test_a_task_that_the_outbox_has_is_left_to_it(sent, monkeypatch, task):
    with monkeypatch.context() as patch:
        patch.setattr(records, "mark_sent", lambda task_id: None)
        task.enqueue(1)
    before, outgoing = len(sent), OutgoingTask.objects.get()
    pass_time()
    send_waiting()
    OutgoingTask.objects.all().delete()
    send_waiting()
    assert len(sent) == before and outgoing.task_id


def test_the_backend_supports_what_it_says():
    assert all(getattr(WorkerBackend, f"supports_{what}") for what in ("async_task", "defer", "get_result", "priority"))


# Running --------------------------------------------------------------------


def test_a_worker_records_what_the_task_returns(eager):
    result = declared.add.enqueue(2)
    result.refresh()
    assert (result.return_value, result.attempts, declared.calls) == (3, 1, [(2, 1)])
    assert result.enqueued_at <= result.started_at <= result.finished_at


def test_where_tasks_run_at_once_the_result_is_told_at_once(eager):
    assert declared.add.enqueue(2).return_value == 3
    with transaction.atomic():
        result = declared.fail.enqueue()
        assert result.status == "READY"
    assert result.status == "FAILED"


def test_a_worker_runs_async_functions_and_gives_the_context(eager):
    doubled, attempted = declared.double.enqueue(4), declared.attempt.enqueue()
    assert declared.double.get_result(doubled.id).return_value == 8
    assert declared.attempt.get_result(attempted.id).return_value == [1, attempted.id]


def test_a_worker_runs_a_task_as_the_settings_say(eager):
    tasks = (declared.look_around, declared.look_around_in_a_coroutine) * 2
    declared.check_isolation(lambda: [task.get_result(task.enqueue().id).return_value for task in tasks])


def test_an_async_function_is_refused_on_gevent_before_it_harms_its_neighbours(eager, monkeypatch):
    monkeypatch.setitem(sys.modules, "gevent.monkey", SimpleNamespace(is_module_patched=lambda name: True))
    refused, fine = declared.double.enqueue(4), declared.add.enqueue(1)
    [error] = declared.double.get_result(refused.id).errors
    assert "cannot run on gevent: use --pool=prefork" in error.traceback
    assert declared.add.get_result(fine.id).return_value == 2


def test_a_retried_task_counts_its_attempts_and_keeps_their_errors(eager):
    result = declared.succeed_at.enqueue(3)
    result.refresh()
    assert (result.status, result.return_value, result.attempts) == ("SUCCESSFUL", 3, 3)
    assert [error.exception_class for error in result.errors] == [declared.Refused] * 2


def test_a_task_that_fails_for_good_keeps_the_error_of_each_attempt(eager):
    result = declared.succeed_at.enqueue(9)
    result.refresh()
    assert (result.status, result.attempts, len(result.errors)) == ("FAILED", 3, 3)
    assert "attempt 3" in result.errors[-1].traceback


@pytest.mark.parametrize("name", ["return_what_is_no_json", "exit_at_once"])
def test_whatever_ends_a_task_is_recorded(eager, name):
    result = getattr(declared, name).enqueue()
    result.refresh()
    assert result.status == TaskResultStatus.FAILED and len(result.errors) == 1


@pytest.mark.parametrize("what", declared.WHAT_NO_DATABASE_STORES)
@pytest.mark.parametrize(
    ("name", "error"), [("return_what_no_database_stores", TypeError), ("fail_with", declared.Refused)]
)
def test_what_no_database_stores_fails_its_task(eager, name, error, what):
    result = getattr(declared, name).enqueue(what)
    result.refresh()
    assert (result.status, [each.exception_class for each in result.errors]) == ("FAILED", [error])


def test_a_task_that_is_tried_for_ever_keeps_its_latest_errors(eager):
    result = declared.succeed_at_last.enqueue(records.KEPT_ERRORS + 5)
    result.refresh()
    assert (result.status, result.attempts, len(result.errors)) == ("SUCCESSFUL", 25, records.KEPT_ERRORS)
    assert "attempt 24" in result.errors[-1].traceback and "attempt 5" in result.errors[0].traceback


def test_without_a_row_the_attempts_are_counted_all_the_same(eager):
    assert declared.leave_nothing.enqueue(1).status == "READY"
    assert declared.calls == [1] and not EnqueuedTask.objects.exists()


def test_a_second_message_of_a_task_that_has_succeeded_does_nothing(eager):
    result = declared.add.enqueue(1)
    register(declared.add).apply(args=[1], task_id=result.id, headers={"enqueued": result.id})
    assert declared.calls == [(1, 1)] and row(result).status == "SUCCESSFUL"


def test_a_task_that_beat_sends_leaves_a_row():
    assert register(declared.add).apply(args=[5], task_id="beat").result == 6
    found = declared.add.get_result("beat")
    assert (found.status, found.return_value, found.args, found.attempts) == ("SUCCESSFUL", 6, [5], 1)


def test_a_task_that_beat_sends_and_that_is_tried_again_leaves_one_row():
    register(declared.succeed_at).apply(args=[3], task_id="beat")
    found = declared.succeed_at.get_result("beat")
    assert (found.status, found.attempts, len(found.errors)) == ("SUCCESSFUL", 3, 2)


def test_a_task_that_beat_sends_and_that_keeps_no_result_costs_no_query(django_assert_num_queries):
    with django_assert_num_queries(0):
        register(declared.leave_nothing).apply(args=[5])
    assert declared.calls == [5]


@pytest.mark.parametrize("keeps", [True, False])
def test_a_task_that_beat_sends_and_that_is_killed_has_failed(keeps):
    killed = declared.add if keeps else declared.leave_nothing
    register(killed).record_end(Context(id="beat", args=[1], kwargs={}, headers=None), TimeLimitExceeded(300))
    assert list(EnqueuedTask.objects.values_list("pk", "status")) == [("beat", "FAILED")] * keeps


def test_a_failed_task_that_is_sent_again_after_its_row_was_deleted_runs():
    headers = {"enqueued": "old", "failed_earlier": {"tries": 1, "since": timezone.now().isoformat()}}
    register(declared.add).apply(args=[5], task_id="old", headers=headers)
    assert declared.add.get_result("old").return_value == 6


def test_a_task_whose_row_was_deleted_does_not_run(eager, monkeypatch):
    monkeypatch.setattr(records, "add", lambda result, **times: None)
    result = declared.add.enqueue(1)
    assert not declared.calls
    register(declared.add).record_end(request_of(result), TimeLimitExceeded(300))
    assert not EnqueuedTask.objects.exists()


def request_of(result):
    return Context(id=result.id, args=result.args, kwargs=result.kwargs, headers=None, enqueued=result.id)


def test_a_killed_task_is_recorded_as_failed_once(sent):
    result = declared.add.enqueue(1)
    for _ in range(2):
        register(declared.add).record_end(request_of(result), TimeLimitExceeded(300), "killed")
    result.refresh()
    assert (result.status, [error.exception_class for error in result.errors]) == ("FAILED", [TimeLimitExceeded])


@pytest.mark.parametrize("column", [{"queue_name": "gone"}, {"backend": "gone"}, {"path": f"{PATH}.gone"}])
def test_a_row_that_names_what_is_gone_keeps_no_task_from_running_and_from_failing(sent, settings, column):
    settings.TASKS = {"default": WORKERS | {"QUEUES": ["default"]}}
    for run in (
        lambda result: register(declared.add).apply(args=[1], task_id=result.id, headers={"enqueued": result.id}),
        lambda result: register(declared.add).record_end(request_of(result), TimeLimitExceeded(300)),
    ):
        result = declared.add.enqueue(1)
        EnqueuedTask.objects.filter(pk=result.id).update(**column)
        run(result)
    assert sorted(EnqueuedTask.objects.values_list("status", flat=True)) == ["FAILED", "SUCCESSFUL"]


def test_a_revoked_task_is_recorded_as_failed(sent):
    result = declared.add.enqueue(1)
    record_revoked(sender=register(declared.add), request=request_of(result))
    assert row(result).status == "FAILED" and "TaskRevoked" in row(result).errors[0]["exception_class_path"]


def test_the_database_may_be_away_when_a_task_ends(eager, monkeypatch, caplog):
    change = records.change

    def fail_to_record(result, **values):
        if values.get("status") == TaskResultStatus.SUCCESSFUL:
            monkeypatch.setattr(EnqueuedTask._meta, "db_table", "gone")
        try:
            change(result, **values)
        finally:
            monkeypatch.setattr(EnqueuedTask._meta, "db_table", "background_enqueuedtask")

    monkeypatch.setattr(records, "change", fail_to_record)
    declared.remember.enqueue("jane@example.com")
    assert User.objects.filter(email="jane@example.com").exists()
    assert "is not recorded as SUCCESSFUL" in caplog.text

"""A task that an app declares runs after the commit, and its result says what has become of it."""

import asyncio
import importlib
import sys
from datetime import timedelta
from io import StringIO

import pytest
from asgiref.sync import async_to_sync
from django.core.exceptions import SynchronousOnlyOperation
from django.core.management import CommandError, call_command
from django.db import transaction
from django.urls import reverse
from django.utils import timezone

from apps.background import InvalidTask, TaskResultDoesNotExist, TaskResultStatus, framework, records, task
from apps.background.models import EnqueuedTask
from apps.users.models import User

from . import declared

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def calls():
    declared.calls.clear()
    return declared.calls


@pytest.fixture
def signals():
    """The signals that were sent, as pairs of a name and the status at that moment."""
    seen = []

    def listen(name):
        return lambda sender, task_result, **kwargs: seen.append((name, task_result.status))

    listeners = {name: listen(name) for name in ("task_enqueued", "task_started", "task_finished")}
    for name, listener in listeners.items():
        getattr(framework, name).connect(listener)
    yield seen
    for name, listener in listeners.items():
        getattr(framework, name).disconnect(listener)


def run_due_tasks():
    out = StringIO()
    call_command("run_due_tasks", stdout=out)
    return out.getvalue()


def later(seconds=60):
    return timezone.now() + timedelta(seconds=seconds)


# Running --------------------------------------------------------------------


def test_a_task_has_ended_when_enqueue_returns(calls):
    result = declared.add.enqueue(2, y=3)
    assert (result.status, result.return_value, result.attempts, calls) == ("SUCCESSFUL", 5, 1, [(2, 3)])
    assert result.enqueued_at <= result.started_at <= result.finished_at
    assert result.last_attempted_at == result.started_at and not result.errors


def test_a_task_may_be_called_instead(calls):
    assert declared.add.call(2) == 3
    assert not EnqueuedTask.objects.exists()


def test_an_async_function_is_a_task():
    assert declared.double.enqueue(4).return_value == 8


def test_a_coroutine_enqueues():
    async def enqueue():
        result = await declared.add.aenqueue(1)
        return result, await declared.add.aget_result(result.id)

    result, found = asyncio.run(enqueue())
    assert (result.return_value, found.return_value) == (2, 2)


def test_a_coroutine_that_would_block_is_told_what_to_write():
    async def enqueue():
        declared.add.enqueue(1)

    with pytest.raises(SynchronousOnlyOperation, match=r"await task\.aenqueue"):
        asyncio.run(enqueue())
    assert not EnqueuedTask.objects.exists()


def test_a_coroutine_in_a_transaction_enqueues_in_it(calls):
    async def enqueue():
        await declared.add.aenqueue(1)

    with transaction.atomic():
        async_to_sync(enqueue)()
        assert not calls
    assert calls == [(1, 1)]


def test_the_context_tells_the_attempt_and_the_result():
    result = declared.attempt.enqueue()
    assert result.return_value == [1, result.id]


def test_priority_and_queue_belong_to_the_task():
    result = declared.hurry.enqueue()
    assert (result.task.priority, result.task.queue_name, result.return_value) == (50, "urgent", "hurried")
    assert declared.hurry.using(priority=-100).enqueue().task.priority == -100
    with pytest.raises(InvalidTask):
        declared.hurry.using(priority=101)


def test_a_function_within_a_function_is_refused():
    with pytest.raises(InvalidTask, match="module level"):

        @task
        def local(): ...


def test_a_task_that_is_bound_to_another_name_is_refused():
    with pytest.raises(InvalidTask, match=r"declared\.function is not this task.*: function = task\(function\)\."):
        declared.bound_to_another_name.enqueue()
    assert not EnqueuedTask.objects.exists()
    assert declared.bound_to_its_name.using(priority=5).enqueue().status == "SUCCESSFUL"


def test_arguments_are_json():
    assert declared.add.enqueue((1,), [2]).args == [[1], [2]]
    with pytest.raises(TypeError):
        declared.add.enqueue(object())
    assert EnqueuedTask.objects.count() == 1


@pytest.mark.parametrize("value", declared.WHAT_NO_DATABASE_STORES.values(), ids=ascii)
def test_an_argument_that_no_database_stores_is_refused_at_once(value):
    for arguments, named in (([value], {}), ([], {"x": [value]})):
        with pytest.raises(TypeError, match="An argument cannot be stored as JSON: "):
            declared.add.enqueue(*arguments, **named)
    assert not EnqueuedTask.objects.exists()


def test_an_escape_that_stands_for_itself_is_stored():
    texts = ["\\u0000", "\\\\u0000", "C:\\users", "ü", "\N{GRINNING FACE}"]
    assert declared.double.enqueue(texts).return_value == texts * 2


def test_a_task_runs_as_the_settings_say_and_changes_nothing_of_the_page():
    tasks = (declared.look_around, declared.look_around_in_a_coroutine) * 2
    declared.check_isolation(lambda: [task.enqueue().return_value for task in tasks])


# Transactions ---------------------------------------------------------------


def test_a_task_runs_after_the_commit(calls):
    with transaction.atomic():
        result = declared.add.enqueue(1)
        assert (result.status, calls) == ("READY", [])
    assert (result.status, calls) == ("SUCCESSFUL", [(1, 1)])


def test_a_rollback_enqueues_nothing(calls):
    with pytest.raises(declared.Refused), transaction.atomic():
        result = declared.add.enqueue(1)
        raise declared.Refused
    assert not calls and not EnqueuedTask.objects.exists()
    with pytest.raises(TaskResultDoesNotExist):
        declared.add.get_result(result.id)


def test_a_task_that_fails_leaves_the_transaction_and_the_other_tasks_alone(calls):
    with transaction.atomic():
        User.objects.create(email="jane@example.com")
        failed = declared.fail.enqueue()
        declared.add.enqueue(1)
    assert (failed.status, calls, User.objects.count()) == ("FAILED", [(1, 1)], 1)


# Failing --------------------------------------------------------------------


def test_a_failed_task_tells_its_error_and_raises_nothing(caplog):
    result = declared.fail.enqueue()
    [error] = declared.fail.get_result(result.id).errors
    assert result.status == TaskResultStatus.FAILED and result.finished_at
    assert error.exception_class is declared.Refused
    assert "It is \\x00 refused." in error.traceback and "in fail" in error.traceback
    assert "Refused" in caplog.text
    with pytest.raises(ValueError, match="failed"):
        _ = result.return_value


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("exit_at_once", SystemExit),
        ("fail_in_a_way_that_is_hard_to_store", declared.Refused),
        ("return_what_is_no_json", TypeError),
    ],
)
def test_whatever_ends_a_task_is_recorded(name, error):
    result = getattr(declared, name).enqueue()
    assert (result.status, [each.exception_class for each in result.errors]) == ("FAILED", [error])


@pytest.mark.parametrize("name", declared.WHAT_NO_DATABASE_STORES)
def test_a_value_that_no_database_stores_fails_its_task(name):
    result = declared.return_what_no_database_stores.enqueue(name)
    result.refresh()
    [error] = result.errors
    assert (result.status, error.exception_class) == ("FAILED", TypeError)
    assert "The return value cannot be stored as JSON: " in error.traceback


@pytest.mark.parametrize("name", declared.WHAT_NO_DATABASE_STORES)
def test_an_error_whose_text_no_database_stores_is_recorded(name):
    result = declared.fail_with.enqueue(name)
    result.refresh()
    assert (result.status, result.errors[0].exception_class) == ("FAILED", declared.Refused)


def test_a_long_error_is_recorded_in_part():
    try:
        raise declared.Refused("x" * 10 * records.KEPT_CHARACTERS)
    except declared.Refused as error:
        text = records.error_of(error).traceback
    assert len(text) < 3 * records.KEPT_CHARACTERS
    assert text.startswith("Traceback") and "xxx\n…\nxxx" in text


def test_ctrl_c_ends_the_process_and_not_the_task_alone():
    with pytest.raises(KeyboardInterrupt):
        declared.be_interrupted.enqueue()


def test_a_queue_that_the_settings_do_not_list_is_refused_if_they_list_any(settings):
    settings.TASKS = {"default": settings.TASKS["default"] | {"QUEUES": ["default"]}}
    with pytest.raises(InvalidTask, match="Queue 'urgent' is not valid"):
        declared.hurry.enqueue()
    assert declared.add.enqueue(1).return_value == 2


def test_the_log_tells_of_each_step(caplog):
    caplog.set_level("INFO")
    result = declared.add.enqueue(1)
    told = [record.getMessage() for record in caplog.records if result.id in record.getMessage()]
    assert [line.rpartition(" ")[2] for line in told] == ["state=RUNNING", "state=SUCCESSFUL"]


# Results --------------------------------------------------------------------


def test_a_result_is_found_by_its_id():
    result = declared.hurry.using(priority=7).enqueue()
    found = declared.hurry.get_result(result.id)
    for name in (
        "status",
        "return_value",
        "enqueued_at",
        "finished_at",
        "worker_ids",
        "errors",
        "args",
        "kwargs",
        "task",
    ):
        assert getattr(found, name) == getattr(result, name), name


def test_a_result_can_be_refreshed():
    with transaction.atomic():
        waiting = declared.add.enqueue(1)
        shown = declared.add.get_result(waiting.id)
        assert not shown.is_finished
    shown.refresh()
    assert shown.return_value == 2


def test_no_result_is_found_for_another_id_or_task():
    with pytest.raises(TaskResultDoesNotExist):
        declared.add.get_result("unknown")
    with pytest.raises(Exception, match="does not match"):
        declared.add.get_result(declared.double.enqueue(1).id)


def test_a_task_without_a_result_leaves_no_row(calls):
    result = declared.leave_nothing.enqueue(1)
    assert (result.status, calls) == ("SUCCESSFUL", [1]) and not EnqueuedTask.objects.exists()


@pytest.fixture
def old(settings, monkeypatch):
    """A task that finished so long ago that its row is deleted."""
    result = declared.add.enqueue(1)
    days = timedelta(days=settings.BACKGROUND_TASKS_KEPT_DAYS + 1)
    EnqueuedTask.objects.filter(pk=result.id).update(finished_at=timezone.now() - days)
    monkeypatch.setattr(records, "_prune_again", 0.0)
    return result


def kept():
    return set(EnqueuedTask.objects.values_list("pk", flat=True))


def test_old_results_are_deleted_after_the_transaction_of_the_page(old):
    with transaction.atomic():
        last = declared.add.enqueue(3)
        assert kept() == {old.id, last.id}
    assert kept() == {last.id}


def test_old_results_are_deleted_by_the_command_for_due_tasks(old):
    run_due_tasks()
    assert not kept()


def test_the_signals_of_django_are_sent(signals):
    declared.add.enqueue(1)
    declared.fail.enqueue()
    started = [("task_enqueued", "READY"), ("task_started", "RUNNING")]
    assert signals == [*started, ("task_finished", "SUCCESSFUL"), *started, ("task_finished", "FAILED")]


def test_the_admin_shows_tasks_and_changes_none(admin_client):
    shown = declared.add.enqueue(1)
    assert "declared.add" in admin_client.get(reverse("admin:background_enqueuedtask_changelist")).content.decode()
    change = reverse("admin:background_enqueuedtask_change", args=[shown.id])
    assert (admin_client.get(change).status_code, admin_client.post(change, {}).status_code) == (200, 403)
    assert admin_client.get(reverse("admin:background_enqueuedtask_add")).status_code == 403


# Later ----------------------------------------------------------------------


def test_a_deferred_task_runs_when_it_is_due(calls):
    result = declared.add.using(run_after=later()).enqueue(1)
    assert run_due_tasks() == "Succeeded: 0.\n" and not calls
    EnqueuedTask.objects.update(run_after=later(-1))
    assert run_due_tasks() == "Succeeded: 1.\n"
    result.refresh()
    assert (result.return_value, calls) == (2, [(1, 1)])
    assert run_due_tasks() == "Succeeded: 0.\n"


def test_a_deferred_task_without_a_result_leaves_no_row_when_it_has_run(calls):
    declared.leave_nothing.using(run_after=later(0.01)).enqueue(1)
    EnqueuedTask.objects.update(run_after=later(-1))
    run_due_tasks()
    assert calls == [1] and not EnqueuedTask.objects.exists()


def test_a_due_task_that_fails_is_told(calls):
    declared.fail.using(run_after=later()).enqueue()
    declared.add.using(run_after=later()).enqueue(1)
    EnqueuedTask.objects.update(run_after=later(-1))
    with pytest.raises(CommandError, match=r"Succeeded: 1, failed: 1\."):
        run_due_tasks()
    assert calls == [(1, 1)]


@pytest.mark.parametrize(
    "column",
    [
        {"path": "apps.gone.tasks.work"},
        {"path": "tests.background.declared.gone"},
        {"path": "tests.background.declared.Refused"},
        {"backend": "gone"},
    ],
    ids=str,
)
def test_a_due_task_that_the_code_no_longer_has_waits_and_stops_no_other(calls, caplog, column):
    results = [declared.add.using(run_after=later()).enqueue(1) for _ in range(2)]
    EnqueuedTask.objects.update(run_after=later(-1))
    EnqueuedTask.objects.filter(pk=results[0].id).update(**column)
    assert run_due_tasks() == "Succeeded: 1.\n"
    assert results[0].id in caplog.text
    with pytest.raises(TaskResultDoesNotExist, match="unknown to this code"):
        declared.add.get_result(results[0].id)


def test_a_task_that_another_process_has_taken_is_not_run(calls, monkeypatch):
    result = declared.add.using(run_after=later()).enqueue(1)
    EnqueuedTask.objects.update(run_after=later(-1))
    claim = records.claim
    monkeypatch.setattr(records, "claim", lambda task_id: claim(task_id) and claim(task_id))
    run_due_tasks()
    assert not calls
    assert EnqueuedTask.objects.get(pk=result.id).status == "RUNNING"


def test_django_5_2_without_its_package_is_told_what_to_install(monkeypatch):
    monkeypatch.setattr("django.VERSION", (5, 2, 0, "final", 0))
    monkeypatch.setitem(sys.modules, "django_tasks", None)
    try:
        with pytest.raises(ModuleNotFoundError, match="Add django-tasks"):
            importlib.reload(framework)
    finally:
        monkeypatch.undo()
        importlib.reload(framework)

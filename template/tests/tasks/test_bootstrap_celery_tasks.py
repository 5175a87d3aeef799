"""What `bootstrap_celery_tasks` promises to those who write SCHEDULED_TASKS, and to those who edit in the admin."""

import pytest

pytest.importorskip("celery")

import copy
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from io import StringIO
from unittest.mock import ANY, MagicMock
from zoneinfo import ZoneInfo

from celery import current_app, shared_task
from celery.schedules import crontab, schedule, solar
from django.conf import settings as project_settings
from django.core.management import CommandError, call_command
from django.db import OperationalError, connection, connections
from django.test.utils import CaptureQueriesContext
from django_celery_beat.clockedschedule import clocked
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    PeriodicTasks,
    SolarSchedule,
)
from django_celery_beat.schedulers import DatabaseScheduler, ModelEntry
from django_celery_beat.tzcrontab import TzAwareCrontab

from apps.tasks.beat import schedule as schedule_module
from apps.tasks.beat.scheduler import LeaseScheduler
from apps.tasks.models import ScheduledTask
from apps.tasks.worker import alive
from apps.web.clock import for_column
from tests.background import declared

TABLES = (
    PeriodicTask,
    PeriodicTasks,
    IntervalSchedule,
    CrontabSchedule,
    SolarSchedule,
    ClockedSchedule,
    ScheduledTask,
)
TASK = "tests.greet"
DECLARED = f"{declared.__name__}.{{}}"
FUTURE = datetime(2100, 1, 1, 12, tzinfo=UTC)
PAST = datetime(2000, 1, 1, 12, tzinfo=UTC)

pytestmark = pytest.mark.django_db


@shared_task(name=TASK)
def greet(name="you", times=1): ...


@shared_task(name="tests.leave")
def leave(): ...


@pytest.fixture
def run(settings):
    """Return a function that runs the command on the entries it gets, and returns what the command prints."""

    def run(entries, *options):
        settings.SCHEDULED_TASKS = entries
        out = StringIO()
        call_command("bootstrap_celery_tasks", *options, stdout=out)
        return out.getvalue()

    return run


@pytest.fixture
def sunset(monkeypatch):
    """Return a solar schedule; storing it needs no astronomy, and so not the package that Celery asks for."""
    monkeypatch.setitem(sys.modules, "ephem", MagicMock())
    return solar("sunset", 52.52, 13.405)


def entry(**options):
    return {"task": TASK, "schedule": 3600.0, **options}


def row(name="greet"):
    return PeriodicTask.objects.get(name=name)


def database():
    return {table.__name__: list(table.objects.order_by("pk").values()) for table in TABLES}


def edit(**columns):
    """Edit the task as the admin does: with save()."""
    task = row()
    for column, value in columns.items():
        setattr(task, column, value)
    task.save()


def every(seconds):
    return IntervalSchedule.objects.create(every=seconds, period=IntervalSchedule.SECONDS)


def hand_made(name="by-hand", **columns):
    return PeriodicTask.objects.create(**{"name": name, "task": TASK, "interval": every(60), **columns})


# The project ----------------------------------------------------------------


def test_the_entries_of_this_project_can_be_written(run):
    entries = getattr(project_settings, "SCHEDULED_TASKS", {})
    run(entries)
    assert set(PeriodicTask.objects.values_list("name", flat=True)) == set(entries)


# Writing --------------------------------------------------------------------


def test_an_entry_becomes_a_periodic_task(run):
    options = {"args": ("Ada",), "kwargs": {"times": 2}, "queue": "slow", "priority": -20, "description": "Politeness"}
    assert run({"greet": entry(**options)}) == "created    greet  interval 3600 seconds\n1 created.\n"
    task = row()
    assert (task.task, task.args, task.kwargs, task.interval.every) == (TASK, '["Ada"]', '{"times": 2}', 3600)
    assert (task.queue, task.priority, task.description, task.expires_) == ("slow", 6, "Politeness", None)
    assert (task.enabled, task.one_off) == (True, False)


def test_a_second_run_writes_nothing(run, sunset):
    entries = {
        "crontab": entry(schedule=crontab(hour=[7, 19], minute=0), args=("Ada",), expires=FUTURE),
        "interval": entry(schedule=0.5, kwargs={"times": 2}, expires=60),
        "solar": entry(schedule=sunset),
        "clocked": entry(schedule=clocked(FUTURE)),
        "over": entry(schedule=clocked(PAST)),
    }
    run(entries)
    before = database()
    with CaptureQueriesContext(connection) as queries:
        assert "5 unchanged." in run(entries)
    assert database() == before
    assert [query["sql"] for query in queries if not query["sql"].startswith("SELECT")] == []


@pytest.mark.parametrize(
    ("value", "stored", "read"),
    [
        (90, (90, "seconds"), timedelta(seconds=90)),
        (90.5, (90_500_000, "microseconds"), timedelta(seconds=90.5)),
        (0.5, (500_000, "microseconds"), timedelta(seconds=0.5)),
        (timedelta(days=2, hours=1), (176_400, "seconds"), timedelta(days=2, hours=1)),
        (timedelta(milliseconds=1), (1000, "microseconds"), timedelta(milliseconds=1)),
        (schedule(30), (30, "seconds"), timedelta(seconds=30)),
    ],
)
def test_an_interval_is_exact(run, value, stored, read):
    run({"greet": entry(schedule=value)})
    assert (row().interval.every, row().interval.period) == stored
    assert ModelEntry(row(), app=current_app).schedule.run_every == read


@pytest.mark.parametrize("hour", ["7,19", "7-19/12", [7, 19], {19, 7}, range(7, 20, 12), iter([7, 19])])
def test_beat_reads_a_crontab_as_it_was_meant(run, hour):
    run({"greet": entry(schedule=crontab(minute=0, hour=hour, day_of_week="mon-fri"))})
    read = ModelEntry(row(), app=current_app).schedule
    assert (read.minute, read.hour, read.day_of_week) == ({0}, {7, 19}, {1, 2, 3, 4, 5})


def test_a_crontab_runs_in_the_time_zone_of_celery(run, monkeypatch):
    monkeypatch.setattr(current_app._get_current_object(), "timezone", ZoneInfo("Europe/Berlin"))
    run({"greet": entry(schedule=crontab(hour=7))})
    assert row().crontab.timezone == ZoneInfo("Europe/Berlin")


def test_a_crontab_keeps_a_time_zone_of_its_own(run):
    run({"greet": entry(schedule=TzAwareCrontab(hour=7, tz=ZoneInfo("Asia/Tokyo")))})
    assert row().crontab.timezone == ZoneInfo("Asia/Tokyo")


@pytest.mark.parametrize("value", [crontab(minute="*/5"), 90, timedelta(hours=1), schedule(30), clocked(FUTURE)])
def test_schedules_are_those_of_django_celery_beat(run, value, settings):
    # It cannot write a moment without.
    settings.USE_TZ = True
    run({"greet": entry(schedule=value)})
    theirs = ModelEntry._unpack_fields(schedule=copy.copy(value))
    assert {kind: getattr(row(), kind) for kind in schedule_module.KINDS} == {
        kind: theirs[kind] for kind in schedule_module.KINDS
    }


def test_a_moment_without_a_time_zone_is_refused_unless_all_are(run, settings):
    wrong = {"greet": entry(expires=datetime(2100, 1, 1))}
    settings.USE_TZ = True
    with pytest.raises(CommandError, match="expires must have a time zone"):
        run(wrong)
    settings.USE_TZ, settings.TIME_ZONE = False, "America/New_York"
    run(wrong)
    assert row().expires == datetime(2100, 1, 1)


@pytest.mark.parametrize("expires", [60, 60.0, timedelta(minutes=1)])
def test_a_duration_expires_messages(run, expires):
    run({"greet": entry(expires=expires)})
    assert (row().expire_seconds, row().expires) == (60, None)


def test_a_datetime_ends_the_entry(run):
    run({"greet": entry(expires=FUTURE)})
    assert (row().expire_seconds, row().expires) == (None, for_column(FUTURE))


def test_a_clocked_entry_runs_once(run):
    run({"greet": entry(schedule=clocked(FUTURE))})
    assert (row().one_off, row().enabled, row().clocked.clocked_time) == (True, True, for_column(FUTURE))


def test_a_clocked_entry_that_is_past_does_not_run_in_a_new_database(run):
    assert "is past: made, but disabled" in run({"greet": entry(schedule=clocked(PAST))})
    assert not row().enabled


def test_the_settings_are_not_changed(run):
    entries = {
        "crontab": entry(schedule=crontab(hour=[7, 8]), args=["Ada"], kwargs={"times": 2}),
        "schedule": entry(schedule=schedule(30)),
    }
    before = {name: dict(vars(options["schedule"])) for name, options in entries.items()}
    same = copy.deepcopy(entries)
    run(entries)
    assert entries == same
    assert {name: vars(options["schedule"]) for name, options in entries.items()} == before


# Changing -------------------------------------------------------------------


def test_a_changed_entry_is_rewritten_in_its_row(run):
    run({"greet": entry()})
    key = row().pk
    assert run({"greet": entry(schedule=60, args=("Ada",))}).startswith("updated    greet  args, schedule\n")
    assert (row().pk, row().args, row().interval.every) == (key, '["Ada"]', 60)


def test_a_removed_key_is_back_at_its_default(run):
    columns = ("args", "kwargs", "queue", "priority", "expires", "expire_seconds", "one_off", "enabled", "description")
    run({"plain": entry()})
    options = {"queue": "slow", "priority": 3, "expires": 60, "one_off": True, "enabled": False, "description": "Hello"}
    run({"greet": entry(args=("Ada",), kwargs={"times": 2}, **options)})
    run({"greet": entry()})
    assert [getattr(row(), column) for column in columns] == [getattr(row("plain"), column) for column in columns]


@pytest.mark.parametrize("to", ["interval", "crontab", "solar", "clocked"])
@pytest.mark.parametrize("origin", ["interval", "crontab", "solar", "clocked"])
def test_another_kind_of_schedule_replaces_the_former(run, sunset, origin, to):
    kinds = {"interval": 60, "crontab": crontab(hour=7), "solar": sunset, "clocked": clocked(FUTURE)}
    run({"greet": entry(schedule=kinds[origin], one_off=True)})
    run({"greet": entry(schedule=kinds[to], one_off=True)})
    assert [kind for kind in kinds if getattr(row(), kind)] == [to]


def test_a_schedule_that_nobody_needs_any_more_is_deleted(run):
    run({"greet": entry(schedule=60), "other": entry(schedule=60)})
    run({"greet": entry(schedule=90), "other": entry(schedule=60)})
    assert set(IntervalSchedule.objects.values_list("every", flat=True)) == {60, 90}
    run({"greet": entry(schedule=90), "other": entry(schedule=90)})
    assert set(IntervalSchedule.objects.values_list("every", flat=True)) == {90}
    run({}, "--remove-stale")
    assert not IntervalSchedule.objects.exists()


def test_a_schedule_made_in_the_admin_stays(run):
    every(60)
    run({"greet": entry(schedule=60)})
    run({}, "--remove-stale")
    assert IntervalSchedule.objects.count() == 1


def test_a_new_schedule_counts_from_now(run):
    run({"greet": entry()})
    edit(last_run_at=for_column(PAST), total_run_count=7)
    run({"greet": entry(description="Hello")})
    assert (row().last_run_at, row().total_run_count) == (for_column(PAST), 7)
    run({"greet": entry(schedule=60)})
    assert (row().last_run_at, row().total_run_count) == (None, 7)


def test_a_task_that_was_disabled_counts_from_now(run):
    run({"greet": entry()})
    edit(last_run_at=for_column(PAST))
    run({"greet": entry(enabled=False)})
    assert row().last_run_at is None


def test_a_task_that_becomes_one_off_runs_once_more(run):
    run({"greet": entry()})
    edit(total_run_count=7)
    run({"greet": entry(one_off=True)})
    assert row().total_run_count == 0
    edit(total_run_count=1)
    run({"greet": entry(one_off=True, description="Hello")})
    assert row().total_run_count == 1


def test_a_task_that_gets_a_past_moment_does_not_run(run):
    run({"greet": entry()})
    assert "disabled, its moment is past" in run({"greet": entry(schedule=clocked(PAST))})
    assert not row().enabled


# Removing -------------------------------------------------------------------


def test_a_stale_task_is_reported_and_kept(run):
    run({"greet": entry()})
    before = database()
    assert run({}) == (
        "kept       greet  no longer in SCHEDULED_TASKS, still runs; --remove-stale deletes it\n1 kept.\n"
    )
    assert database() == before


def test_remove_stale_deletes_only_what_the_command_made(run):
    hand_made()
    # As beat does when it starts.
    ModelEntry.from_entry("celery.backend_cleanup", task="celery.backend_cleanup", schedule=crontab(hour=4))
    run({"greet": entry(), "stays": entry()})
    assert "removed    greet" in run({"stays": entry()}, "--remove-stale")
    assert set(PeriodicTask.objects.values_list("name", flat=True)) == {"by-hand", "celery.backend_cleanup", "stays"}


def test_remove_stale_knows_its_tasks_after_edits_in_the_admin(run):
    run({"greet": entry()})
    edit(name="Good morning", headers="{}", description="mine", enabled=False)
    run({}, "--remove-stale")
    assert not PeriodicTask.objects.exists()


def test_a_renamed_entry_is_a_new_one(run):
    run({"greet": entry()})
    run({"welcome": entry()}, "--remove-stale")
    assert [task.name for task in PeriodicTask.objects.all()] == ["welcome"]
    assert IntervalSchedule.objects.count() == 1


# The admin ------------------------------------------------------------------


def test_edits_in_the_admin_last_while_the_entry_stays_the_same(run):
    run({"greet": entry()})
    edit(name="Good morning", enabled=False, interval=every(60), queue="slow")
    before = database()
    assert "kept as it is in the database: name, queue, enabled, schedule" in run({"greet": entry()})
    assert database() == before


def test_the_settings_win_when_the_entry_changes(run):
    run({"greet": entry()})
    edit(name="Good morning", interval=every(60), queue="slow")
    run({"greet": entry(description="Hello")})
    assert (row().queue, row().interval.every, row().description) == (None, 3600, "Hello")


def test_a_task_disabled_in_the_admin_stays_disabled_when_the_entry_changes(run):
    run({"greet": entry()})
    edit(enabled=False)
    assert "description; stays disabled" in run({"greet": entry(description="Hello")})
    run({"greet": entry(schedule=60)})
    assert (row().enabled, row().interval.every) == (False, 60)


def test_the_settings_disable_and_enable_a_task(run):
    run({"greet": entry(enabled=False)})
    assert not row().enabled
    run({"greet": entry(enabled=True)})
    assert row().enabled
    run({"greet": entry(enabled=False)})
    assert not row().enabled


def test_a_row_that_says_already_what_the_entry_says_is_not_written(run):
    run({"greet": entry()})
    edit(description="Hello")
    before = database()
    assert "updated    greet  nothing to change" in run({"greet": entry(description="Hello")})
    assert {**database(), "ScheduledTask": ANY} == {**before, "ScheduledTask": ANY}


def test_what_an_entry_cannot_set_is_left_to_the_admin(run):
    run({"greet": entry()})
    edit(start_time=for_column(FUTURE), headers='{"a": 1}')
    run({"greet": entry(schedule=60)})
    assert (row().start_time, row().headers) == (for_column(FUTURE), '{"a": 1}')


def test_a_task_deleted_in_the_admin_is_made_again(run):
    run({"greet": entry()})
    row().delete()
    assert "1 created." in run({"greet": entry()})
    assert row().enabled


def test_a_one_off_task_that_has_run_is_armed_by_a_new_schedule_only(run):
    run({"greet": entry(schedule=clocked(PAST))})
    run({"greet": entry(schedule=clocked(PAST), description="Hello")})
    assert not row().enabled
    run({"greet": entry(schedule=clocked(FUTURE))})
    assert row().enabled


def test_a_one_off_task_disabled_before_its_run_stays_disabled(run):
    run({"greet": entry(schedule=clocked(FUTURE))})
    edit(enabled=False)
    run({"greet": entry(schedule=clocked(FUTURE + timedelta(days=1)))})
    assert not row().enabled


def test_an_expired_task_is_armed_by_a_new_expiry_only(run):
    run({"greet": entry(expires=PAST)})
    edit(enabled=False)
    run({"greet": entry(expires=PAST, description="Hello")})
    assert not row().enabled
    run({"greet": entry(expires=FUTURE)})
    assert row().enabled


def test_a_task_of_the_same_name_and_task_is_adopted(run):
    hand_made("greet", queue="slow", enabled=False)
    line = "adopted    greet  made elsewhere, ours from now on; queue, schedule; stays disabled"
    assert line in run({"greet": entry()})
    assert (row().queue, row().interval.every, row().enabled) == (None, 3600, False)


@pytest.mark.parametrize("still", ["still runs", "disabled"])
def test_a_task_that_was_adopted_is_released_and_never_deleted(run, still):
    hand_made("greet", enabled=still == "still runs")
    run({"greet": entry()})
    run({"greet": entry(description="Hello")})
    before = database()
    assert f"{still}; --remove-stale releases it\n1 kept." in run({})
    line = f"released   greet  no longer in SCHEDULED_TASKS; made elsewhere, so it stays, {still}\n1 released.\n"
    assert run({}, "--remove-stale", "--dry-run").startswith(line.partition("\n")[0])
    assert database() == before
    assert run({}, "--remove-stale") == line
    assert database() == {**before, "ScheduledTask": []}
    assert run({}, "--remove-stale") == "SCHEDULED_TASKS is empty.\n"
    assert "1 adopted." in run({"greet": entry()})


def test_a_task_of_the_same_name_but_another_task_is_refused(run):
    hand_made("greet", task="tests.leave")
    before = database()
    with pytest.raises(CommandError, match=r"'greet'\]: a periodic task of this name.* runs 'tests.leave'; rename"):
        run({"greet": entry(), "other": entry()})
    assert database() == before


@pytest.mark.parametrize("entries", [{"greet": entry(), "welcome": entry()}, {"greet": entry(queue="slow")}])
def test_a_name_that_was_taken_by_renaming_is_refused(run, entries):
    run({"greet": entry()})
    edit(name="welcome")
    hand_made("greet", interval=every(30))
    with pytest.raises(CommandError, match="renamed"):
        run(entries)


def test_arguments_that_fit_a_task_of_djangos_framework_are_written(run):
    entries = {
        "attempt": entry(task=DECLARED.format("attempt")),
        "double": entry(task=DECLARED.format("double"), kwargs={"x": 1}),
    }
    run(entries)
    assert PeriodicTask.objects.filter(name__in=entries).count() == 2


# Mistakes -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"que": "slow"}, "'que' is no key of an entry. Did you mean 'queue'?"),
        ({"hours": 2}, "'hours' is no key of an entry. Keys: args, description, enabled, "),
        ({"task": "tests.great"}, "no task is registered as 'tests.great'. Did you mean 'tests.greet'?"),
        ({"task": "zzz"}, "no task is registered as 'zzz'. Registered: "),
        ({"task": greet}, "task must be the name of a task"),
        ({"task": "tests.leave", "args": ("Ada",)}, "args and kwargs do not fit the task"),
        ({"kwargs": {"surname": "Lovelace"}}, "args and kwargs do not fit the task"),
        ({"args": "Ada"}, "for one argument write ('Ada',)"),
        ({"args": (object(),)}, "args cannot be written as JSON"),
        ({"kwargs": {"name": {1, 2}}}, "kwargs cannot be written as JSON"),
        ({"kwargs": ["name"]}, "kwargs must be a dictionary"),
        ({"task": DECLARED.format("leave_nothing"), "args": (3, 4)}, "do not fit the task: "),
        ({"task": DECLARED.format("attempt"), "args": (3,)}, "do not fit the task: "),
        ({"task": DECLARED.format("double"), "kwargs": {"y": 1}}, "do not fit the task: "),
        ({"task": DECLARED.format("double"), "args": (float("nan"),)}, "An argument cannot be stored as JSON"),
        ({"task": DECLARED.format("double"), "args": (PAST,)}, "An argument cannot be stored as JSON"),
        ({"queue": ""}, "queue must be the name of a queue"),
        ({"queue": "q" * 201}, "queue has 201 characters; 200 are allowed"),
        ({"priority": 101}, "priority must be a whole number from -100 to 100"),
        ({"priority": True}, "priority must be a whole number"),
        ({"expires": -60}, "expires must be a whole number of seconds from 1 to"),
        ({"expires": 0}, "expires must be a whole number of seconds from 1 to"),
        ({"expires": 90.5}, "expires must be a whole number of seconds from 1 to"),
        ({"expires": "60"}, "expires must be a number of seconds or a timedelta"),
        ({"enabled": "false"}, "enabled must be True or False"),
        ({"one_off": 1}, "one_off must be True or False"),
        ({"description": None}, "description must be a text"),
        ({"schedule": None}, "schedule must be a number of seconds"),
        ({"schedule": "7:00"}, "schedule must be a number of seconds"),
        ({"schedule": True}, "schedule must be a number of seconds"),
        ({"schedule": 0}, "schedule must be longer than nothing"),
        ({"schedule": -1.5}, "schedule must be longer than nothing"),
        ({"schedule": float("nan")}, "schedule is no usable number of seconds"),
        ({"schedule": 1e300}, "schedule is no usable number of seconds"),
        ({"schedule": 7200.5}, "schedule is too long"),
        ({"schedule": schedule(60, relative=True)}, "does not keep relative=True"),
        ({"schedule": crontab(hour=7, nowfun=datetime.now)}, "does not keep the nowfun"),
        ({"schedule": TzAwareCrontab(tz=timedelta(hours=1))}, "is no name of a time zone"),
        ({"schedule": clocked(FUTURE), "one_off": False}, "a clocked schedule runs once"),
    ],
)
def test_a_mistake_is_refused_by_the_name_of_its_entry_and_nothing_is_written(run, wrong, sentence):
    before = database()
    with pytest.raises(CommandError) as error:
        run({"right": entry(), "greet": entry(**wrong)})
    assert str(error.value).startswith("SCHEDULED_TASKS['greet']: ")
    assert sentence in str(error.value)
    assert database() == before


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"greet": {"task": TASK}}, "'schedule' is missing"),
        ({"greet": {"schedule": 60}}, "'task' is missing"),
        ({"greet": 60}, "an entry must be a dictionary"),
        ({"": entry()}, "the name of an entry must be a text"),
        ({"g" * 201: entry()}, "name has 201 characters; 200 are allowed"),
        ({"celery.backend_cleanup": entry()}, "beat writes an entry of this name itself"),
        ([entry()], "SCHEDULED_TASKS must be a dictionary"),
    ],
)
def test_an_entry_of_another_form_is_refused(run, entries, sentence):
    with pytest.raises(CommandError, match=sentence):
        run(entries)


def test_all_mistakes_are_reported_at_once(run):
    with pytest.raises(CommandError) as error:
        run({"one": entry(queue=1), "two": entry(priority="high")})
    assert [line.partition(":")[0] for line in str(error.value).splitlines()[:2]] == [
        "SCHEDULED_TASKS['one']",
        "SCHEDULED_TASKS['two']",
    ]


# Running --------------------------------------------------------------------


def test_a_dry_run_prints_the_plan_and_writes_nothing(run):
    run({"changed": entry(), "same": entry(), "stale": entry()})
    before = database()
    entries = {"changed": entry(schedule=60), "new": entry(), "same": entry()}
    plan = run(entries, "--dry-run", "--remove-stale")
    assert database() == before
    assert [line.split()[:2] for line in plan.splitlines()[:-1]] == [
        ["updated", "changed"],
        ["created", "new"],
        ["unchanged", "same"],
        ["removed", "stale"],
    ]
    assert run(entries, "--remove-stale").splitlines()[:-1] == plan.splitlines()[:-1]


def test_a_release_that_waited_for_another_does_nothing_twice(run, monkeypatch):
    lock = schedule_module._lock

    def lock_too_late():
        monkeypatch.setattr(schedule_module, "_lock", lock)
        schedule_module.bootstrap()
        lock()

    monkeypatch.setattr(schedule_module, "_lock", lock_too_late)
    assert run({"greet": entry()}) == "unchanged  greet\n1 unchanged.\n"
    assert PeriodicTask.objects.count() == 1


@pytest.mark.parametrize("entries", [{"greet": entry(), "other": entry()}, {"other": entry(), "greet": entry()}])
def test_a_release_that_fails_in_the_middle_has_written_nothing(run, monkeypatch, entries):
    run({"greet": entry(schedule=60), "stale": entry()})
    before = database()
    save = ScheduledTask.save

    def save_all_but_one(mark, **options):
        if mark.name == list(entries)[-1]:
            raise OperationalError("the server closed the connection unexpectedly")
        save(mark, **options)

    monkeypatch.setattr(ScheduledTask, "save", save_all_but_one)
    with pytest.raises(OperationalError):
        run(entries, "--remove-stale")
    assert database() == before


@pytest.mark.parametrize("entries", [{"greet": entry(args=("Ada",))}, {"greet": entry(enabled=False)}, {}])
def test_each_change_wakes_beat(run, entries):
    run({"greet": entry()})
    before = PeriodicTasks.last_change()
    run(entries, "--remove-stale")
    assert PeriodicTasks.last_change() > before


@pytest.mark.django_db(transaction=True)
def test_a_running_beat_takes_a_change_up_without_a_restart(run, monkeypatch, tmp_path):
    sent = []
    monkeypatch.setenv(alive.DIRECTORY_VARIABLE, str(tmp_path))
    # Celery's own task is due at a certain hour.
    monkeypatch.setitem(current_app.conf, "result_expires", None)
    # All of beat but the way to the broker.
    monkeypatch.setattr(DatabaseScheduler, "producer", None)
    monkeypatch.setattr(DatabaseScheduler, "apply_async", lambda self, task, **options: sent.append(task.name))
    run({"hourly": entry()})
    # A thread has a database connection of its own, as the process of beat has.
    with ThreadPoolExecutor(max_workers=1) as beat:
        scheduler = beat.submit(LeaseScheduler, app=current_app, lazy=True).result()
        beat.submit(scheduler.tick).result()
        assert sent == []
        run({"hourly": entry(schedule=0.000_001)})
        for _ in range(3):
            beat.submit(scheduler.tick).result()
        beat.submit(scheduler.close).result()
        beat.submit(connections.close_all).result()
    assert "hourly" in sent

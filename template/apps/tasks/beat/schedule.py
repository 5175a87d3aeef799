"""Makes the periodic tasks in the database match SCHEDULED_TASKS, in two steps: planning and writing."""

from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Model
from django.utils import timezone
from django_celery_beat.models import PeriodicTask, PeriodicTasks

from apps.tasks.models import ScheduledTask

from .entries import Entry, read_entries
from .plan import Step, plan, runs_on, wanted_columns
from .timing import Schedule, schedule_model

KINDS = ("interval", "crontab", "solar", "clocked")


def bootstrap(*, remove_stale: bool = False, dry_run: bool = False) -> list[Step]:
    """Apply SCHEDULED_TASKS and return the steps taken, or with `dry_run` the steps that would be taken.

    Raises CommandError, before anything is written, if an entry is wrong or its name is taken.
    """
    entries = read_entries(getattr(settings, "SCHEDULED_TASKS", {}))
    steps = plan(entries, remove_stale=remove_stale)
    if dry_run or not any(step.writes for step in steps):
        return steps
    with transaction.atomic():
        _lock()
        # Another release may have written between the first plan and the lock.
        steps = plan(entries, remove_stale=remove_stale)
        for step in steps:
            _take(step)
    return steps


def _lock() -> None:
    """Wait for other releases and for the admin, because every change of a periodic task writes this row first.

    This is an UPDATE instead of a SELECT … FOR UPDATE, because SQLite locks at the first write.
    """
    if not PeriodicTasks.objects.filter(ident=1).update(ident=1):
        PeriodicTasks.update_changed()


def _take(step: Step) -> None:
    match step.action:
        case "created" | "adopted":
            _make(step.entry, step.row)
        case "updated":
            _update(step.entry, step.row, step.mark)
        case "removed":
            _remove(step.mark)
        case "released":
            step.mark.delete()


def _make(entry: Entry, row: PeriodicTask | None) -> None:
    """Create the periodic task, or adopt the one with its name, and mark it."""
    mark = ScheduledTask(name=entry.name, adopted=row is not None)
    if row is None:
        enabled = entry.columns["enabled"] and not entry.schedule.is_over(timezone.now())
        row = PeriodicTask(**{**entry.columns, "enabled": enabled}, **_schedule_relations(entry.schedule, mark))
        row.save()
    else:
        _write(entry, row, mark, columns=wanted_columns(entry, row, None))
    mark.periodic_task, mark.entry = row, entry.snapshot()
    mark.save()


def _update(entry: Entry, row: PeriodicTask, mark: ScheduledTask) -> None:
    former = mark.schedule_kind, mark.schedule_id
    _write(entry, row, mark, columns=wanted_columns(entry, row, mark))
    mark.entry = entry.snapshot()
    mark.save()
    _drop_schedule(*former)


def _write(entry: Entry, row: PeriodicTask, mark: ScheduledTask, *, columns: dict[str, Any]) -> None:
    """Write only the columns that differ, because beat counts the runs in the same row."""
    changed = {column: value for column, value in columns.items() if getattr(row, column) != value}
    rescheduled = not runs_on(row, entry.schedule)
    if rescheduled:
        changed |= _schedule_relations(entry.schedule, mark)
    if rescheduled or "enabled" in changed:
        # A new schedule counts from now on, not from the last run under the previous schedule.
        changed["last_run_at"] = None
    if entry.columns["one_off"] and (rescheduled or "one_off" in changed):
        # Beat treats a one-off task with a run count as done.
        changed["total_run_count"] = 0
    if not changed:
        return
    for column, value in changed.items():
        setattr(row, column, value)
    # This uses `save`, because beat does not learn of what QuerySet.update writes.
    row.save(update_fields=[*changed, "date_changed"])


def _schedule_relations(schedule: Schedule, mark: ScheduledTask) -> dict[str, Model | None]:
    """Return the schedule relations of a task, all but one empty, and record in the mark a schedule that is ours."""
    row = schedule.model.objects.filter(**schedule.columns).order_by("pk").first()
    is_ours = row is None or ScheduledTask.objects.filter(schedule_kind=schedule.kind, schedule_id=row.pk).exists()
    if row is None:
        row = schedule.model.objects.create(**schedule.columns)
    mark.schedule_kind, mark.schedule_id = (schedule.kind, row.pk) if is_ours else ("", None)
    return {**dict.fromkeys(KINDS), schedule.kind: row}


def _remove(mark: ScheduledTask) -> None:
    mark.periodic_task.delete()
    _drop_schedule(mark.schedule_kind, mark.schedule_id)


def _drop_schedule(kind: str, schedule_id: int | None) -> None:
    """Delete a schedule that this command has created if no task runs on it any more."""
    if not kind:
        return
    # Locked before the check, because its deletion would also delete a task that starts to use it in between.
    row = schedule_model(kind).objects.select_for_update().filter(pk=schedule_id).first()
    if row and not PeriodicTask.objects.filter(**{kind: row}).exists():
        row.delete()

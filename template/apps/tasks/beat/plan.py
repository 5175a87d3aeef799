"""Plans what `bootstrap_celery_tasks` does: a step for each entry of SCHEDULED_TASKS. Nothing is written here."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from django.utils import timezone
from django_celery_beat.models import PeriodicTask

from apps.tasks.models import ScheduledTask

from .entries import Entry, for_each_entry
from .timing import EntryError, Schedule


@dataclass(frozen=True)
class Step:
    """What happens to one periodic task.

    `created` has an entry, `adopted` has an entry and a row, and `updated` and `unchanged` have all three. Steps whose
    entry is gone have a mark and its row: `removed`, `released` (it was adopted, so only the mark is deleted), and
    `kept` (neither was requested).
    """

    action: Literal["created", "adopted", "updated", "unchanged", "removed", "released", "kept"]
    name: str
    note: str
    entry: Entry | None = None
    row: PeriodicTask | None = None
    mark: ScheduledTask | None = None

    @property
    def writes(self) -> bool:
        """Whether the step changes the database."""
        return self.action not in ("unchanged", "kept")


def plan(entries: Iterable[Entry], *, remove_stale: bool) -> list[Step]:
    """Return a step for each entry and for each task whose entry is gone, without writing anything.

    Raises CommandError, which names every entry that cannot be written.
    """
    wanted = {entry.name: entry for entry in entries}
    # Read tasks before marks, so that if another release creates a task in between, at least its mark is seen.
    tasks = PeriodicTask.objects.filter(name__in=wanted).select_related("scheduled_task")
    namesakes = {task.name: task for task in tasks}
    marks = {mark.name: mark for mark in ScheduledTask.objects.select_related("periodic_task").order_by("name")}
    steps = for_each_entry(wanted, lambda name, entry: _plan_entry(entry, marks.get(name), namesakes.get(name)))
    return steps + [_plan_stale(mark, remove_stale) for name, mark in marks.items() if name not in wanted]


def _plan_stale(mark: ScheduledTask, remove_stale: bool) -> Step:
    row = mark.periodic_task
    gone, still = "no longer in SCHEDULED_TASKS", "still runs" if row.enabled else "disabled"
    if not remove_stale:
        remedy = "releases it" if mark.adopted else "deletes it"
        return Step("kept", mark.name, f"{gone}, {still}; --remove-stale {remedy}", row=row, mark=mark)
    if mark.adopted:
        return Step("released", mark.name, f"{gone}; made elsewhere, so it stays, {still}", row=row, mark=mark)
    return Step("removed", mark.name, gone, row=row, mark=mark)


def _plan_entry(entry: Entry, mark: ScheduledTask | None, namesake: PeriodicTask | None) -> Step:
    """Return the step for an entry, given its mark and the periodic task with the entry's name."""
    if mark is None:
        return _plan_adoption(entry, namesake) if namesake else _plan_creation(entry)
    row = mark.periodic_task
    if mark.entry == entry.snapshot():
        edits = _differences(entry, row, entry.columns)
        note = f"kept as it is in the database: {', '.join(edits)}" if edits else ""
        return Step("unchanged", entry.name, note, entry, row, mark)
    if namesake and namesake != row:
        raise EntryError(
            f"its periodic task was renamed {row.name!r}, and another one has its name now; "
            "rename one of the two in the admin."
        )
    return Step("updated", entry.name, _describe_changes(entry, row, mark), entry, row, mark)


def _plan_creation(entry: Entry) -> Step:
    past = " is past: made, but disabled" if entry.schedule.is_over(timezone.now()) else ""
    return Step("created", entry.name, f"{entry.schedule}{past}", entry)


def _plan_adoption(entry: Entry, row: PeriodicTask) -> Step:
    if owner := getattr(row, "scheduled_task", None):
        raise EntryError(f"the periodic task of {owner} was renamed, and has this name now; rename it in the admin.")
    if row.task != entry.columns["task"]:
        raise EntryError(
            f"a periodic task of this name, which this command did not make, runs {row.task!r}; "
            "rename the entry, or that task in the admin."
        )
    return Step("adopted", entry.name, f"made elsewhere, ours from now on; {_describe_changes(entry, row)}", entry, row)


def _describe_changes(entry: Entry, row: PeriodicTask, mark: ScheduledTask | None = None) -> str:
    columns = wanted_columns(entry, row, mark)
    changes = ", ".join(_differences(entry, row, columns)) or "nothing to change"
    if columns["enabled"] or not entry.columns["enabled"]:
        return changes
    return f"{changes}; {'disabled, its moment is past' if row.enabled else 'stays disabled'}"


def _differences(entry: Entry, row: PeriodicTask, columns: dict[str, Any]) -> list[str]:
    """Return the columns of the row with other values, and "schedule" if it does not run on the entry's schedule."""
    differences = [column for column, value in columns.items() if getattr(row, column) != value]
    return differences if runs_on(row, entry.schedule) else [*differences, "schedule"]


def wanted_columns(entry: Entry, row: PeriodicTask, mark: ScheduledTask | None) -> dict[str, Any]:
    """Return the columns that the entry's row should have, given the current row and its mark."""
    return {**entry.columns, "enabled": entry.columns["enabled"] and not _stays_off(entry, row, mark)}


def _stays_off(entry: Entry, row: PeriodicTask, mark: ScheduledTask | None) -> bool:
    """Return whether a task that the settings enable is disabled nevertheless.

    That is so if somebody disabled it in the admin, which outlasts any change of the entry. A task that beat itself
    disabled, because it ran once or its time was over, is enabled again by another schedule or another end, and by
    nothing else.
    """
    now = timezone.now()
    rescheduled = not runs_on(row, entry.schedule)
    if rescheduled and entry.schedule.is_over(now):
        return True
    if row.enabled or (mark and not mark.entry["columns"]["enabled"]):
        return False
    if row.expires and row.expires <= now:
        return row.expires == entry.columns["expires"]
    return not (rescheduled and _may_have_run_once(row, now))


def _may_have_run_once(row: PeriodicTask, now: datetime) -> bool:
    # Beat leaves no trace of the run when it disables a one-off task. Only a clocked one in the future cannot have run.
    return row.one_off and not (row.clocked and row.clocked.clocked_time > now)


def runs_on(row: PeriodicTask, schedule: Schedule) -> bool:
    """Return whether the row of a periodic task points to this schedule."""
    schedule_id = getattr(row, f"{schedule.kind}_id")
    return schedule_id is not None and schedule.model.objects.filter(pk=schedule_id, **schedule.columns).exists()

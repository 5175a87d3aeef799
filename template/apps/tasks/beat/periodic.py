"""A periodic task as beat sees it: when it is due, whatever the clocks do, and what a run writes to its row."""

from datetime import datetime, timedelta
from typing import Any

from celery import Celery, schedules
from django_celery_beat.clockedschedule import clocked
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, PeriodicTask
from django_celery_beat.schedulers import ModelEntry
from django_celery_beat.utils import NEVER_CHECK_TIMEOUT

from apps.web import clock

from .crontab import ClockCrontab

# If the clock was set back, it is believed after this time.
BELIEVED_AFTER = timedelta(hours=1)


def schedule_of(row: PeriodicTask) -> schedules.BaseSchedule:
    """Return when the task of a row runs. Raise ValueError if its crontab has no time zone.

    The row's own schedule misses an hour, or is hours off, at the end of summer time or without USE_TZ.
    """
    plan = row.scheduler
    if isinstance(plan, CrontabSchedule):
        if plan.timezone is None:
            raise ValueError("its crontab has no time zone")
        return ClockCrontab(
            plan.minute, plan.hour, plan.day_of_week, plan.day_of_month, plan.month_of_year, tz=plan.timezone
        )
    if isinstance(plan, ClockedSchedule):
        return clocked(clock.aware(plan.clocked_time), nowfun=clock.now)
    schedule = plan.schedule
    schedule.nowfun = clock.now
    return schedule


def lies_ahead(last_run_at: datetime, now: datetime, schedule: schedules.BaseSchedule) -> bool:
    """Return whether the last run is so far in the future that its schedule has to count from now.

    The clock was then set back after the run. A task for certain hours has already run at those that occur again, so it
    waits for the next one, as with cron. If the run is more than three hours in the future, the earlier time was the
    wrong one.
    """
    if isinstance(schedule, schedules.schedule):
        return last_run_at > now
    is_frequent = isinstance(schedule, ClockCrontab) and schedule.is_frequent
    return last_run_at - now > (timedelta(minutes=1) if is_frequent else timedelta(hours=3))


class Entry(ModelEntry):
    """A periodic task as beat sees it. It writes only what a run changes in the row, because others may be editing it.

    `last_run_at` has a time zone, whether or not the row's column has one.
    """

    def __init__(self, model: PeriodicTask, app: Celery | None = None) -> None:
        """Read a row. Raises whatever is wrong with it."""
        last_run_at = model.last_run_at
        super().__init__(model, app=app)
        self.schedule = schedule_of(model)
        self.last_run_at = clock.passed(last_run_at) if last_run_at else self._beginning()
        # Since when this process has seen the clock behind the last run.
        self._behind_since: datetime | None = None
        if model.expires:
            self.options["expires"] = clock.aware(model.expires)

    def _beginning(self) -> datetime:
        """Return the moment from which a task that has never run counts, so that it may be due at its start time."""
        if not self.model.start_time:
            return clock.passed(self.model.date_changed)
        start = clock.aware(self.model.start_time)
        is_interval = isinstance(self.schedule, schedules.schedule)
        return start - (self.schedule.run_every if is_interval else timedelta.resolution)

    def go_on_from(self, former: "Entry | None") -> None:
        """Copy what the row's column cannot express, such as the pass of a repeated hour, from an earlier reading."""
        if former and former.model.last_run_at == self.model.last_run_at:
            self.last_run_at, self._behind_since = former.last_run_at, former._behind_since

    def is_due(self) -> schedules.schedstate:
        """Return whether the task is due, and the seconds until the next check. Disable it if its time is over."""
        row, now = self.model, clock.now()
        if not row.enabled:
            return schedules.schedstate(False, NEVER_CHECK_TIMEOUT)
        if row.start_time and (start := clock.aware(row.start_time)) > now:
            return schedules.schedstate(False, (start - now).total_seconds())
        if row.expires and clock.aware(row.expires) <= now:
            self._disable(row)
            return schedules.schedstate(False, NEVER_CHECK_TIMEOUT)
        if row.one_off and row.total_run_count > 0:
            self._disable(row, total_run_count=0)
            return schedules.schedstate(False, NEVER_CHECK_TIMEOUT)
        return self.schedule.is_due(self._counts_from(now))

    def _counts_from(self, now: datetime) -> datetime:
        """Return the last run, or the moment since which the clock has been behind it."""
        is_behind = self._behind_since or lies_ahead(self.last_run_at, now, self.schedule)
        if not is_behind or self.last_run_at <= now:
            self._behind_since = None
            return self.last_run_at
        since = self._behind_since = min(self._behind_since or now, now)
        is_interval = isinstance(self.schedule, schedules.schedule)
        # Other tasks have to wait. If the clock is wrong now, tasks that have run must not run again when it is
        # corrected.
        if is_interval or now - since > BELIEVED_AFTER:
            self._note(since)
            self.save()
        return since

    def count_run(self, ran_at: datetime) -> None:
        """Count a run. The next run counts from this moment."""
        self._note(ran_at)
        self.model.total_run_count += 1

    def _note(self, ran_at: datetime) -> None:
        self.last_run_at, self.model.last_run_at = ran_at, clock.for_column(ran_at)

    def save(self) -> None:
        """Record the last run. A row that was disabled in the meantime has none."""
        PeriodicTask.objects.filter(pk=self.model.pk, enabled=True).update(
            last_run_at=self.model.last_run_at, total_run_count=self.model.total_run_count
        )

    def _disable(self, model: PeriodicTask, **columns: Any) -> None:
        """Disable the task, unless somebody has saved it since it was read."""
        model.enabled = False
        PeriodicTask.objects.filter(pk=model.pk, date_changed=model.date_changed).update(
            enabled=False, last_run_at=None, **columns
        )

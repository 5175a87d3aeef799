"""Beat with a lease: any number may run, one sends.

What can be counted on, beyond django-celery-beat's own scheduler:

- One beat sends, the others stand by. When it ends, another goes on within two seconds; when it is killed, hangs or
  loses the database, after BEAT_LEASE_SECONDS and a second. Old and new beats of a deploy send each due task once.
- While the broker is away a due task stays due, and is sent when the broker is back. While the database is away
  nothing is sent, because it could not be written down.
- A task that cannot be sent, or a row that cannot be read, holds up no other task.
- Beat writes the columns of a run and leaves the rest of the row to those who edit it.
- A clock that is set forward or back makes no task run in a burst, and none wait for longer than its interval.
- Summer time begins and ends as `ClockCrontab` says, and USE_TZ may be off.
"""

import math
import signal
import threading
import time
from collections import Counter
from datetime import datetime, timedelta
from types import FrameType
from typing import Any

from celery import Celery, schedules
from celery.beat import SchedulingError
from celery.utils.log import get_logger
from django.db import Error, close_old_connections
from django_celery_beat.clockedschedule import clocked
from django_celery_beat.models import ClockedSchedule, CrontabSchedule, PeriodicTask
from django_celery_beat.schedulers import DatabaseScheduler, ModelEntry
from django_celery_beat.utils import NEVER_CHECK_TIMEOUT

from . import alive, clock
from .broker import broker_failure
from .crontab import ClockCrontab
from .lease import WATCH_SECONDS, Lease
from .unattended import Watch

# The longest time without a look at a task: so soon a clock that was set is noticed.
LOOK_SECONDS = 60.0
# The longest time without reading all rows: those changed without a signal, as by QuerySet.update, are noticed so soon.
READ_SECONDS = 300.0
# A task that could not be sent is tried again after the first time, then after twice as long each time up to the last.
RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 300.0
# A clock that was set back is right if it still says so after this time.
BELIEVED_AFTER = timedelta(hours=1)

logger = get_logger(__name__)


def schedule_of(row: PeriodicTask) -> schedules.BaseSchedule:
    """Return when the task of a row runs; raise ValueError if its crontab has no time zone.

    Not as the row itself says it: that forgets an hour, or is hours off, at the end of summer time or without USE_TZ.
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
    """Return whether a run lies so far ahead that its schedule has to count from now: the clock was set back since.

    What runs at certain hours has run at those that come again, so it waits for the next one, as cron has it; unless
    the run lies more than three hours ahead, because then it was the earlier time that was wrong.
    """
    if isinstance(schedule, schedules.schedule):
        return last_run_at > now
    is_frequent = isinstance(schedule, ClockCrontab) and schedule.is_frequent
    return last_run_at - now > (timedelta(minutes=1) if is_frequent else timedelta(hours=3))


class Entry(ModelEntry):
    """A periodic task as beat sees it; of the row it writes what a run changes, because others may be editing it.

    `last_run_at` has a time zone, whatever the row's column has.
    """

    def __init__(self, model: PeriodicTask, app: Celery | None = None) -> None:
        """Read a row; raise what is wrong with it."""
        last_run_at = model.last_run_at
        super().__init__(model, app=app)
        self.schedule = schedule_of(model)
        self.last_run_at = clock.passed(last_run_at) if last_run_at else self._beginning()
        # Since when the clock is seen to be behind the last run.
        self._behind_since: datetime | None = None
        if model.expires:
            self.options["expires"] = clock.aware(model.expires)

    def _beginning(self) -> datetime:
        """Return from when on a task counts that has never run, so that it may be due at its start time."""
        if not self.model.start_time:
            return clock.passed(self.model.date_changed)
        start = clock.aware(self.model.start_time)
        is_interval = isinstance(self.schedule, schedules.schedule)
        return start - (self.schedule.run_every if is_interval else timedelta.resolution)

    def go_on_from(self, former: "Entry | None") -> None:
        """Take from an earlier reading of the row what its column does not tell, such as the pass of a doubled hour."""
        if former and former.model.last_run_at == self.model.last_run_at:
            self.last_run_at, self._behind_since = former.last_run_at, former._behind_since

    def is_due(self) -> schedules.schedstate:
        """Return whether the task is due, and the seconds until the next look; disable it if its time is over."""
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
        """Return the last run, or since when the clock is behind it."""
        is_behind = self._behind_since or lies_ahead(self.last_run_at, now, self.schedule)
        if not is_behind or self.last_run_at <= now:
            self._behind_since = None
            return self.last_run_at
        since = self._behind_since = min(self._behind_since or now, now)
        is_interval = isinstance(self.schedule, schedules.schedule)
        # Others not at once: if the clock is wrong now, what has run must not run again when it is set right.
        if is_interval or now - since > BELIEVED_AFTER:
            self._note(since)
            self.save()
        return since

    def count_run(self, ran_at: datetime) -> None:
        """Count a run, and the next one from its moment."""
        self._note(ran_at)
        self.model.total_run_count += 1

    def _note(self, ran_at: datetime) -> None:
        self.last_run_at, self.model.last_run_at = ran_at, clock.for_column(ran_at)

    def save(self) -> None:
        """Write down the last run; a row that was disabled meanwhile has none."""
        PeriodicTask.objects.filter(pk=self.model.pk, enabled=True).update(
            last_run_at=self.model.last_run_at, total_run_count=self.model.total_run_count
        )

    def _disable(self, model: PeriodicTask, **columns: Any) -> None:
        """Disable the task, unless somebody has saved it since it was read."""
        model.enabled = False
        PeriodicTask.objects.filter(pk=model.pk, date_changed=model.date_changed).update(
            enabled=False, last_run_at=None, **columns
        )


class LeaseScheduler(DatabaseScheduler):
    """The scheduler of CELERY_BEAT_SCHEDULER; what it promises stands at the head of this module."""

    Entry = Entry

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Prepare to stand by; with `lazy`, only to be described."""
        self.lease = Lease()
        self._queues = Watch()
        self._sends = self._in_round = self._stopping = False
        self._standing_by_for: str | None = None
        self._silent: set[str] = set()
        self._failure: BaseException | None = None
        self._forget()
        super().__init__(*args, **kwargs)

    def setup_schedule(self) -> None:
        """Let a round end before beat does; the rows are read when the lease is ours."""
        # Celery's own handlers interrupt whatever beat does, and what is sent but not written down is sent again.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._stop)
            signal.signal(signal.SIGINT, self._stop)

    @property
    def schedule(self) -> dict[str, Entry]:
        """The enabled tasks by name, as they were last read."""
        return self._schedule

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Make one round; return the seconds until the next."""
        alive.touch("beat")
        self._in_round = True
        try:
            seconds = self._round()
            self._report("database", None)
        except Error as error:
            self._report("database", error)
            seconds = WATCH_SECONDS
        finally:
            self._in_round = False
        if self._stopping:
            raise SystemExit
        return seconds

    def should_sync(self) -> bool:
        """Return no: each run is written down at once."""
        return False

    def sync(self) -> None:
        """Write down the runs that are not yet; raise an error of the database if it does not answer."""
        for name in list(self._dirty):
            self._schedule[name].save()
            self._dirty.discard(name)

    def close(self) -> None:
        """Write down what is left, and give the lease back, so that another beat goes on at once."""
        if self._sends:
            try:
                self.sync()
                self.lease.release()
            except Error as error:
                logger.error("The lease is not given back, so another beat has to wait until it is over: %s", error)
        self._sends = False
        self._forget()
        super().close()

    def all_as_schedule(self) -> dict[str, Entry]:
        """Read the enabled tasks; one that cannot be read is logged and left out."""
        entries = {}
        # All of them: django-celery-beat's query leaves out what is hours away, and fails as a whole for one bad row.
        for row in PeriodicTask.objects.enabled():
            try:
                entries[row.name] = self.Entry(row, app=self.app)
            except Error:
                raise
            except Exception:
                logger.exception("The periodic task %r cannot be read; correct it in the admin.", row.name)
        return entries

    def apply_async(self, entry: Entry, *args: Any, **kwargs: Any) -> None:
        """Send the task; an error is kept for `_send`, since `apply_entry`, which calls this, would drop it."""
        try:
            super().apply_async(entry, advance=False)
        except SchedulingError as error:
            self._failure = error.__context__ or error

    # One round -----------------------------------------------------------------

    def _round(self) -> float:
        """Renew the lease or stand by; send what is due; return the seconds until the next round."""
        close_old_connections()
        if not self._holds_lease():
            return WATCH_SECONDS
        self.sync()
        self._queues.go_on()
        self._read()
        return self._send_due()

    def _holds_lease(self) -> bool:
        if self._sends and self.lease.renew():
            return True
        if self._sends:
            logger.warning("This beat had not renewed its lease in time.")
        self._sends = self.lease.take()
        if self._sends:
            logger.info("This beat holds the lease and sends the scheduled tasks.")
            self._standing_by_for = None
            self._forget()
            super().setup_schedule()
        elif self.lease.holder != self._standing_by_for:
            self._standing_by_for = self.lease.holder
            logger.info("Standing by, %s holds the lease.", self.lease.holder)
        return self._sends

    def _forget(self) -> None:
        """Drop what is known of the tasks: another beat may have sent them since."""
        self._schedule: dict[str, Entry] = {}
        self._dirty: set[str] = set()
        self._looks: dict[str, float] = {}
        self._failures: Counter[str] = Counter()
        self._read_again_at = 0.0

    def _read(self) -> None:
        """Read the tasks if one has changed; then those that could not be sent are tried again, too."""
        changed_at = self.Changes.last_change()
        if changed_at != self._last_timestamp:
            self._looks.clear()
            self._failures.clear()
        elif time.monotonic() < self._read_again_at:
            return
        former, self._schedule = self._schedule, self.all_as_schedule()
        for name, entry in self._schedule.items():
            entry.go_on_from(former.get(name))
        self._last_timestamp, self._read_again_at = changed_at, time.monotonic() + READ_SECONDS

    def _send_due(self) -> float:
        """Send what is due; return the seconds until something may be, or lease and rows need a look."""
        if "broker" in self._silent and not self._broker_answers():
            return RETRY_SECONDS
        for entry in sorted(self._schedule.values(), key=self._next_look):
            if self._next_look(entry) > time.monotonic():
                break
            seconds = self._attend(entry)
            if seconds is None:
                return RETRY_SECONDS
            self._looks[entry.name] = time.monotonic() + seconds
        next_look = min(map(self._next_look, self._schedule.values()), default=math.inf)
        return min(max(next_look - time.monotonic(), 0.0), self.lease.renew_seconds, self.max_interval)

    def _next_look(self, entry: Entry) -> float:
        """Return when to look at a task, by the monotonic clock."""
        return self._looks.get(entry.name, 0.0)

    # One task ------------------------------------------------------------------

    def _attend(self, entry: Entry) -> float | None:
        """Send the task if it is due; return the seconds until the next look at it, None if nothing can be sent now."""
        try:
            is_due, seconds = entry.is_due()
        except Exception as error:
            return self._seconds_after(error, entry)
        if is_due:
            if self._stopping or not self.lease.renew():
                return None
            alive.touch("beat")
            due_at = clock.now()
            if error := self._send(entry):
                return self._seconds_after(error, entry)
            entry.count_run(due_at)
            self._dirty.add(entry.name)
            self.sync()
        self._failures.pop(entry.name, None)
        return min(seconds, LOOK_SECONDS)

    def _send(self, entry: Entry) -> BaseException | None:
        """Send the task; return what went wrong."""
        self._failure = None
        self.apply_entry(entry)
        return self._failure

    def _seconds_after(self, error: BaseException, entry: Entry) -> float | None:
        """Return when to try a task again that could not be sent; None if that is the broker's fault."""
        if not self._broker_answers():
            return None
        seconds = min(RETRY_SECONDS * 2 ** self._failures[entry.name], LONGEST_RETRY_SECONDS)
        self._failures[entry.name] += 1
        logger.error("The task %r was not sent, next try in %.0f s: %r", entry.name, seconds, error)
        return seconds

    # Who does not answer --------------------------------------------------------

    def _broker_answers(self) -> bool:
        failure = broker_failure()
        self._report("broker", failure)
        return failure is None

    def _report(self, name: str, problem: object) -> None:
        """Log once that something does not answer, and once that it does again."""
        if problem is not None and name not in self._silent:
            self._silent.add(name)
            logger.error("The %s does not answer, nothing is sent until it does: %s", name, problem)
        elif problem is None and name in self._silent:
            self._silent.discard(name)
            logger.info("The %s answers again.", name)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """End after the round. A second signal changes nothing: the end itself takes a moment."""
        is_first, self._stopping = not self._stopping, True
        if is_first and not self._in_round:
            raise SystemExit

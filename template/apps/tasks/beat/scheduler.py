"""A beat scheduler with a lease: any number of beats may run, and one sends."""

import math
import signal
import threading
import time
from collections import Counter
from types import FrameType
from typing import Any

from celery.beat import SchedulingError
from celery.utils.log import get_logger
from django.db import Error, close_old_connections
from django_celery_beat.models import PeriodicTask
from django_celery_beat.schedulers import DatabaseScheduler

from apps.tasks.broker.options import broker_failure
from apps.tasks.sending.unattended import Watch
from apps.tasks.worker import alive
from apps.web import clock

from .lease import WATCH_SECONDS, Lease
from .periodic import Entry

# The longest time between two checks of a task, in seconds. A changed clock is noticed within this time.
LOOK_SECONDS = 60.0
# The longest time between two reads of all rows, in seconds. Rows that were changed without a signal, as by
# QuerySet.update, are noticed within this time.
READ_SECONDS = 300.0
# A task that could not be sent is retried after the first of these times, then after twice as long each time, up to the
# second.
RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 300.0

logger = get_logger(__name__)


class LeaseScheduler(DatabaseScheduler):
    """The scheduler of CELERY_BEAT_SCHEDULER. The docstring of this package says what it guarantees."""

    Entry = Entry

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Prepare to stand by. With `lazy`, the scheduler is only described."""
        self.lease = Lease()
        self._queues = Watch()
        self._sends = self._in_round = self._stopping = False
        self._standing_by_for: str | None = None
        self._silent: set[str] = set()
        self._failure: BaseException | None = None
        self._forget()
        super().__init__(*args, **kwargs)

    def setup_schedule(self) -> None:
        """Finish the current round before beat exits. The rows are read when this process gets the lease."""
        # Celery's own signal handlers interrupt beat anywhere, and a task that was sent but not recorded is sent again.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._stop)
            signal.signal(signal.SIGINT, self._stop)

    @property
    def schedule(self) -> dict[str, Entry]:
        """The enabled tasks by name, as of the last read."""
        return self._schedule

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Run one round and return the seconds until the next."""
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
        """Return False, because each run is recorded at once."""
        return False

    def sync(self) -> None:
        """Record the runs that are not recorded yet. Raise a database error if the database does not answer."""
        for name in list(self._dirty):
            self._schedule[name].save()
            self._dirty.discard(name)

    def close(self) -> None:
        """Record what is left and release the lease, so that another beat takes over at once."""
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
        """Read the enabled tasks. A task that cannot be read is logged and left out."""
        entries = {}
        # This reads all rows. django-celery-beat's query omits tasks that are hours away, and one bad row makes it
        # fail.
        for row in PeriodicTask.objects.enabled():
            try:
                entries[row.name] = self.Entry(row, app=self.app)
            except Error:
                raise
            except Exception:
                logger.exception("The periodic task %r cannot be read; correct it in the admin.", row.name)
        return entries

    def apply_async(self, entry: Entry, *args: Any, **kwargs: Any) -> None:
        """Send the task. An error is kept for `_send`, because `apply_entry`, which calls this, would drop it."""
        try:
            super().apply_async(entry, advance=False)
        except SchedulingError as error:
            self._failure = error.__context__ or error

    # One round -----------------------------------------------------------------

    def _round(self) -> float:
        """Renew the lease or stand by, send what is due, and return the seconds until the next round."""
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
        """Drop what is known about the tasks, because another beat may have sent them since."""
        self._schedule: dict[str, Entry] = {}
        self._dirty: set[str] = set()
        self._looks: dict[str, float] = {}
        self._failures: Counter[str] = Counter()
        self._read_again_at = 0.0

    def _read(self) -> None:
        """Read the tasks if one has changed. Those that could not be sent are then retried, too."""
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
        """Send what is due. Return the seconds until something may be due, or the lease or the rows need a check."""
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
        """Return when to check a task next, by the monotonic clock."""
        return self._looks.get(entry.name, 0.0)

    # One task ------------------------------------------------------------------

    def _attend(self, entry: Entry) -> float | None:
        """Send the task if it is due. Return the seconds until its next check, or None if nothing can be sent now."""
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
        """Send the task and return what went wrong, if anything."""
        self._failure = None
        self.apply_entry(entry)
        return self._failure

    def _seconds_after(self, error: BaseException, entry: Entry) -> float | None:
        """Return the seconds until a task that could not be sent is retried, or None if the broker is the cause."""
        if not self._broker_answers():
            return None
        seconds = min(RETRY_SECONDS * 2 ** self._failures[entry.name], LONGEST_RETRY_SECONDS)
        self._failures[entry.name] += 1
        logger.error("The task %r was not sent, next try in %.0f s: %r", entry.name, seconds, error)
        return seconds

    # Services that do not answer -------------------------------------------------

    def _broker_answers(self) -> bool:
        failure = broker_failure()
        self._report("broker", failure)
        return failure is None

    def _report(self, name: str, problem: object) -> None:
        """Log once that a service does not answer, and once that it answers again."""
        if problem is not None and name not in self._silent:
            self._silent.add(name)
            logger.error("The %s does not answer, nothing is sent until it does: %s", name, problem)
        elif problem is None and name in self._silent:
            self._silent.discard(name)
            logger.info("The %s answers again.", name)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Exit after the round. A second signal changes nothing, because the exit itself takes a moment."""
        is_first, self._stopping = not self._stopping, True
        if is_first and not self._in_round:
            raise SystemExit

"""Computes when a crontab is due, including when the clock changes.

Celery compares local times, so a task for every quarter of an hour does not run while the last hour of summer time
occurs for the second time. The rules here are those of cron:

- A task for every hour, or one whose minutes begin with "*", runs whenever the clock shows one of its times: in both
  passes of an hour that occurs twice.
- Any other task runs once for each of its times, however its hours are written ("7", "1,2", "0-6", "*/2"): in the first
  pass of an hour that occurs twice.
- A time that does not occur, because the clock is set forward over it, is later by as much as the clock is set: 02:30
  is at 03:30. A task that is also due at 03:30 runs only once.
"""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

from celery.utils.time import ffwd as celery_ffwd
from django_celery_beat.tzcrontab import TzAwareCrontab

from apps.web import clock

DAY = timedelta(days=1)


class ClockCrontab(TzAwareCrontab):
    """A crontab in a time zone that follows the rules above. Everything else is Celery's."""

    def nowfunc(self) -> datetime:
        """Return the current time in the time zone of the crontab."""
        return clock.now().astimezone(self.tz)

    def remaining_estimate(self, last_run_at: datetime, ffwd: type = celery_ffwd) -> timedelta:
        """Return the time until the first due moment after the last run. It is negative if that moment is past."""
        return self.next_after(last_run_at) - clock.now()

    @property
    def is_frequent(self) -> bool:
        """Whether the task runs every hour or more often, and so in both passes of an hour that occurs twice."""
        return len(self.hour) == 24 or str(self._orig_minute).startswith("*")

    def next_after(self, moment: datetime) -> datetime:
        """Return the first due moment after this one, in UTC."""
        lowest, _ = self._offsets(moment)
        found = latest = None
        for time in self._times(moment.astimezone(UTC).replace(tzinfo=None) + lowest):
            # Around a change of the clock, a later time may occur at an earlier moment.
            if found and time >= latest:
                break
            due = min((due for due in self._moments(time) if due > moment), default=None)
            if due and (found is None or due < found):
                found = due
                low, high = self._offsets(found)
                latest = latest or time + (high - low)
        return found

    def _moments(self, time: datetime) -> list[datetime]:
        """Return the moments at which the clock shows this time: one, or two."""
        # A time that does not occur is read with the offset before the change, and is later by as much.
        shown = time.replace(tzinfo=self.tz)
        first, second = shown.astimezone(UTC), shown.replace(fold=1).astimezone(UTC)
        return [first, second] if second > first and self.is_frequent else [first]

    def _offsets(self, moment: datetime) -> tuple[timedelta, timedelta]:
        """Return the lowest and the highest offset from UTC that matter at this moment. They are usually the same."""
        low, high = self._offsets_within(DAY, moment)
        # A change of the clock affects times that are as close to it as the change is long.
        return (low, high) if low == high else self._offsets_within(high - low, moment)

    def _offsets_within(self, reach: timedelta, moment: datetime) -> tuple[timedelta, timedelta]:
        offsets = [each.astimezone(self.tz).utcoffset() for each in (moment - reach, moment, moment + reach)]
        return min(offsets), max(offsets)

    def _times(self, start: datetime) -> Iterator[datetime]:
        """Yield the local times of the crontab after `start`, without end."""
        hours, minutes = sorted(self.hour), sorted(self.minute)
        for day in self._days(start.date()):
            midnight = datetime(day.year, day.month, day.day)
            for hour in hours:
                last = midnight + timedelta(hours=hour, minutes=minutes[-1])
                if last > start:
                    times = (last.replace(minute=minute) for minute in minutes)
                    yield from (time for time in times if time > start)

    def _days(self, day: date) -> Iterator[date]:
        """Yield the days of the crontab, starting with this one."""
        while True:
            if day.month not in self.month_of_year:
                day = (day.replace(day=1) + 31 * DAY).replace(day=1)
                continue
            if day.day in self.day_of_month and day.isoweekday() % 7 in self.day_of_week:
                yield day
            day += DAY

"""When a crontab is due, through the changes of the clock.

Celery goes by what the clock shows, so a task of every quarter of an hour is silent while the last hour of summer time
comes for the second time. Here, as cron has it:

- A task of every hour, or of minutes that begin with "*", runs whenever the clock shows one of its times: in both
  passes of an hour that comes twice.
- Any other runs once for each time that it names, however its hours are written ("7", "1,2", "0-6", "*/2"): in the
  first pass of an hour that comes twice.
- A time that is missing, because the clock is set forward over it, comes as much later as the clock is set: 02:30 is
  at 03:30. What is due at 03:30 as well runs once.
"""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

from celery.utils.time import ffwd as celery_ffwd
from django_celery_beat.tzcrontab import TzAwareCrontab

from apps.web import clock

DAY = timedelta(days=1)


class ClockCrontab(TzAwareCrontab):
    """A crontab in a time zone, by the rules above; all else is Celery's."""

    def nowfunc(self) -> datetime:
        """Return the moment in the zone of the crontab."""
        return clock.now().astimezone(self.tz)

    def remaining_estimate(self, last_run_at: datetime, ffwd: type = celery_ffwd) -> timedelta:
        """Return how long it is to the first due moment after the last run, negative if that is past."""
        return self.next_after(last_run_at) - clock.now()

    @property
    def is_frequent(self) -> bool:
        """Whether the task is one of every hour, or of a part of one, which goes on while an hour comes twice."""
        return len(self.hour) == 24 or str(self._orig_minute).startswith("*")

    def next_after(self, moment: datetime) -> datetime:
        """Return the first due moment after this one, in UTC."""
        lowest, _ = self._offsets(moment)
        found = latest = None
        for time in self._times(moment.astimezone(UTC).replace(tzinfo=None) + lowest):
            # Around a change of the clock a later time may come at an earlier moment.
            if found and time >= latest:
                break
            due = min((due for due in self._moments(time) if due > moment), default=None)
            if due and (found is None or due < found):
                found = due
                low, high = self._offsets(found)
                latest = latest or time + (high - low)
        return found

    def _moments(self, time: datetime) -> list[datetime]:
        """Return when the task is due that the clock is to show this time: once, or twice."""
        # One that is missing is read by the offset before the change, and so as much later.
        shown = time.replace(tzinfo=self.tz)
        first, second = shown.astimezone(UTC), shown.replace(fold=1).astimezone(UTC)
        return [first, second] if second > first and self.is_frequent else [first]

    def _offsets(self, moment: datetime) -> tuple[timedelta, timedelta]:
        """Return the lowest and the highest offset from UTC that matter at the moment; mostly they are the same."""
        low, high = self._offsets_within(DAY, moment)
        # A change shifts what is as near to it as it is long.
        return (low, high) if low == high else self._offsets_within(high - low, moment)

    def _offsets_within(self, reach: timedelta, moment: datetime) -> tuple[timedelta, timedelta]:
        offsets = [each.astimezone(self.tz).utcoffset() for each in (moment - reach, moment, moment + reach)]
        return min(offsets), max(offsets)

    def _times(self, start: datetime) -> Iterator[datetime]:
        """Yield the times of the crontab as a clock shows them, without end, those after `start`."""
        hours, minutes = sorted(self.hour), sorted(self.minute)
        for day in self._days(start.date()):
            midnight = datetime(day.year, day.month, day.day)
            for hour in hours:
                last = midnight + timedelta(hours=hour, minutes=minutes[-1])
                if last > start:
                    times = (last.replace(minute=minute) for minute in minutes)
                    yield from (time for time in times if time > start)

    def _days(self, day: date) -> Iterator[date]:
        """Yield the days of the crontab, from this one on."""
        while True:
            if day.month not in self.month_of_year:
                day = (day.replace(day=1) + 31 * DAY).replace(day=1)
                continue
            if day.day in self.day_of_month and day.isoweekday() % 7 in self.day_of_week:
                yield day
            day += DAY

"""Converts moments between time-zone-aware datetimes and the values that database columns take, whatever USE_TZ is.

With USE_TZ off, a column holds the local time in TIME_ZONE. At the end of summer time, one hour occurs twice and a
column cannot distinguish the two passes. These functions then choose the likelier one.
"""

from datetime import UTC, datetime, timedelta

from django.conf import settings
from django.utils import timezone


def now() -> datetime:
    """Return the current moment, in UTC."""
    return datetime.now(UTC)


def aware(moment: datetime) -> datetime:
    """Return a future moment, from a column or from a caller, with its time zone.

    Without a zone, the moment is in TIME_ZONE if USE_TZ is off, as `timezone.now()` then is, else in UTC. In an hour
    that occurs twice, it is in the first pass, unless that is over.
    """
    first, second = _passes(moment)
    return second if first < now() <= second else first


def passed(moment: datetime) -> datetime:
    """Return a past moment, from a column, with its time zone. Of two passes, it is in the second if possible."""
    first, second = _passes(moment)
    return second if first < second <= now() else first


def for_column(moment: datetime) -> datetime:
    """Return the column value of a moment: without a zone, and in TIME_ZONE, if USE_TZ is off."""
    moment = aware(moment)
    return moment if settings.USE_TZ else timezone.make_naive(moment, timezone.get_default_timezone())


def not_before(moment: datetime) -> datetime:
    """Return the column value of a moment that must not be read as an earlier one.

    If in doubt, it is read as one hour later.
    """
    column = for_column(moment)
    first, second = _passes(column)
    return column + (second - first) if first < moment else column


def ago(wait: timedelta) -> datetime:
    """Return the column value of the moment this long ago.

    If the clock has just changed, return an earlier moment rather than a later one.
    """
    return min(timezone.now() - wait, for_column(now() - wait))


def at_once() -> datetime:
    """Return the column value of a moment that has come, and that stays in the past if the clock is then set back."""
    moment = timezone.now()
    first, second = _passes(moment)
    return moment - (second - first)


def is_changed() -> bool:
    """Return whether clocks in TIME_ZONE are set forward and back within a year."""
    days = (now() + timedelta(days=number) for number in range(0, 365, 14))
    return len({day.astimezone(timezone.get_default_timezone()).utcoffset() for day in days}) > 1


def _passes(moment: datetime) -> tuple[datetime, datetime]:
    """Return both moments that a time without a zone may mean. They are the same unless its hour occurs twice."""
    if timezone.is_aware(moment):
        return (moment.astimezone(UTC),) * 2
    zone = UTC if settings.USE_TZ else timezone.get_default_timezone()
    first, second = (moment.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    # In an hour that does not occur, the two are in reverse order.
    return first, max(first, second)

"""Moments with their time zone, whatever USE_TZ says, and the same as the columns of the database take them.

With USE_TZ off a column holds the time that a clock in TIME_ZONE shows. So it does not tell the two passes of an hour
that comes twice, at the end of summer time, from each other; here the likelier one is taken.
"""

from datetime import UTC, datetime, timedelta

from django.conf import settings
from django.utils import timezone


def now() -> datetime:
    """Return the moment, in UTC."""
    return datetime.now(UTC)


def aware(moment: datetime) -> datetime:
    """Return with its zone a moment that is to come, from a column or from a caller.

    Without a zone it is in TIME_ZONE where USE_TZ is off, as `timezone.now()` is then; else in UTC.
    Of an hour that comes twice it is in the first pass, unless that is over.
    """
    first, second = _passes(moment)
    return second if first < now() <= second else first


def passed(moment: datetime) -> datetime:
    """Return with its zone a moment that has been, from a column; of two passes it is in the second if that can be."""
    first, second = _passes(moment)
    return second if first < second <= now() else first


def for_column(moment: datetime) -> datetime:
    """Return a moment as a column takes it: without a zone, and in TIME_ZONE, if USE_TZ is off."""
    moment = aware(moment)
    return moment if settings.USE_TZ else timezone.make_naive(moment, timezone.get_default_timezone())


def not_before(moment: datetime) -> datetime:
    """Return as a column takes it a moment that must not be taken for an earlier one: rather for one an hour later."""
    column = for_column(moment)
    first, second = _passes(column)
    return column + (second - first) if first < moment else column


def ago(wait: timedelta) -> datetime:
    """Return as a column takes it the moment so long ago; rather an earlier one where the clock was just changed."""
    return min(timezone.now() - wait, for_column(now() - wait))


def at_once() -> datetime:
    """Return as a column takes it a moment that has come, also when the clock is set back right afterwards."""
    moment = timezone.now()
    first, second = _passes(moment)
    return moment - (second - first)


def is_changed() -> bool:
    """Return whether clocks in TIME_ZONE are set forward and back within a year."""
    days = (now() + timedelta(days=number) for number in range(0, 365, 14))
    return len({day.astimezone(timezone.get_default_timezone()).utcoffset() for day in days}) > 1


def _passes(moment: datetime) -> tuple[datetime, datetime]:
    """Return both moments that a time without a zone may mean; they are the same unless its hour comes twice."""
    if timezone.is_aware(moment):
        return (moment.astimezone(UTC),) * 2
    zone = UTC if settings.USE_TZ else timezone.get_default_timezone()
    first, second = (moment.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    # In an hour that is missing they are the other way round.
    return first, max(first, second)

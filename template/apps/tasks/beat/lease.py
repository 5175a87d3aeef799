"""The lease of beat: whoever holds it sends the scheduled tasks, all others stand by.

It lies in the database, so that beats on any number of machines share it, and no two clocks are ever compared: the
holder raises a counter, and another beat takes the lease when it has not seen the counter change for
BEAT_LEASE_SECONDS by its own monotonic clock. The holder renews before each message, too, and a renewal that took long
does not count: so a beat that hung sends nothing more, unless it hung between a renewal and the message right after.
"""

import os
import secrets
import socket
import time

from django.conf import settings
from django.db.models import DurationField, ExpressionWrapper, F
from django.db.models.functions import Now

from apps.tasks.models import BeatLease

# As parts of BEAT_LEASE_SECONDS: how often the holder renews, and how long a renewal may take to count. What is left
# of the time is for the message that the holder sends then.
RENEW_PART = 1 / 5
VALID_PART = 2 / 3
# From one look of another beat to the next.
WATCH_SECONDS = 1.0


class Lease:
    """This process's part in the lease."""

    def __init__(self) -> None:
        self.seconds: float = settings.BEAT_LEASE_SECONDS
        # Never the same twice: a renewal by this name cannot be another's.
        self.name = f"{socket.gethostname()[:150]}, process {os.getpid()}, {secrets.token_hex(4)}"
        self._seen: tuple[str, int] | None = None
        self._seen_at = 0.0

    @property
    def renew_seconds(self) -> float:
        """The longest time from one renewal to the next."""
        return self.seconds * RENEW_PART

    @property
    def holder(self) -> str:
        """Who held the lease when this process last looked; empty for nobody."""
        return self._seen[0] if self._seen else ""

    def renew(self) -> bool:
        """Renew the lease; return whether it is still ours, so that this process may send now.

        Raises an error of the database if that does not answer.
        """
        started = time.monotonic()
        while self._write(holder=self.name):
            if time.monotonic() - started < self.seconds * VALID_PART:
                return True
            # It took so long that others may have the right to take the lease by now: only a quick answer counts.
            started = time.monotonic()
        return False

    def take(self) -> bool:
        """Take the lease if nobody holds it or its time is over; return whether it is ours.

        Its time begins again whenever this process sees that it was renewed.

        Raises an error of the database if that does not answer.
        """
        row, _ = BeatLease.objects.get_or_create(pk=1)
        if (row.holder, row.counter) != self._seen:
            self._seen, self._seen_at = (row.holder, row.counter), time.monotonic()
        # Ours already, if the connection broke before the answer came that it is.
        is_free = row.holder in ("", self.name)
        if not is_free and time.monotonic() - self._seen_at < self.seconds:
            return False
        return self._write(holder=row.holder, counter=row.counter)

    def release(self) -> None:
        """Give the lease back, if it is ours, so that another beat takes it at once."""
        BeatLease.objects.filter(pk=1, holder=self.name).update(holder="")

    def _write(self, **expected: str | int) -> bool:
        """Write this process down as the holder if the row is as expected; return whether it was."""
        row = BeatLease.objects.filter(pk=1, **expected)
        return bool(row.update(holder=self.name, counter=F("counter") + 1, renewed_at=Now()))


def seconds_since_renewal() -> float | None:
    """Return how long ago a beat has renewed the lease, by the database's clock alone; None if none ever has."""
    age = ExpressionWrapper(Now() - F("renewed_at"), output_field=DurationField())
    last = BeatLease.objects.filter(renewed_at__isnull=False).annotate(age=age).first()
    return last.age.total_seconds() if last else None

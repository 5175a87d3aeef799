"""The lease of beat: whoever holds it sends the scheduled tasks, and all others stand by.

The lease is a row in the database, so beats on any number of machines share it. No two clocks are ever compared: the
holder increments a counter, and another beat takes the lease when it has not seen the counter change for
BEAT_LEASE_SECONDS by its own monotonic clock. The holder also renews before each message, and a renewal that took too
long does not count. A beat that was hanging therefore sends nothing more, unless it hung between a renewal and the next
message.
"""

import os
import secrets
import socket
import time

from django.conf import settings
from django.db.models import DurationField, ExpressionWrapper, F
from django.db.models.functions import Now

from apps.tasks.models import BeatLease

# As fractions of BEAT_LEASE_SECONDS: how often the holder renews, and how long a valid renewal may take. The rest of
# the time is for the message that the holder then sends.
RENEW_PART = 1 / 5
VALID_PART = 2 / 3
# How often a standby beat checks the lease, in seconds.
WATCH_SECONDS = 1.0


class Lease:
    """The lease from the point of view of this process."""

    def __init__(self) -> None:
        self.seconds: float = settings.BEAT_LEASE_SECONDS
        # This name is unique, so a renewal by this name cannot come from another process.
        self.name = f"{socket.gethostname()[:150]}, process {os.getpid()}, {secrets.token_hex(4)}"
        self._seen: tuple[str, int] | None = None
        self._seen_at = 0.0

    @property
    def renew_seconds(self) -> float:
        """The longest time from one renewal to the next."""
        return self.seconds * RENEW_PART

    @property
    def holder(self) -> str:
        """Who held the lease when this process last looked. Empty for nobody."""
        return self._seen[0] if self._seen else ""

    def renew(self) -> bool:
        """Renew the lease. Return whether it is still ours, so that this process may send now.

        Raises a database error if the database does not answer.
        """
        started = time.monotonic()
        while self._write(holder=self.name):
            if time.monotonic() - started < self.seconds * VALID_PART:
                return True
            # This took so long that others may take the lease by now, so only a quick answer counts.
            started = time.monotonic()
        return False

    def take(self) -> bool:
        """Take the lease if nobody holds it or it has expired, and return whether it is ours.

        The time starts again whenever this process sees a renewal.

        Raises a database error if the database does not answer.
        """
        row, _ = BeatLease.objects.get_or_create(pk=1)
        if (row.holder, row.counter) != self._seen:
            self._seen, self._seen_at = (row.holder, row.counter), time.monotonic()
        # The lease may already be ours, if the connection broke before the answer arrived.
        is_free = row.holder in ("", self.name)
        if not is_free and time.monotonic() - self._seen_at < self.seconds:
            return False
        return self._write(holder=row.holder, counter=row.counter)

    def release(self) -> None:
        """Release the lease, if it is ours, so that another beat takes it at once."""
        BeatLease.objects.filter(pk=1, holder=self.name).update(holder="")

    def _write(self, **expected: str | int) -> bool:
        """Record this process as the holder if the row is as expected, and return whether it was."""
        row = BeatLease.objects.filter(pk=1, **expected)
        return bool(row.update(holder=self.name, counter=F("counter") + 1, renewed_at=Now()))


def seconds_since_renewal() -> float | None:
    """Return how long ago a beat renewed the lease, by the database's clock alone, or None if none ever did."""
    age = ExpressionWrapper(Now() - F("renewed_at"), output_field=DurationField())
    last = BeatLease.objects.filter(renewed_at__isnull=False).annotate(age=age).first()
    return last.age.total_seconds() if last else None

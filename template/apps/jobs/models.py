"""A job, and the steps from one state to the next.

The web server, the workers and the scheduled clean-up change the same rows at the same time. So each step is one UPDATE
that names the states from which it may start: the second process changes nothing, and the returned False tells it so.
"""

from datetime import timedelta
from typing import Any
from uuid import uuid4

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models
from django.utils import timezone

from apps.web import clock
from apps.web.allowance import HourlyAllowance

# After this time in the queue, the page says that no worker takes the job.
LATE = timedelta(seconds=10)
# A running job writes its progress every second. A queued job may wait for a long time if there is much to do.
LONGEST_SILENCE = timedelta(minutes=2)
LONGEST_WAIT = timedelta(hours=6)

# How many jobs of one person may wait or run. All tasks share the workers, of which each runs four tasks or more.
MOST_ACTIVE = 3
JOBS_PER_HOUR = 60

FAILURE_MESSAGE = "It failed. The log of the worker says why."
STALLED_MESSAGE = "It was given up: nothing was heard of it for too long."


class State(models.TextChoices):
    """The state of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobQuerySet(models.QuerySet):
    """Jobs, and what the scheduled clean-up does with them."""

    def stalled(self) -> "JobQuerySet":
        """Return the jobs that a worker or the queue has lost."""
        silent = models.Q(state=State.RUNNING, updated_at__lt=clock.ago(LONGEST_SILENCE))
        forgotten = models.Q(state=State.QUEUED, updated_at__lt=clock.ago(LONGEST_WAIT))
        return self.filter(silent | forgotten)

    def give_up(self) -> int:
        """Close these jobs as failed, or as cancelled if that was requested. Return how many there were.

        Only jobs that still match are closed, because a job may have moved on since it was read.
        """
        now = timezone.now()
        cancelled = self.filter(cancel_requested=True).update(state=State.CANCELLED, updated_at=now)
        return cancelled + self.update(state=State.FAILED, message=STALLED_MESSAGE, updated_at=now)


class Job(models.Model):
    """Something that takes long, started by a user. Here it counts seconds."""

    id = models.UUIDField(primary_key=True, default=uuid4, editable=False)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="jobs")
    state = models.CharField(max_length=10, choices=State.choices, default=State.QUEUED)
    # Counts the runs. A worker whose job was closed sees another number when it comes back, and stops.
    attempt = models.PositiveIntegerField(default=1)
    current = models.PositiveIntegerField(default=0, help_text="Seconds done.")
    total = models.PositiveIntegerField(default=10, help_text="Seconds to do.")
    fail_on_purpose = models.BooleanField(default=False)
    cancel_requested = models.BooleanField(default=False)
    message = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(default=timezone.now, editable=False)

    objects = JobQuerySet.as_manager()

    class Meta:
        ordering = ["-created_at"]
        indexes = [
            models.Index(fields=["owner", "-created_at"], name="jobs_of_owner"),
            models.Index(fields=["state", "updated_at"], name="jobs_by_state"),
        ]

    def __str__(self) -> str:
        return f"{self.total}-second job"

    @property
    def is_active(self) -> bool:
        """Whether the job will still change by itself."""
        return self.state in (State.QUEUED, State.RUNNING)

    @property
    def is_late(self) -> bool:
        """Whether the job has waited longer than it would if a worker were free."""
        return self.state == State.QUEUED and timezone.now() - self.updated_at > LATE

    @property
    def shape(self) -> str:
        """The value that the badge and the button of the row on the page depend on, as opposed to the progress."""
        return f"{self.state}-cancelling" if self.is_active and self.cancel_requested else self.state

    # What users do ----------------------------------------------------------

    def cancel(self) -> bool:
        """Take the job out of the queue, or ask the worker that runs it to stop. Return whether that was necessary."""
        return self._change([State.QUEUED], state=State.CANCELLED) or self._change(
            [State.RUNNING], cancel_requested=True
        )

    def retry(self) -> bool:
        """Queue a failed job again, this time without the deliberate failure. Return whether it had failed."""
        return self._change(
            [State.FAILED],
            state=State.QUEUED,
            attempt=self.attempt + 1,
            current=0,
            fail_on_purpose=False,
            cancel_requested=False,
            message="",
        )

    # What workers do --------------------------------------------------------

    def claim(self) -> bool:
        """Claim the job for this attempt. Return False if another worker was faster, or the job was cancelled."""
        return self._change([State.QUEUED], state=State.RUNNING)

    def advance(self, current: int) -> bool:
        """Record how far the job is. Return False if it is no longer wanted."""
        return self._change([State.RUNNING], unless_cancelled=True, current=current)

    def finish(self) -> bool:
        """Close the job as done, or as cancelled if that was requested in time."""
        return self._change([State.RUNNING], unless_cancelled=True, state=State.DONE, current=self.total) or (
            self._change([State.RUNNING], state=State.CANCELLED)
        )

    def fail(self, message: str) -> bool:
        """Close a job that did not finish: as cancelled if that was requested, else as failed with this message."""
        active = [State.QUEUED, State.RUNNING]
        return self._change(active, unless_cancelled=True, state=State.FAILED, message=message) or (
            self._change([State.RUNNING], state=State.CANCELLED)
        )

    def _change(self, states: list[State], *, unless_cancelled: bool = False, **values: Any) -> bool:
        """Write the values if the job is in one of the states and in the same attempt. Return whether it was.

        With `unless_cancelled`, also leave a job alone that somebody wants to cancel.
        """
        rows = Job.objects.filter(pk=self.pk, attempt=self.attempt, state__in=states)
        if unless_cancelled:
            rows = rows.filter(cancel_requested=False)
        values["updated_at"] = timezone.now()
        changed = bool(rows.update(**values))
        if changed:
            for name, value in values.items():
                setattr(self, name, value)
        return changed


class Allowance(HourlyAllowance):
    """How many jobs a person has started in the current hour. Cancelling them gains nothing."""

    counted = "started"

    owner = models.OneToOneField(settings.AUTH_USER_MODEL, models.CASCADE, primary_key=True, related_name="+")
    started = models.PositiveIntegerField(default=0)


def use_allowance(owner_id: int) -> None:
    """Count one job of this hour. Raise ValidationError if it is one too many; undo the transaction then.

    Of several requests at the same time, each counts those before it, because the count locks the person's row.
    """
    if not Allowance.use(owner_id, JOBS_PER_HOUR):
        raise ValidationError(f"You have started {JOBS_PER_HOUR} jobs within an hour. Try again later.")
    if Job.objects.filter(owner=owner_id, state__in=[State.QUEUED, State.RUNNING]).count() >= MOST_ACTIVE:
        raise ValidationError(f"{MOST_ACTIVE} of your jobs wait or run. Cancel one, or wait for the end of one.")

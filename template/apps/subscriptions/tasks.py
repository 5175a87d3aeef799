"""The work that an event of Stripe causes: Stripe gets its answer at once, and a worker asks it back."""

from functools import partial

from celery import shared_task

from apps.tasks.sending import RetryingTask, send

from .billing import TRANSIENT_ERRORS, refetch


@shared_task(base=RetryingTask, autoretry_for=TRANSIENT_ERRORS)
def refetch_subscription(stripe_id: str) -> None:
    """Write down what Stripe says about the subscription now. Safe to repeat."""
    refetch(stripe_id)


def follow_up(stripe_id: str) -> None:
    """Send the task; while the broker is away, do without it."""
    send(refetch_subscription, stripe_id, on_failure=partial(refetch, stripe_id))

"""The work that a Stripe event causes: Stripe gets its answer at once, and a worker then asks Stripe."""

from functools import partial

from celery import shared_task

from apps.tasks.sending import RetryingTask, send

from .billing import TRANSIENT_ERRORS, refetch


@shared_task(base=RetryingTask, autoretry_for=TRANSIENT_ERRORS)
def refetch_subscription(stripe_id: str) -> None:
    """Store what Stripe says about the subscription now. Idempotent."""
    refetch(stripe_id)


def follow_up(stripe_id: str) -> None:
    """Send the task. If the broker is down, do the work here."""
    send(refetch_subscription, stripe_id, on_failure=partial(refetch, stripe_id))

"""Keeps the quantity of a subscription equal to the seats of its team.

A change of seats sends a task when it is committed. The task counts the seats when it runs, not when it was sent, and
reports a number, not a difference. So it may arrive twice, late or out of order, and one successful task makes up for
all earlier ones. `sync_all` runs on a schedule and finds changes that sent no task (`bulk_create`, a broker that was
down).

Only prices of plans are counted. Any other price was agreed on in Stripe, maybe for the whole team.
"""

import logging

from django.conf import settings
from django.db import transaction
from django.db.models import Count, F, QuerySet
from django.db.models.signals import post_delete, post_save

from apps.background import task
from apps.tasks.sending import send
from apps.teams.models import Membership

from .billing import TRANSIENT_ERRORS, client, doubtful, is_configured
from .models import Plan, Subscription
from .tasks import refetch_subscription

logger = logging.getLogger(__name__)


@transaction.atomic
def sync(team_id: int) -> bool:
    """Tell Stripe how many seats the team has now. Return whether there was anything to report.

    Raises stripe.StripeError if Stripe refuses or does not answer. Nothing is changed then.
    """
    # The row is locked during the call to Stripe, so if two tasks run at once, the later one counts when the earlier
    # one is done. The call is therefore not retried in here. The caller retries it, without the lock.
    subscription = Subscription.objects.select_for_update().filter(team_id=team_id).first()
    if subscription is None or not subscription.is_active or subscription.plan is None:
        return False
    seats = subscription.team.seats
    if seats == 0:
        logger.error("Nobody is left in team %s, which still pays: cancel %s", team_id, subscription.stripe_id)
    if seats in (0, subscription.quantity):
        return False
    # There is no idempotency key. For 5, 6 and again 5 seats, Stripe would repeat the first answer and bill 6.
    client(retries=0).v1.subscription_items.update(
        subscription.item_id, {"quantity": seats, "proration_behavior": settings.STRIPE_PRORATION}
    )
    subscription.quantity = seats
    subscription.save(update_fields=["quantity", "updated_at"])
    return True


def out_of_step() -> QuerySet[Subscription]:
    """Return the active subscriptions to a plan whose quantity differs from the number of seats, each with `seats`."""
    active = Subscription.objects.filter(
        status__in=Subscription.ACTIVE_STATUSES, price_id__in=Plan.objects.values("price_id")
    )
    seats = Count("team__memberships")
    return active.select_related("team").annotate(seats=seats).exclude(quantity=F("seats"))


@task(retry_for=TRANSIENT_ERRORS, keep_result=False)
def sync_team(team_id: int) -> None:
    """Bring one subscription into step. Idempotent."""
    if is_configured():
        sync(team_id)


@task(keep_result=False)
def sync_all() -> None:
    """Send a task for each subscription that is out of step or in doubt, so that a failure does not stop the others."""
    for subscription in out_of_step():
        sync_team.enqueue(subscription.team_id)
    for subscription in doubtful() if is_configured() else ():
        send(refetch_subscription, subscription.stripe_id)


def watch() -> None:
    """Send the task whenever a seat is taken or given up, or Stripe has a different number than the team."""
    post_save.connect(_seat_saved, sender=Membership, dispatch_uid="seat_saved")
    post_delete.connect(_seat_deleted, sender=Membership, dispatch_uid="seat_deleted")
    post_save.connect(_subscription_saved, sender=Subscription, dispatch_uid="subscription_saved")


def _seat_saved(instance: Membership, created: bool, raw: bool, **kwargs: object) -> None:
    if created and not raw:
        _seats_changed(instance)


def _seat_deleted(instance: Membership, **kwargs: object) -> None:
    _seats_changed(instance)


def _seats_changed(membership: Membership) -> None:
    def tell() -> None:
        if Subscription.objects.filter(team_id=membership.team_id).exists():
            sync_team.enqueue(membership.team_id)

    # Asked after the commit, because a process that does not see the seat yet may be storing the subscription.
    transaction.on_commit(tell)


def _subscription_saved(instance: Subscription, raw: bool, **kwargs: object) -> None:
    # Somebody joined between checkout and payment, or typed another quantity at Stripe.
    if not raw and instance.is_active and instance.quantity != instance.team.seats:
        sync_team.enqueue(instance.team_id)

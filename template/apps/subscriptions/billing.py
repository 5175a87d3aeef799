"""All communication with Stripe, and what is stored of its answers. https://docs.stripe.com/api?lang=python"""

import logging
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import stripe
from django.conf import settings
from django.db import transaction
from django.db.models import Q, QuerySet
from django.utils import timezone

from apps.teams.models import Team
from apps.web.clock import for_column

from .models import Plan, Subscription
from .units import units_of

# The SDK's default is 80 seconds, which is longer than people wait.
TIMEOUT_SECONDS = 15
# Temporary errors, which are worth a retry.
TRANSIENT_ERRORS = (stripe.APIConnectionError, stripe.APIError, stripe.RateLimitError)

logger = logging.getLogger(__name__)


def is_configured() -> bool:
    """Return whether there is a key for Stripe."""
    return bool(settings.STRIPE_SECRET_KEY)


def client(retries: int = 2) -> stripe.StripeClient:
    """Return a client that retries this many times if the network or Stripe fails.

    Use zero while a row is locked. Raises stripe.AuthenticationError if no key is set.
    """
    return stripe.StripeClient(
        settings.STRIPE_SECRET_KEY or None,
        base_addresses={"api": settings.STRIPE_API_URL},
        http_client=stripe.RequestsClient(timeout=TIMEOUT_SECONDS),
        max_network_retries=retries,
    )


def read_price(plan: Plan) -> None:
    """Read the plan's price from Stripe, where the amount of a price never changes, into the unsaved plan."""
    price = client().v1.prices.retrieve(plan.price_id, {"expand": ["tiers"]}).to_dict()
    tiers = price.get("tiers") or [price]
    # Zero is also a price.
    amounts = [Decimal(tier["unit_amount_decimal"]) for tier in tiers if tier.get("unit_amount_decimal") is not None]
    recurring = price.get("recurring") or {}
    count = recurring.get("interval_count", 1)
    plan.amount = min(amounts, default=None)
    plan.currency = price["currency"]
    plan.interval = f"{count} {recurring['interval']}s" if count > 1 else recurring.get("interval", "")


@transaction.atomic
def checkout_url(team: Team, plan: Plan, email: str, done_url: str, back_url: str) -> str:
    """Return the Stripe page on which the team subscribes to the plan. Stripe adds the session to `done_url`.

    This expires an older page in another tab or of another owner, because paying there as well would create a second
    subscription.
    """
    team = _locked(team.pk)
    # The same customer is used for each checkout, so that one portal shows everything that the team pays for.
    if team.customer_id:
        try:
            return _new_session(team, plan, done_url, back_url)
        except stripe.InvalidRequestError as error:
            if not is_customer_unknown(error):
                raise
            logger.warning("Stripe does not know %s, so team %s becomes a new customer", team.customer_id, team.pk)
    team.customer_id = client(retries=0).v1.customers.create({"email": email, "name": team.name}).id
    team.save(update_fields=["customer_id"])
    return _new_session(team, plan, done_url, back_url)


def _new_session(team: Team, plan: Plan, done_url: str, back_url: str) -> str:
    sessions = client(retries=0).v1.checkout.sessions
    for older in sessions.list({"customer": team.customer_id, "status": "open"}).auto_paging_iter():
        sessions.expire(older.id)
    session = sessions.create(
        {
            "mode": "subscription",
            "line_items": [{"price": plan.price_id, "quantity": units_of(team)}],
            "client_reference_id": str(team.pk),
            "customer": team.customer_id,
            "subscription_data": {"metadata": {"team": str(team.pk)}},
            "success_url": f"{done_url}?session={{CHECKOUT_SESSION_ID}}",
            "cancel_url": back_url,
        }
    )
    return session.url


def portal_url(subscription: Subscription, back_url: str) -> str:
    """Return the Stripe page on which the team changes its card or plan, reads invoices, or cancels.

    If somebody has deleted the customer at Stripe, which ends its subscriptions, this stores the end before it raises.
    """
    parameters = {"customer": subscription.team.customer_id, "return_url": back_url}
    try:
        return client().v1.billing_portal.sessions.create(parameters).url
    except stripe.InvalidRequestError as error:
        if is_customer_unknown(error):
            refetch(subscription.stripe_id)
        raise


def is_customer_unknown(error: stripe.StripeError) -> bool:
    """Return whether Stripe does not know the customer: it was deleted, or belongs to the other mode or account."""
    is_missing = isinstance(error, stripe.InvalidRequestError) and error.code == "resource_missing"
    return is_missing and error.param == "customer"


def begun_by(team: Team, session_id: str) -> str | None:
    """Return the id of the subscription that the team's checkout began, or None if it began none or is another's."""
    session = client().v1.checkout.sessions.retrieve(session_id).to_dict()
    return session.get("subscription") if session.get("client_reference_id") == str(team.pk) else None


@transaction.atomic
def refetch(stripe_id: str) -> Subscription | None:
    """Store what Stripe says about the subscription now, and return its team's row, or None if it belongs to no team.

    If the team has two subscriptions, the row may describe the other, more important one.

    Events arrive late, twice and out of order, so their content is ignored: each is only a reason to ask Stripe.
    """
    known = Subscription.objects.filter(stripe_id=stripe_id).first()
    team_id = known.team_id if known else (_ask(stripe_id).get("metadata") or {}).get("team", "")
    team = _locked(int(team_id)) if str(team_id).isdecimal() else None
    if team is None:
        logger.info("%s is the subscription of no team", stripe_id)
        return None
    # Stripe is asked while the locks are held: whoever asks later also writes later, so an old answer never replaces a
    # new one. The lock of the team works before there is a row, and the lock of the row keeps the seat count out.
    row = Subscription.objects.select_for_update().filter(team=team).first()
    found = _ask(stripe_id)
    if row and row.stripe_id != stripe_id:
        if _weight(row.status) and _weight(found["status"]):
            logger.error("Team %s has two subscriptions: cancel %s or %s", team.pk, row.stripe_id, stripe_id)
        if _weight(found["status"]) <= _weight(row.status):
            return row
    elif not _weight(found["status"]):
        found = max([found, *_others(found, team)], key=lambda one: _weight(one["status"]))
    team.customer_id = found["customer"]
    team.save(update_fields=["customer_id"])
    return Subscription.of_all_modes.update_or_create(team=team, defaults=_fields(found))[0]


def doubtful() -> QuerySet[Subscription]:
    """Return the subscriptions for which an event seems lost: they should have been renewed, ended or paid by now."""
    is_late = Q(current_period_end__lt=timezone.now()) | Q(status=Subscription.Status.INCOMPLETE)
    return Subscription.objects.exclude(status__in=Subscription.ENDED_STATUSES).filter(is_late)


def _locked(team_id: int) -> Team | None:
    # This does not lock the key, so somebody who joins the team need not wait for Stripe.
    return Team.objects.select_for_update(no_key=True).filter(pk=team_id).first()


def _ask(stripe_id: str) -> dict[str, Any]:
    return client(retries=0).v1.subscriptions.retrieve(stripe_id).to_dict()


def _others(found: dict[str, Any], team: Team) -> list[dict[str, Any]]:
    """Return the team's other subscriptions, because of two, it may have ended the one that was known here."""
    try:
        of_customer = client(retries=0).v1.subscriptions.list({"customer": found["customer"]}).to_dict()["data"]
    except stripe.InvalidRequestError as error:
        # If somebody deletes a customer, all of its subscriptions end.
        if is_customer_unknown(error):
            return []
        raise
    return [one for one in of_customer if (one.get("metadata") or {}).get("team") == str(team.pk)]


def _weight(status: str) -> int:
    """Return 2 for an active subscription, 1 for one that can still be paid or continue, 0 for one that has ended."""
    return (status in Subscription.ACTIVE_STATUSES) + (status not in Subscription.ENDED_STATUSES)


def _fields(found: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a row from Stripe's answer. Of several items, the one that belongs to a plan counts."""
    items = found["items"]["data"]
    plans = set(Plan.objects.values_list("price_id", flat=True))
    item = next((item for item in items if item["price"]["id"] in plans), items[0])
    period_end = item.get("current_period_end")
    return {
        "stripe_id": found["id"],
        "item_id": item["id"],
        "price_id": item["price"]["id"],
        "status": found["status"],
        "quantity": item.get("quantity", 1),
        "current_period_end": for_column(datetime.fromtimestamp(period_end, UTC)) if period_end else None,
        # The portal sets the date of the end. The flag is the older way to say the same.
        "ends_at_period_end": bool(found.get("cancel_at_period_end") or found.get("cancel_at")),
        "is_live": found["livemode"],
    }

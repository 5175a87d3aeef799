"""All that is said to Stripe, and what is kept of its answers. https://docs.stripe.com/api?lang=python"""

import logging
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import stripe
from django.conf import settings
from django.db import transaction

from apps.teams.models import Team

from .models import Plan, Subscription
from .units import units_of

# The SDK waits 80 seconds by itself, longer than a person does.
TIMEOUT_SECONDS = 15
# What passes by itself, and is worth another try.
TRANSIENT_ERRORS = (stripe.APIConnectionError, stripe.APIError, stripe.RateLimitError)

logger = logging.getLogger(__name__)


def is_configured() -> bool:
    """Return whether there is a key for Stripe."""
    return bool(settings.STRIPE_SECRET_KEY)


def client(retries: int = 2) -> stripe.StripeClient:
    """Return a client that tries again so often when the network fails, or Stripe does.

    Zero where a row is locked meanwhile. Raises stripe.AuthenticationError where no key is set.
    """
    return stripe.StripeClient(
        settings.STRIPE_SECRET_KEY or None,
        base_addresses={"api": settings.STRIPE_API_URL},
        http_client=stripe.RequestsClient(timeout=TIMEOUT_SECONDS),
        max_network_retries=retries,
    )


def read_price(plan: Plan) -> None:
    """Put into the plan, unsaved, what its price is in Stripe, where the amount of a price never changes."""
    price = client().v1.prices.retrieve(plan.price_id, {"expand": ["tiers"]}).to_dict()
    tiers = price.get("tiers") or [price]
    amounts = [Decimal(str(tier["unit_amount_decimal"])) for tier in tiers if tier.get("unit_amount_decimal")]
    recurring = price.get("recurring") or {}
    count = recurring.get("interval_count", 1)
    plan.amount = min(amounts, default=None)
    plan.currency = price["currency"]
    plan.interval = f"{count} {recurring['interval']}s" if count > 1 else recurring.get("interval", "")


def checkout_url(team: Team, plan: Plan, email: str, done_url: str, back_url: str) -> str:
    """Return the page of Stripe on which the team subscribes to the plan; Stripe adds the session to `done_url`."""
    known = Subscription.objects.filter(team=team).first()
    session = client().v1.checkout.sessions.create(
        {
            "mode": "subscription",
            "line_items": [{"price": plan.price_id, "quantity": units_of(team)}],
            "client_reference_id": str(team.pk),
            "subscription_data": {"metadata": {"team": str(team.pk)}},
            "success_url": f"{done_url}?session={{CHECKOUT_SESSION_ID}}",
            "cancel_url": back_url,
            # A team that comes back keeps its invoices.
            **({"customer": known.customer_id} if known else {"customer_email": email}),
        }
    )
    return session.url


def portal_url(subscription: Subscription, back_url: str) -> str:
    """Return the page of Stripe on which the team changes its card or plan, reads invoices, or cancels."""
    parameters = {"customer": subscription.customer_id, "return_url": back_url}
    return client().v1.billing_portal.sessions.create(parameters).url


def finish_checkout(team: Team, session_id: str) -> Subscription | None:
    """Return the team's subscription after its checkout, without waiting for the webhook; None if it is not paid."""
    session = client().v1.checkout.sessions.retrieve(session_id).to_dict()
    if session.get("client_reference_id") != str(team.pk) or not session.get("subscription"):
        return None
    return refetch(session["subscription"])


@transaction.atomic
def refetch(stripe_id: str) -> Subscription | None:
    """Write down what Stripe says about the subscription now, and return the row; None if it is no team's.

    Events come late, twice and out of order. So none of them is believed: each is only a reason to ask.
    """
    # Who asks later waits here and also writes later, so that an old answer never replaces a new one.
    known = Subscription.objects.select_for_update().filter(stripe_id=stripe_id).first()
    found = client(retries=0).v1.subscriptions.retrieve(stripe_id).to_dict()
    team_id = known.team_id if known else (found.get("metadata") or {}).get("team", "")
    team = Team.objects.select_for_update().filter(pk=team_id).first() if str(team_id).isdecimal() else None
    if team is None:
        logger.info("%s is the subscription of no team", stripe_id)
        return None
    fields = _fields(found)
    other = Subscription.objects.filter(team=team).exclude(stripe_id=stripe_id).first()
    if other and (other.is_active or fields["status"] not in Subscription.ACTIVE_STATUSES):
        if fields["status"] in Subscription.ACTIVE_STATUSES:
            logger.error("Team %s pays twice: cancel %s or %s", team.pk, other.stripe_id, stripe_id)
        return other
    return Subscription.objects.update_or_create(team=team, defaults=fields)[0]


def _fields(found: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a row for what Stripe says. Plans have one price, and so subscriptions one item."""
    item = found["items"]["data"][0]
    period_end = item.get("current_period_end")
    return {
        "stripe_id": found["id"],
        "customer_id": found["customer"],
        "item_id": item["id"],
        "price_id": item["price"]["id"],
        "status": found["status"],
        "quantity": item.get("quantity", 1),
        "current_period_end": datetime.fromtimestamp(period_end, UTC) if period_end else None,
        # The portal writes the date of the end; the switch is the older way to say the same.
        "ends_at_period_end": bool(found.get("cancel_at_period_end") or found.get("cancel_at")),
    }

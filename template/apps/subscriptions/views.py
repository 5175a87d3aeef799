"""The pricing page, and the subscription of a team. Everything about cards happens on Stripe's pages."""

import logging
from collections.abc import Callable

import stripe
from django.contrib import messages
from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.views.decorators.http import require_POST, require_safe

from apps.teams.access import as_owner, own_membership
from apps.teams.models import Role

from . import billing
from .models import Plan, Subscription
from .units import UNIT

logger = logging.getLogger(__name__)


@login_not_required
@require_safe
def pricing(request: HttpRequest) -> HttpResponse:
    """Show the plans to everybody."""
    return render(request, "subscriptions/pricing.html", _plans())


@require_safe
def choose(request: HttpRequest, plan_id: int) -> HttpResponse:
    """Ask for which of the visitor's teams they choose the plan."""
    plan = get_object_or_404(Plan, pk=plan_id, is_public=True)
    subscribed = Subscription.objects.exclude(status__in=Subscription.ENDED_STATUSES).values("team")
    owned = request.user.memberships.filter(role=Role.OWNER).select_related("team").order_by("team__name", "team_id")
    context = {"plan": plan, "teams": [me.team for me in owned.exclude(team__in=subscribed)]}
    return render(request, "subscriptions/choose.html", _plans() | context)


@require_safe
def team(request: HttpRequest, team_id: int) -> HttpResponse:
    """Show a team what it pays for, and let its owners subscribe."""
    me = own_membership(request, team_id)
    subscription = Subscription.objects.filter(team=me.team).first()
    context = {"me": me, "team": me.team, "subscription": subscription}
    return render(request, "subscriptions/team.html", _plans() | context)


@require_POST
def checkout(request: HttpRequest, team_id: int, plan_id: int) -> HttpResponse:
    """Send an owner to Stripe to subscribe to the plan."""
    me = as_owner(request, team_id)
    plan = get_object_or_404(Plan, pk=plan_id, is_public=True)
    if Subscription.objects.filter(team=me.team).exclude(status__in=Subscription.ENDED_STATUSES).exists():
        messages.info(request, "The team has a subscription already.")
        return redirect("subscriptions:team", team_id)
    done_url = request.build_absolute_uri(reverse("subscriptions:done", args=[team_id]))
    back_url = request.build_absolute_uri(reverse("subscriptions:team", args=[team_id]))
    return _to_stripe(
        request, team_id, lambda: billing.checkout_url(me.team, plan, request.user.email, done_url, back_url)
    )


@require_POST
def portal(request: HttpRequest, team_id: int) -> HttpResponse:
    """Send an owner to Stripe to change the card or the plan, read invoices, or cancel."""
    me = as_owner(request, team_id)
    subscription = get_object_or_404(Subscription.objects, team=me.team)
    back_url = request.build_absolute_uri(reverse("subscriptions:team", args=[team_id]))
    return _to_stripe(request, team_id, lambda: billing.portal_url(subscription, back_url))


@require_safe
def done(request: HttpRequest, team_id: int) -> HttpResponse:
    """Welcome an owner back from the checkout. The webhook reports the same, but may be late, or not reach a laptop."""
    me = as_owner(request, team_id)
    try:
        stripe_id = billing.begun_by(me.team, request.GET.get("session", ""))
        subscription = billing.refetch(stripe_id) if stripe_id else None
    except (stripe.StripeError, ValueError):
        logger.exception("The checkout of team %s was not looked up", team_id)
        subscription = None
    if not subscription or not subscription.is_active:
        messages.info(request, "Stripe has not confirmed the subscription yet. Look again in a minute.")
    elif subscription.stripe_id != stripe_id:
        messages.error(request, "The team had a subscription already and now pays twice. Cancel one of the two.")
    else:
        messages.success(request, "Thank you. The subscription has begun.")
    return redirect("subscriptions:team", team_id)


def _to_stripe(request: HttpRequest, team_id: int, page: Callable[[], str]) -> HttpResponse:
    """Redirect to a Stripe page or, if there is none, back with a sentence."""
    try:
        return redirect(page())
    except stripe.StripeError as error:
        logger.exception("Stripe made no page for team %s", team_id)
        messages.error(request, _sentence_for(error))
    return redirect("subscriptions:team", team_id)


def _sentence_for(error: stripe.StripeError) -> str:
    if not billing.is_configured():
        return "Billing is not configured."
    if isinstance(error, billing.TRANSIENT_ERRORS):
        return "Stripe does not answer as it should. Nothing was changed; try again later."
    if billing.is_customer_unknown(error):
        return "Stripe does not know the team any more. Choose a plan to begin again."
    return "Stripe refused. Nothing was changed, and the log of the server says why."


def _plans() -> dict[str, object]:
    return {
        "plans": Plan.objects.filter(is_public=True),
        "unit": UNIT,
        "is_configured": billing.is_configured(),
    }

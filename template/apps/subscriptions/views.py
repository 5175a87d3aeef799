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
    return render(request, "subscriptions/pricing.html", _plans() | {"start_url": _start_url(request)})


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
    get_object_or_404(Subscription, team=me.team)
    back_url = request.build_absolute_uri(reverse("subscriptions:team", args=[team_id]))
    return _to_stripe(request, team_id, lambda: billing.portal_url(me.team, back_url))


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
    except stripe.StripeError:
        logger.exception("Stripe made no page for team %s", team_id)
    if billing.is_configured():
        messages.error(request, "Stripe does not answer as it should. Nothing was changed; try again later.")
    else:
        messages.error(request, "Billing is not configured.")
    return redirect("subscriptions:team", team_id)


def _plans() -> dict[str, object]:
    return {
        "plans": Plan.objects.filter(is_public=True),
        "unit": UNIT,
        "is_configured": billing.is_configured(),
    }


def _start_url(request: HttpRequest) -> str:
    """Return where somebody who likes a plan continues: the sign-up page, the team, or the list of teams."""
    if not request.user.is_authenticated:
        return f"{reverse('account_signup')}?next={reverse('subscriptions:pricing')}"
    owned = list(request.user.memberships.filter(role=Role.OWNER)[:2])
    return reverse("subscriptions:team", args=[owned[0].team_id]) if len(owned) == 1 else reverse("teams:list")

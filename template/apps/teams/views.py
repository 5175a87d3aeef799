"""The pages of teams. Other people's teams are not found."""

import logging

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_not_required
from django.core.exceptions import PermissionDenied, ValidationError
from django.core.mail import send_mail
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404, redirect, render
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from . import models
from .access import as_manager, as_owner, own_membership
from .forms import InvitationForm, RoleForm, TeamForm
from .models import INVITATION_LIFETIME, Invitation, Membership, Role

logger = logging.getLogger(__name__)


@require_http_methods(["GET", "HEAD", "POST"])
def team_list(request: HttpRequest) -> HttpResponse:
    """Show the visitor's teams, or create a new one and go on to the page that asked for it."""
    form = TeamForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        try:
            team = models.create_team(form.cleaned_data["name"], request.user)
        except ValidationError as refusal:
            form.add_error("name", refusal)
        else:
            next_url = request.GET.get("next", "")
            is_ours = url_has_allowed_host_and_scheme(next_url, allowed_hosts=None)
            return HttpResponseRedirect(next_url) if is_ours else redirect("teams:team", team.pk)
    memberships = request.user.memberships.select_related("team").order_by("team__name", "team_id")
    return render(request, "teams/list.html", {"memberships": memberships, "form": form})


@require_safe
def team(request: HttpRequest, team_id: int) -> HttpResponse:
    """Show a team."""
    return _show_team(request, own_membership(request, team_id))


@require_POST
def invite(request: HttpRequest, team_id: int) -> HttpResponse:
    """Invite somebody by e-mail."""
    me = as_manager(request, team_id)
    form = InvitationForm(request.POST, team=me.team)
    if not form.is_valid():
        return _show_team(request, me, form)
    try:
        # In a transaction, because an invitation whose e-mail cannot be sent must not exist.
        with transaction.atomic():
            models.use_allowance(request.user)
            invitation = form.save(invited_by=request.user)
            _send(request, invitation)
    except ValidationError as error:
        messages.error(request, error.message)
    except OSError:
        logger.exception("The invitation was not sent")
        messages.error(request, "The e-mail could not be sent. Try again later.")
    else:
        messages.success(request, f"{invitation.email} is invited.")
    return redirect("teams:team", team_id)


@require_POST
def withdraw(request: HttpRequest, team_id: int, invitation_id: int) -> HttpResponse:
    """Withdraw an invitation. Its link stops working."""
    me = as_manager(request, team_id)
    get_object_or_404(me.team.invitations, pk=invitation_id).delete()
    return redirect("teams:team", team_id)


@require_POST
def change_role(request: HttpRequest, team_id: int, membership_id: int) -> HttpResponse:
    """Give a member another role."""
    me = as_owner(request, team_id)
    form = RoleForm(request.POST)
    if form.is_valid():
        other = get_object_or_404(me.team.memberships, pk=membership_id)
        try:
            models.change_role(other, form.cleaned_data["role"])
        except ValidationError as error:
            messages.error(request, error.message)
    return redirect("teams:team", team_id)


@require_POST
def remove(request: HttpRequest, team_id: int, membership_id: int) -> HttpResponse:
    """Remove a member, or leave."""
    me = own_membership(request, team_id)
    other = get_object_or_404(me.team.memberships, pk=membership_id)
    leaving = other == me
    if not me.may_remove(other):
        raise PermissionDenied("Only admins and owners of the team may do this.")
    try:
        models.remove(other)
    except ValidationError as error:
        messages.error(request, error.message)
        leaving = False
    return redirect("teams:list") if leaving else redirect("teams:team", team_id)


@login_not_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def invitation(request: HttpRequest, token: str) -> HttpResponse:
    """Show the invitation to its recipient, who signs in or up with that address and accepts it."""
    found = models.invitation_of(token)
    if found is None:
        return render(request, "teams/invitation_ended.html", status=404)
    # A link that was passed on is not an invitation.
    is_mine = request.user.is_authenticated and request.user.email == found.email
    if request.method == "POST" and is_mine:
        models.accept(found, request.user)
        messages.success(request, f"Welcome to {found.team}.")
        return redirect("teams:team", found.team_id)
    return render(request, "teams/invitation.html", {"invitation": found, "is_mine": is_mine})


def _show_team(request: HttpRequest, me: Membership, form: InvitationForm | None = None) -> HttpResponse:
    members = [
        {"membership": other, "may_remove": me != other and me.may_remove(other)}
        for other in me.team.memberships.select_related("user")
    ]
    context = {
        "me": me,
        "team": me.team,
        "members": members,
        "roles": Role.choices,
        "invitations": models.open_invitations().filter(team=me.team) if me.manages else [],
        "form": form or InvitationForm(team=me.team),
    }
    return render(request, "teams/team.html", context, status=422 if form else 200)


def _send(request: HttpRequest, invitation: Invitation) -> None:
    link = request.build_absolute_uri(reverse("teams:invitation", args=[invitation.token]))
    context = {"invitation": invitation, "link": link, "days": INVITATION_LIFETIME.days}
    text = render_to_string("teams/invitation_email.txt", context, request)
    # A name may be any text, but a header is one line.
    subject = " ".join(f"Join {invitation.team} in {settings.PROJECT_NAME}".split())
    send_mail(subject, text, None, [invitation.email])

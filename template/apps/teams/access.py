"""Who may do what. Every view of a team asks here first."""

from django.core.exceptions import PermissionDenied
from django.http import HttpRequest
from django.shortcuts import get_object_or_404

from .models import Membership


def own_membership(request: HttpRequest, team_id: int) -> Membership:
    """Return the visitor's membership in the team. Raise Http404 for others, who do not learn that it exists."""
    return get_object_or_404(Membership.objects.select_related("team"), team_id=team_id, user=request.user)


def as_manager(request: HttpRequest, team_id: int) -> Membership:
    """Return the visitor's membership if it is an admin's or owner's. Raise PermissionDenied for other members."""
    membership = own_membership(request, team_id)
    if not membership.manages:
        raise PermissionDenied("Only admins and owners of the team may do this.")
    return membership


def as_owner(request: HttpRequest, team_id: int) -> Membership:
    """Return the visitor's membership if it is an owner's. Raise PermissionDenied for other members."""
    membership = own_membership(request, team_id)
    if not membership.owns:
        raise PermissionDenied("Only owners of the team may do this.")
    return membership

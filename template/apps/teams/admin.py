from django.contrib import admin
from django.db.models import Count, QuerySet
from django.http import HttpRequest

from .models import Invitation, Membership, Team


class MembershipInline(admin.TabularInline):
    """The members of a team, on the team's page."""

    model = Membership
    raw_id_fields = ["user"]
    extra = 0


@admin.register(Team)
class TeamAdmin(admin.ModelAdmin):
    """Teams with their members."""

    inlines = [MembershipInline]
    list_display = ["name", "seats", "created_at"]
    search_fields = ["name", "members__email"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Team]:
        """Count the seats of all teams at once."""
        return super().get_queryset(request).annotate(taken=Count("memberships", distinct=True))

    @admin.display(ordering="taken")
    def seats(self, team: Team) -> int:
        """Return how many seats are taken."""
        return team.taken


@admin.register(Invitation)
class InvitationAdmin(admin.ModelAdmin):
    """Invitations that are waiting for an answer."""

    list_display = ["email", "team", "role", "sent_at"]
    raw_id_fields = ["team", "invited_by"]
    search_fields = ["email", "team__name"]

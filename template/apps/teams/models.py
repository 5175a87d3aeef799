"""Teams, and who is in them."""

from datetime import timedelta

from django.conf import settings
from django.core import signing
from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.utils import timezone

INVITATION_LIFETIME = timedelta(days=7)
INVITATION_SALT = "apps.teams.invitation"


class Role(models.TextChoices):
    """What a member may do. Owners pay and give roles; admins invite and remove members; members take part."""

    OWNER = "owner", "Owner"
    ADMIN = "admin", "Admin"
    MEMBER = "member", "Member"


class Team(models.Model):
    """People who work together, and share a subscription."""

    name = models.CharField(max_length=80)
    members = models.ManyToManyField(settings.AUTH_USER_MODEL, through="Membership", related_name="teams")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["name", "pk"]

    def __str__(self) -> str:
        return self.name

    @property
    def seats(self) -> int:
        """How many people are in the team now. Invitations take no seat until they are accepted."""
        return self.memberships.count()


class Membership(models.Model):
    """The seat of one person in one team."""

    team = models.ForeignKey(Team, models.CASCADE, related_name="memberships")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=10, choices=Role, default=Role.MEMBER)
    joined_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["joined_at", "pk"]
        constraints = [models.UniqueConstraint(fields=["team", "user"], name="teams_one_seat_per_person")]

    def __str__(self) -> str:
        return f"{self.user} in {self.team}"

    @property
    def manages(self) -> bool:
        """Whether this member may invite and remove others."""
        return self.role in (Role.OWNER, Role.ADMIN)

    @property
    def owns(self) -> bool:
        """Whether this member may give roles, and pay."""
        return self.role == Role.OWNER

    def may_remove(self, other: "Membership") -> bool:
        """Return whether this member may end the other membership: one's own; as an admin, any but an owner's."""
        return self == other or self.owns or (self.manages and not other.owns)


class Invitation(models.Model):
    """An invitation that waits for its answer; it is deleted when it is accepted or withdrawn."""

    team = models.ForeignKey(Team, models.CASCADE, related_name="invitations")
    email = models.EmailField()
    role = models.CharField(max_length=10, choices=Role, default=Role.MEMBER)
    invited_by = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+")
    sent_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering = ["email"]
        constraints = [models.UniqueConstraint(fields=["team", "email"], name="teams_one_invitation_per_address")]

    def __str__(self) -> str:
        return f"{self.email} to {self.team}"

    @property
    def token(self) -> str:
        """What the link in the e-mail holds: who has it has received the e-mail."""
        return signing.dumps(self.pk, salt=INVITATION_SALT)


def invitation_of(token: str) -> Invitation | None:
    """Return the invitation that the token is for; None if it is forged, too old, accepted or withdrawn."""
    try:
        pk = signing.loads(token, salt=INVITATION_SALT, max_age=INVITATION_LIFETIME)
    except signing.BadSignature:
        return None
    return Invitation.objects.filter(pk=pk).select_related("team", "invited_by").first()


@transaction.atomic
def create_team(name: str, owner) -> Team:
    """Make a team with its first member, and return it."""
    team = Team.objects.create(name=name)
    Membership.objects.create(team=team, user=owner, role=Role.OWNER)
    return team


@transaction.atomic
def accept(invitation: Invitation, user) -> None:
    """Give the user the seat of the invitation, which ends with it. A second click changes nothing."""
    accepted, _ = Invitation.objects.filter(pk=invitation.pk).delete()
    if accepted:
        Membership.objects.get_or_create(team=invitation.team, user=user, defaults={"role": invitation.role})


@transaction.atomic
def remove(membership: Membership) -> None:
    """Take the seat away; raise ValidationError for the last owner."""
    _keep_an_owner(membership)
    membership.delete()


@transaction.atomic
def change_role(membership: Membership, role: Role) -> None:
    """Give the member another role; raise ValidationError for the last owner."""
    if role != Role.OWNER:
        _keep_an_owner(membership)
    membership.role = role
    membership.save(update_fields=["role"])


def _keep_an_owner(leaving: Membership) -> None:
    # Two owners who leave at the same moment wait for each other here, and the second one stays.
    team = Team.objects.select_for_update().get(pk=leaving.team_id)
    if not team.memberships.filter(role=Role.OWNER).exclude(pk=leaving.pk).exists():
        raise ValidationError("A team needs an owner. Make somebody else one first.")

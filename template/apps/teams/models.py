"""Teams and their members."""

from datetime import timedelta

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core import signing
from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.db.models import F, QuerySet
from django.db.models.signals import post_delete
from django.dispatch import receiver
from django.utils import timezone

from apps.web.allowance import HourlyAllowance

INVITATION_LIFETIME = timedelta(days=7)
INVITATION_SALT = "apps.teams.invitation"
# Limits invitations, so that nobody can use a team to send mass e-mail.
INVITATIONS_PER_HOUR = 20
# How many teams a person may own.
TEAMS_PER_OWNER = 20


class Role(models.TextChoices):
    """What a member may do. Owners pay and assign roles; admins invite and remove members; members take part."""

    OWNER = "owner", "Owner"
    ADMIN = "admin", "Admin"
    MEMBER = "member", "Member"


MANAGERS = (Role.OWNER, Role.ADMIN)


class Team(models.Model):
    """People who work together and share a subscription."""

    name = models.CharField(max_length=80)
    members = models.ManyToManyField(settings.AUTH_USER_MODEL, through="Membership", related_name="teams")
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    # The id of the team at Stripe, from its first checkout on.
    customer_id = models.CharField(max_length=255, blank=True, editable=False)

    class Meta:
        ordering = ["name", "pk"]

    def __str__(self) -> str:
        return self.name

    @property
    def seats(self) -> int:
        """How many people are in the team now. An invitation takes no seat until it is accepted."""
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
        return self.role in MANAGERS

    @property
    def owns(self) -> bool:
        """Whether this member may assign roles and pay."""
        return self.role == Role.OWNER

    def may_remove(self, other: "Membership") -> bool:
        """Return whether this member may end the other membership: their own or, for admins, any but an owner's."""
        return self == other or self.owns or (self.manages and not other.owns)


class Invitation(models.Model):
    """An invitation that is waiting for an answer. It is deleted when it is accepted or withdrawn."""

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
        """The secret part of the link in the e-mail. Whoever has it has received the e-mail."""
        return signing.dumps(self.pk, salt=INVITATION_SALT)


class Allowance(HourlyAllowance):
    """How many invitations a person has sent in the current hour, to any team. Withdrawing them gains nothing."""

    counted = "invitations"

    user = models.OneToOneField(settings.AUTH_USER_MODEL, models.CASCADE, primary_key=True, related_name="+")
    invitations = models.PositiveIntegerField(default=0)


def use_allowance(user) -> None:
    """Count an invitation of this hour. Raise ValidationError if the user has reached the limit."""
    if not Allowance.use(user.pk, INVITATIONS_PER_HOUR):
        raise ValidationError(f"You have invited {INVITATIONS_PER_HOUR} times within an hour. Try again later.")


def open_invitations() -> QuerySet[Invitation]:
    """Return the invitations that can be accepted: they are recent enough, and the sender still manages the team."""
    return Invitation.objects.filter(
        sent_at__gt=timezone.now() - INVITATION_LIFETIME,
        team__memberships__user=F("invited_by"),
        team__memberships__role__in=MANAGERS,
    )


def invitation_of(token: str) -> Invitation | None:
    """Return the invitation of the token, or None if it is forged, accepted, withdrawn or no longer open."""
    try:
        pk = signing.loads(token, salt=INVITATION_SALT, max_age=INVITATION_LIFETIME)
    except signing.BadSignature:
        return None
    return open_invitations().filter(pk=pk).select_related("team", "invited_by").first()


@transaction.atomic
def create_team(name: str, owner) -> Team:
    """Create a team with its first member, and return it. Raise ValidationError if the owner has too many."""
    # Requests at the same time wait for each other here.
    get_user_model().objects.select_for_update(no_key=True).get(pk=owner.pk)
    if owner.memberships.filter(role=Role.OWNER).count() >= TEAMS_PER_OWNER:
        raise ValidationError(f"You own {TEAMS_PER_OWNER} teams, and cannot make more.")
    team = Team.objects.create(name=name)
    Membership.objects.create(team=team, user=owner, role=Role.OWNER)
    return team


@transaction.atomic
def accept(invitation: Invitation, user) -> None:
    """Give the user the seat of the invitation, and delete the invitation. A second click changes nothing."""
    accepted, _ = Invitation.objects.filter(pk=invitation.pk).delete()
    if accepted:
        Membership.objects.get_or_create(team=invitation.team, user=user, defaults={"role": invitation.role})


@transaction.atomic
def remove(membership: Membership) -> None:
    """Take the seat away. Raise ValidationError for the last owner."""
    _keep_an_owner(membership)
    membership.delete()


@transaction.atomic
def change_role(membership: Membership, role: Role) -> None:
    """Give the member another role, if still in the team. Raise ValidationError for the last owner."""
    if role != Role.OWNER:
        _keep_an_owner(membership)
    Membership.objects.filter(pk=membership.pk).update(role=role)


def _keep_an_owner(leaving: Membership) -> None:
    if _owners(leaving.team_id) == [leaving.pk]:
        raise ValidationError("A team needs an owner. Make somebody else one first.")


@receiver(post_delete, sender=Membership)
def replace_owner(instance: Membership, **kwargs: object) -> None:
    """Give a team whose last owner was deleted a new one: the oldest of its admins, or else of its members."""
    if not _owners(instance.team_id):
        # "admin" sorts before "member".
        oldest = Membership.objects.filter(team=instance.team_id).order_by("role", "joined_at", "pk")[:1]
        Membership.objects.filter(pk__in=oldest.values("pk")).update(role=Role.OWNER)


def _owners(team_id: int) -> list[int]:
    """Return the keys of the owners' memberships."""
    # Two owners who leave at the same moment wait for each other here, and the second one stays.
    Team.objects.select_for_update(no_key=True).filter(pk=team_id).first()
    return list(Membership.objects.filter(team=team_id, role=Role.OWNER).values_list("pk", flat=True))

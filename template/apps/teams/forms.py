import re

from django import forms
from django.utils import timezone

from .models import Invitation, Membership, Role, Team


class TeamForm(forms.ModelForm):
    """The name of a team."""

    class Meta:
        model = Team
        fields = ["name"]
        labels = {"name": "Name of the team"}

    def clean_name(self) -> str:
        """Return the name on one line. Refuse links, because invitations carry the name to strangers."""
        name = " ".join(self.cleaned_data["name"].split())
        if re.search(r"://|\bwww\.|\w\.\w{2,}/", name, re.IGNORECASE):
            raise forms.ValidationError("The name of a team contains no link.")
        return name


class RoleForm(forms.ModelForm):
    """The role of a member."""

    class Meta:
        model = Membership
        fields = ["role"]


class InvitationForm(forms.Form):
    """Whom to invite to a team, and in which role. Only owners can make other members owners, later."""

    email = forms.EmailField(label="E-mail address")
    role = forms.ChoiceField(choices=[(role.value, role.label) for role in (Role.MEMBER, Role.ADMIN)])

    def __init__(self, *args, team: Team, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.team = team

    def clean_email(self) -> str:
        """Refuse people who are already in the team. Return the address in lower case, as users have it."""
        email = self.cleaned_data["email"].lower()
        if self.team.members.filter(email=email).exists():
            raise forms.ValidationError(f"{email} is in the team already.")
        return email

    def save(self, invited_by) -> Invitation:
        """Return the invitation. A second one to the same address replaces the first."""
        invitation, _ = self.team.invitations.update_or_create(
            email=self.cleaned_data["email"],
            defaults={"role": self.cleaned_data["role"], "invited_by": invited_by, "sent_at": timezone.now()},
        )
        return invitation

from django.apps import AppConfig


class TeamsConfig(AppConfig):
    """Teams, their members and roles, and invitations by e-mail."""

    name = "apps.teams"
    verbose_name = "Teams"
    menu = [("Teams", "teams:list")]

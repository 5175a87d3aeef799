from django.apps import AppConfig


class UsersConfig(AppConfig):
    """People who sign in with their e-mail address."""

    name = "apps.users"
    verbose_name = "Users"

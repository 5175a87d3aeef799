"""What each Celery command does first: it loads the settings, and then the apps."""

import django
from django.apps import apps as django_apps
from django.conf import settings

from apps.web.environment import problems_told


def tell_problems(**kwargs: object) -> None:
    """Load the settings. If they are wrong, the command exits with a sentence."""
    with problems_told():
        settings.INSTALLED_APPS  # noqa: B018


def load_django(**kwargs: object) -> None:
    """Load the apps for the commands that otherwise use the result backend without them."""
    if not (django_apps.ready or django_apps.loading):
        django.setup()

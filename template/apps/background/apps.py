from django.apps import AppConfig


class BackgroundConfig(AppConfig):
    """Background tasks with Django's task framework: how they are declared, and what is recorded of them."""

    name = "apps.background"
    verbose_name = "Background tasks"

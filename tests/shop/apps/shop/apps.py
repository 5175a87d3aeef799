from django.apps import AppConfig


class ShopConfig(AppConfig):
    """An app of a user of the template, who has read `apps/background/README.md` and nothing about Celery."""

    name = "apps.shop"
    default_auto_field = "django.db.models.BigAutoField"

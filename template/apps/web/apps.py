from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules


class WebConfig(AppConfig):
    """The home page, the health checks, and what all pages share."""

    name = "apps.web"
    verbose_name = "Pages"

    def ready(self) -> None:
        """Let every app register its health checks."""
        autodiscover_modules("health")

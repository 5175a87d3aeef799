from importlib.util import find_spec

from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules


class WebConfig(AppConfig):
    """The home page, the health checks, and everything that all pages share."""

    name = "apps.web"
    verbose_name = "Pages"

    def ready(self) -> None:
        """Let every app register its health checks."""
        autodiscover_modules("health")

    def switched_on(self) -> list[str]:
        """Return what the home page lists: this app, and ASGI if its server is installed."""
        return [self.verbose_name, *(["ASGI"] if find_spec("uvicorn") else [])]

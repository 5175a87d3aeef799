import os
from importlib import import_module
from importlib.util import find_spec

from django.apps import AppConfig
from django.utils.autoreload import DJANGO_AUTORELOAD_ENV
from django.utils.module_loading import autodiscover_modules

from . import telemetry


class WebConfig(AppConfig):
    """The home page, the health checks, and everything that all pages share."""

    name = "apps.web"
    verbose_name = "Pages"

    def ready(self) -> None:
        """Register the checks, let every app register its health checks, and start the reports of errors and traces."""
        from . import checks, converters  # noqa: F401

        if DJANGO_AUTORELOAD_ENV in os.environ:
            # Under `runserver`, one thread imports the URLs while another one imports the template tags. Modules of
            # allauth import each other, so a thread could meet a half imported one, and the server would not start.
            import_module("allauth.account.utils")
        autodiscover_modules("health")
        telemetry.start()

    def switched_on(self) -> list[str]:
        """Return what the home page lists: this app, and ASGI if its server is installed."""
        return [self.verbose_name, *(["ASGI"] if find_spec("uvicorn") else [])]

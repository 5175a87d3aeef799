"""What the home page shows: how the project runs, what to do next, and the panels of other apps."""

import platform
from dataclasses import dataclass
from typing import Any

import django
from django.apps import AppConfig
from django.apps import apps as django_apps
from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.cache import caches
from django.core.handlers.asgi import ASGIRequest
from django.db import connection
from django.http import HttpRequest
from django.template.loader import render_to_string
from django.utils.safestring import SafeString

CACHES = {
    "DatabaseCache": "in the database",
    "DummyCache": "none",
    "FileBasedCache": "in files",
    "LocMemCache": "in this process",
}
EMAIL = {
    "console": "printed where the server runs",
    "dummy": "thrown away",
    "filebased": "written to files",
    "locmem": "kept in memory",
    "smtp": "sent by SMTP",
}


@dataclass(frozen=True)
class Fact:
    """One line of "how it runs"."""

    name: str
    value: str


def facts(request: HttpRequest) -> list[Fact]:
    """Return how the project runs. Only developers see this. Visitors learn nothing about internals."""
    return [
        Fact("Database", f"{connection.display_name} {'.'.join(map(str, connection.get_database_version()))}"),
        Fact("Cache", _cache()),
        Fact("E-mail", _email()),
        Fact("Server", "ASGI" if isinstance(request, ASGIRequest) else "WSGI"),
        Fact("Django", django.get_version()),
        Fact("Python", platform.python_version()),
    ]


def switched_on() -> list[str]:
    """Return what is switched on in the project's own apps, in the order of INSTALLED_APPS.

    An app is listed by its name, or by the names that the method `switched_on()` of its AppConfig returns.
    """
    configs = [config for config in django_apps.get_app_configs() if config.name.startswith("apps.")]
    # An app inside another one is a part of it.
    configs = [config for config in configs if config.name.count(".") == 1]
    return [name for config in configs for name in _names(config)]


def panels(request: HttpRequest) -> list[SafeString]:
    """Return the rendered panels of the apps that have one, in the order of INSTALLED_APPS.

    An app offers a panel with the attribute `home_panel` of its AppConfig, which is the name of a template. The context
    of the template comes from the AppConfig's method `home_panel_context(request)`, if it has one. None means that this
    visitor gets no panel.
    """
    configs = [config for config in django_apps.get_app_configs() if hasattr(config, "home_panel")]
    contexts = [(config.home_panel, _panel_context(config, request)) for config in configs]
    return [render_to_string(template, context, request) for template, context in contexts if context is not None]


def commands() -> dict[str, str]:
    """Return how to call this project's commands, by name: with uv if uv has locked the dependencies."""
    if (settings.BASE_DIR / "uv.lock").exists():
        return {"manage": "uv run manage.py", "test": "uv run pytest"}
    return {"manage": "python manage.py", "test": "python -m pytest"}


def superuser_exists() -> bool:
    """Return whether there is somebody who can open the whole admin."""
    return get_user_model().objects.filter(is_superuser=True, is_active=True).exists()


def _names(config: AppConfig) -> list[str]:
    return config.switched_on() if hasattr(config, "switched_on") else [config.verbose_name]


def _panel_context(config: AppConfig, request: HttpRequest) -> dict[str, Any] | None:
    return config.home_panel_context(request) if hasattr(config, "home_panel_context") else {}


def _cache() -> str:
    name = type(caches["default"]).__name__
    return CACHES.get(name, name.removesuffix("Cache"))


def _email() -> str:
    name = settings.EMAIL_BACKEND.split(".")[-2]
    return EMAIL.get(name, name)

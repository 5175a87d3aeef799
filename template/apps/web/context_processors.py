from dataclasses import dataclass

from django.apps import apps as django_apps
from django.conf import settings
from django.http import HttpRequest
from django.urls import reverse


@dataclass(frozen=True)
class MenuEntry:
    """One link in the header of every page."""

    title: str
    url: str
    is_current: bool


def project(request: HttpRequest) -> dict[str, str]:
    """Give every template the name of the project, as PROJECT_NAME."""
    return {"PROJECT_NAME": settings.PROJECT_NAME}


def menu(request: HttpRequest) -> dict[str, list[MenuEntry]]:
    """Give every template the menu that signed-in users see, as MENU.

    An app adds entries with the attribute `menu` of its AppConfig, which lists pairs of a title and the name of a URL.
    The entries are in the order of INSTALLED_APPS. An entry is the current one on its own page and on the pages below
    it.
    """
    pairs = [pair for config in django_apps.get_app_configs() for pair in getattr(config, "menu", [])]
    urls = [(title, reverse(url_name)) for title, url_name in pairs]
    return {"MENU": [MenuEntry(title, url, request.path.startswith(url)) for title, url in urls]}

"""The home page welcomes visitors, and tells developers how the project runs."""

import re
from types import SimpleNamespace

import pytest
from django.urls import reverse
from django.utils.html import escape

from apps.users.models import User
from apps.web import home


@pytest.fixture
def page(client, db):
    return lambda: client.get(reverse("web:home")).content.decode()


@pytest.fixture
def offer_panel(monkeypatch):
    """Return a function that makes a fake app the only one, with a panel that is the page of the error 404."""

    def offer(**attributes):
        config = SimpleNamespace(name="apps.fake", verbose_name="Fake", home_panel="404.html", **attributes)
        monkeypatch.setattr(home, "django_apps", SimpleNamespace(get_app_configs=lambda: [config]))

    return offer


def test_the_name_of_the_project_is_on_it(page, settings):
    settings.PROJECT_NAME = "Ada's <Shop>"
    assert escape("Ada's <Shop>") in page()


def test_visitors_in_production_learn_nothing_about_the_insides(page):
    assert "How it runs" not in page() and "Next steps" not in page()


def test_staff_see_how_it_runs(client, page):
    client.force_login(User.objects.create_user("staff@example.com", is_staff=True))
    assert "How it runs" in page() and "Next steps" not in page()


def test_in_development_it_guides_the_newcomer(page, settings):
    settings.DEBUG = True
    assert "How it runs" in page() and "createsuperuser" in page()


def test_what_is_switched_on_is_listed(page, settings):
    settings.DEBUG = True
    listed = page().partition('<ul class="tags"')[2].partition("</ul>")[0]
    assert re.findall("<li>(.*?)</li>", listed) == home.switched_on()
    assert {"Pages", "Users"} <= set(home.switched_on())


@pytest.mark.parametrize("server", [object(), None])
def test_asgi_is_listed_where_its_server_is_installed(monkeypatch, server):
    monkeypatch.setattr("apps.web.apps.find_spec", lambda name: server)
    assert ("ASGI" in home.switched_on()) == bool(server)


def test_the_first_step_is_done_once_there_is_a_superuser(page, settings):
    settings.DEBUG = True
    assert "step-done" not in page()
    User.objects.create_superuser("boss@example.com")
    assert "step-done" in page()


@pytest.mark.parametrize(("lock", "command"), [(True, "uv run manage.py"), (False, "python manage.py")])
def test_commands_are_called_the_way_the_project_was_installed(settings, tmp_path, lock, command):
    settings.BASE_DIR = tmp_path
    if lock:
        (tmp_path / "uv.lock").touch()
    assert home.commands()["manage"] == command


def test_an_app_shows_its_panel(page, offer_panel):
    offer_panel()
    assert "There is no such page" in page()


def test_an_app_may_hide_its_panel_from_a_visitor(page, offer_panel):
    offer_panel(home_panel_context=lambda request: None)
    assert "There is no such page" not in page()

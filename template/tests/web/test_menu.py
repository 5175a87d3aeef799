"""Apps put entries into the header of every page, for those who are signed in."""

from types import SimpleNamespace

import pytest
from django.urls import reverse

from apps.users.models import User
from apps.web import context_processors


@pytest.fixture
def offer(monkeypatch):
    """Return a function that makes fake apps the only ones, each with these menu entries, or with none."""

    def make(*menus):
        configs = [SimpleNamespace(menu=menu) if menu else SimpleNamespace() for menu in menus]
        monkeypatch.setattr(context_processors, "django_apps", SimpleNamespace(get_app_configs=lambda: configs))

    return make


@pytest.fixture
def menu(offer, rf):
    """Return a function that makes the menu of a page out of those of the apps."""

    def make(page, *menus):
        offer(*menus)
        return context_processors.menu(rf.get(page))["MENU"]

    return make


def test_the_entries_stand_in_the_order_of_the_apps(menu):
    entries = menu("/", [("B", "account_login"), ("A", "account_email")], None, [("C", "account_signup")])
    assert [entry.title for entry in entries] == ["B", "A", "C"]
    assert entries[0].url == reverse("account_login")


def test_the_entry_of_the_page_and_of_those_below_it_is_the_current_one(menu):
    offered = [("Mail", "account_email"), ("Sign in", "account_login")]
    assert [entry.is_current for entry in menu(reverse("account_email"), offered)] == [True, False]
    assert [entry.is_current for entry in menu(f"{reverse('account_email')}one/", offered)] == [True, False]


def test_only_users_see_it(client, db, offer):
    offer([("Everything else", "account_reset_password")])
    assert "Everything else" not in client.get(reverse("web:home")).content.decode()
    client.force_login(User.objects.create_user("jane@example.com"))
    assert "Everything else" in client.get(reverse("web:home")).content.decode()


def test_the_current_page_is_marked_for_screen_readers(client, db, offer):
    offer([("Addresses", "account_email")])
    client.force_login(User.objects.create_user("jane@example.com"))
    assert 'aria-current="page">Addresses</a>' in client.get(reverse("account_email")).content.decode()

"""What all pages have in common."""

from html.parser import HTMLParser

import pytest
from django.test import Client
from django.urls import reverse
from django.views import defaults

from apps.users.models import User

OPEN_PAGES = ["web:home", "account_login", "account_signup", "account_reset_password"]
OWN_PAGES = [
    "web:home",
    "account_email",
    "account_change_password",
    "account_logout",
    "admin:index",
    "admin:users_user_add",
]


class InlineCode(HTMLParser):
    """Collects what a content security policy without 'unsafe-inline' blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = dict(attrs)
        is_script = tag == "script" and "src" not in names and names.get("type") != "application/json"
        if is_script or tag == "style" or any(name == "style" or name.startswith("on") for name in names):
            self.found.append(self.get_starttag_text())


def inline_code(response) -> list[str]:
    parser = InlineCode()
    parser.feed(response.content.decode())
    return parser.found


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("page", OPEN_PAGES)
def test_the_pages_for_visitors_need_no_inline_code(client, db, settings, page, debug):
    settings.DEBUG = debug
    assert not inline_code(client.get(reverse(page)))


@pytest.mark.parametrize("page", OWN_PAGES)
def test_the_pages_for_users_need_no_inline_code(client, db, page):
    client.force_login(User.objects.create_superuser("boss@example.com", "correct horse"))
    response = client.get(reverse(page))
    assert response.status_code == 200
    assert not inline_code(response)


def test_pages_forbid_inline_code_frames_and_forms_that_lead_elsewhere(client, db):
    policy = client.get(reverse("web:home")).headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy and "unsafe-inline" not in policy
    for words in ("base-uri 'none'", "form-action 'self'", "frame-ancestors 'none'"):
        assert words in policy


@pytest.mark.parametrize("page", ["web:home", "account_email", "account_change_password", "admin:index"])
def test_no_cache_keeps_the_pages_of_a_user(client, db, page):
    client.force_login(User.objects.create_superuser("boss@example.com", "correct horse"))
    assert "no-store" in client.get(reverse(page)).headers["Cache-Control"]


def test_a_page_that_is_not_there_says_so(client, db):
    client.force_login(User.objects.create_user("jane@example.com"))
    response = client.get("/nowhere/")
    assert response.status_code == 404
    assert "There is no such page" in response.content.decode()


def test_a_failure_is_told_without_asking_the_database(rf):
    response = defaults.server_error(rf.get("/"))
    assert (response.status_code, b"Something went wrong" in response.content) == (500, True)


def test_a_form_without_its_token_is_refused_with_advice(db):
    response = Client(enforce_csrf_checks=True).post(reverse("account_login"))
    assert response.status_code == 403
    assert "load the page again" in response.content.decode()


@pytest.mark.parametrize("asked_by_htmx", [True, False])
def test_the_login_page_does_not_land_in_the_middle_of_another(client, db, asked_by_htmx):
    response = client.get(reverse("account_email"), headers={"HX-Request": "true"} if asked_by_htmx else None)
    assert (response.status_code, "HX-Refresh" in response) == ((200, True) if asked_by_htmx else (302, False))

"""Signing up, in and out, by e-mail address."""

import re

import pytest
from django.contrib.auth import get_user
from django.core.cache import cache
from django.urls import reverse

from apps.users.models import User

PASSWORD = "a2B-c3D-e4F"


@pytest.fixture(autouse=True)
def no_rate_limits_from_other_tests():
    cache.clear()


@pytest.fixture
def jane(db):
    return User.objects.create_user("jane@example.com", PASSWORD)


@pytest.mark.parametrize("page", ["account_login", "account_signup", "account_reset_password"])
def test_the_way_in_is_open_to_visitors(client, db, page):
    assert client.get(reverse(page)).status_code == 200


@pytest.mark.parametrize("page", ["account_email", "account_change_password"])
def test_the_account_is_closed_to_visitors(client, page):
    assert client.get(reverse(page)).url.startswith(reverse("account_login"))


@pytest.mark.parametrize("page", ["account_email", "account_change_password", "account_logout"])
def test_the_account_is_open_to_its_owner(client, jane, page):
    client.force_login(jane)
    assert client.get(reverse(page)).status_code == 200


def test_a_visitor_signs_up_with_address_and_password(client, db):
    client.post(reverse("account_signup"), {"email": "New@example.com", "password1": PASSWORD})
    assert User.objects.get().email == "new@example.com"


def test_a_weak_password_is_refused(client, db):
    client.post(reverse("account_signup"), {"email": "new@example.com", "password1": "password"})
    assert not User.objects.exists()


def test_a_user_signs_in_with_the_address_in_any_case(client, jane):
    client.post(reverse("account_login"), {"login": "JANE@example.com", "password": PASSWORD})
    assert get_user(client) == jane


def test_a_wrong_password_does_not_sign_in(client, jane):
    client.post(reverse("account_login"), {"login": "jane@example.com", "password": "wrong"})
    assert not get_user(client).is_authenticated


def test_a_lost_password_is_replaced_through_the_link_in_an_email(client, jane, mailoutbox):
    client.post(reverse("account_reset_password"), {"email": "jane@example.com"})
    link = re.search(r"https?://testserver(\S+)", mailoutbox[0].body)
    page = client.get(link[1], follow=True)
    client.post(page.redirect_chain[-1][0], {"password1": "n3w-P4ss-w0rd", "password2": "n3w-P4ss-w0rd"})
    jane.refresh_from_db()
    assert jane.check_password("n3w-P4ss-w0rd")


def test_who_changes_a_password_is_told_so_by_email(client, jane, mailoutbox):
    client.force_login(jane)
    passwords = {"oldpassword": PASSWORD, "password1": "n3w-P4ss-w0rd", "password2": "n3w-P4ss-w0rd"}
    client.post(reverse("account_change_password"), passwords)
    assert [mail.to for mail in mailoutbox] == [["jane@example.com"]]
    assert "password" in mailoutbox[0].subject.lower()


def test_signing_out_takes_a_click_on_a_button(client, jane):
    client.force_login(jane)
    client.get(reverse("account_logout"))
    assert get_user(client).is_authenticated
    client.post(reverse("account_logout"))
    assert not get_user(client).is_authenticated

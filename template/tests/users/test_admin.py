"""The admin knows users by e-mail address."""

import pytest
from django.contrib.auth import get_user
from django.core.cache import cache
from django.urls import reverse

from apps.users.models import User

PASSWORD = "correct horse"


@pytest.fixture(autouse=True)
def no_rate_limits_from_other_tests():
    cache.clear()


@pytest.fixture
def boss(db):
    return User.objects.create_superuser("boss@example.com", PASSWORD)


@pytest.fixture
def boss_client(client, boss):
    client.force_login(boss)
    return client


def sign_in(client, password):
    """Go where the admin sends visitors, and fill in what is asked for there."""
    login = client.get(reverse("admin:index"), follow=True).redirect_chain[-1][0]
    return client.post(login, {"login": "Boss@example.com", "username": "Boss@example.com", "password": password})


@pytest.mark.parametrize("verification", ["mandatory", "optional"])
def test_a_superuser_signs_in_to_the_admin_with_the_address(client, boss, settings, verification):
    settings.ACCOUNT_EMAIL_VERIFICATION = verification
    assert sign_in(client, PASSWORD).url == reverse("admin:index")
    assert get_user(client) == boss


def test_nobody_guesses_a_password_at_the_door_of_the_admin(client, boss):
    for guess in range(40):
        sign_in(client, f"guess {guess}")
        client.post(reverse("admin:login"), {"username": "boss@example.com", "password": f"guess {guess}"})
    sign_in(client, PASSWORD)
    client.post(reverse("admin:login"), {"username": "boss@example.com", "password": PASSWORD})
    assert not get_user(client).is_authenticated


def test_users_who_are_no_staff_are_told_that_the_admin_is_not_for_them(client, db):
    client.force_login(User.objects.create_user("jane@example.com", PASSWORD))
    assert client.get(reverse("admin:index"), follow=True).status_code == 403


@pytest.mark.parametrize("page", ["changelist", "add"])
def test_the_pages_for_users_open(boss_client, page):
    assert boss_client.get(reverse(f"admin:users_user_{page}")).status_code == 200


def test_the_page_of_one_user_opens(boss_client, boss):
    assert boss_client.get(reverse("admin:users_user_change", args=[boss.pk])).status_code == 200


def test_a_user_is_found_by_a_part_of_the_address(boss_client):
    assert b"boss@example.com" in boss_client.get(reverse("admin:users_user_changelist"), {"q": "oss@exam"}).content


def test_a_user_is_added_with_address_and_password(boss_client):
    form = {
        "email": "new@example.com",
        "usable_password": "true",
        "password1": "a2B-c3D-e4F",
        "password2": "a2B-c3D-e4F",
    }
    boss_client.post(reverse("admin:users_user_add"), form)
    assert User.objects.get(email="new@example.com").check_password("a2B-c3D-e4F")


def test_an_address_in_another_case_is_refused_with_a_sentence(boss_client):
    form = {"email": "BOSS@example.com", "usable_password": "false"}
    response = boss_client.post(reverse("admin:users_user_add"), form)
    assert "A user with that email address already exists." in response.content.decode()

"""The admin knows users by e-mail address."""

import pytest
from django.contrib.auth import get_user
from django.urls import reverse

from apps.users.models import User

PASSWORD = "correct horse"


@pytest.fixture
def boss(db):
    return User.objects.create_superuser("boss@example.com", PASSWORD)


@pytest.fixture
def boss_client(client, boss):
    client.force_login(boss)
    return client


def test_staff_sign_in_to_the_admin_with_the_address(client, boss):
    client.post(reverse("admin:login"), {"username": "Boss@example.com", "password": PASSWORD})
    assert get_user(client) == boss


def test_visitors_are_sent_to_the_login_of_the_admin(client, db):
    response = client.get(reverse("admin:index"))
    assert response.url.startswith(reverse("admin:login"))


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

"""Users are known by their e-mail address, in whatever case it is typed."""

import asyncio

import pytest
from django.contrib.auth import authenticate
from django.core.management import call_command
from django.db import IntegrityError

from apps.users.models import User


def test_an_address_is_stored_in_lower_case(db):
    assert User.objects.create_user("Jane.Doe@Example.COM").email == "jane.doe@example.com"


def test_the_database_refuses_an_address_that_differs_only_in_case(db):
    User.objects.create_user("jane@example.com")
    # In bulk, because save() would write the address in lower case first.
    with pytest.raises(IntegrityError):
        User.objects.bulk_create([User(email="JANE@example.com")])


def test_a_user_signs_in_with_the_address_in_any_case(db):
    user = User.objects.create_user("jane@example.com", "correct horse")
    assert authenticate(username="Jane@Example.com", password="correct horse") == user


def test_a_user_without_password_cannot_sign_in(db):
    assert not User.objects.create_user("jane@example.com").has_usable_password()


def test_a_user_needs_an_address():
    with pytest.raises(ValueError, match="e-mail address"):
        User.objects.create_user("")


def test_createsuperuser_needs_an_address_and_a_password_only(db, monkeypatch):
    monkeypatch.setenv("DJANGO_SUPERUSER_PASSWORD", "correct horse")
    call_command("createsuperuser", "--noinput", "--email", "boss@example.com", verbosity=0)
    user = User.objects.get_by_natural_key("boss@example.com")
    assert user.is_superuser and user.is_staff and user.check_password("correct horse")
    assert not User.REQUIRED_FIELDS


@pytest.mark.django_db(transaction=True)
def test_users_are_made_and_found_from_asynchronous_code():
    async def make_and_find() -> User:
        await User.objects.acreate_superuser("Boss@example.com", "correct horse")
        return await User.objects.aget_by_natural_key("BOSS@example.com")

    assert asyncio.run(make_and_find()).is_superuser

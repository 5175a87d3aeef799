"""A team with an owner."""

import pytest

pytest.importorskip("stripe")

from apps.users.models import User


@pytest.fixture
def owner(db):
    return User.objects.create_user("owner@example.com")


@pytest.fixture
def team(owner):
    from apps.teams.models import create_team

    return create_team("Rockets", owner)

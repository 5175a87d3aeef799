"""A Stripe that listens, and a plan for the team of the other tests."""

import pytest

pytest.importorskip("stripe")

from tests.teams.conftest import owner as owner
from tests.teams.conftest import team as team

from .fake_stripe import FakeStripe


@pytest.fixture
def stripe(settings):
    """Configure billing, with a fake of Stripe behind the real SDK."""
    with FakeStripe() as fake:
        settings.STRIPE_API_URL = fake.url
        settings.STRIPE_SECRET_KEY = "sk_test_1"
        settings.STRIPE_WEBHOOK_SECRET = "whsec_1"
        yield fake


@pytest.fixture
def plan(db):
    from apps.subscriptions.models import Plan

    return Plan.objects.create(name="Orbit", price_id="price_1", amount=1200, currency="usd", interval="month")

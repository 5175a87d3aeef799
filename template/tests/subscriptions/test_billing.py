"""What Stripe says is what the project knows: no event is believed, and no old answer wins."""

from datetime import timedelta
from decimal import Decimal

import pytest

pytest.importorskip("stripe")

from django.utils import timezone

from apps.subscriptions import billing
from apps.subscriptions.models import Plan, Subscription

from .fake_stripe import FakeStripe


def test_a_subscription_is_written_down_as_stripe_has_it(stripe, team):
    row = billing.refetch(stripe.subscribe(team.pk, quantity=1, status="trialing"))
    assert (row.team, row.status, row.quantity, row.team.customer_id) == (team, "trialing", 1, "cus_1")
    assert row.is_active and row.current_period_end.year == 2030


def test_a_change_replaces_what_was_known(stripe, team):
    billing.refetch(stripe.subscribe(team.pk))
    row = billing.refetch(stripe.subscribe(team.pk, status="canceled"))
    assert not row.is_active and Subscription.objects.count() == 1


@pytest.mark.parametrize("ending", [{"cancel_at_period_end": True}, {"cancel_at": 1_900_000_000}])
def test_an_end_that_was_asked_for_is_known(stripe, team, ending):
    assert billing.refetch(stripe.subscribe(team.pk, **ending)).ends_at_period_end


@pytest.mark.parametrize("metadata", [{}, {"team": "999"}, {"team": "nobody"}])
def test_the_subscription_of_no_team_is_left_alone(stripe, team, metadata):
    assert billing.refetch(stripe.subscribe(team.pk, metadata=metadata)) is None
    assert not Subscription.objects.exists()


def test_a_team_that_comes_back_has_its_new_subscription(stripe, team):
    billing.refetch(stripe.subscribe(team.pk, status="canceled"))
    assert billing.refetch(stripe.subscribe(team.pk, number=2)).stripe_id == "sub_2"


def test_a_late_event_about_an_old_subscription_changes_nothing(stripe, team):
    billing.refetch(stripe.subscribe(team.pk, number=2))
    assert billing.refetch(stripe.subscribe(team.pk, number=1, status="canceled")).stripe_id == "sub_2"


@pytest.mark.parametrize(
    ("known", "new", "kept"),
    [
        ("active", "active", "sub_1"),
        ("active", "incomplete", "sub_1"),
        ("unpaid", "incomplete", "sub_1"),
        ("unpaid", "active", "sub_2"),
    ],
)
def test_of_two_subscriptions_the_active_one_counts_and_both_are_reported(stripe, team, caplog, known, new, kept):
    billing.refetch(stripe.subscribe(team.pk, number=1, status=known))
    billing.refetch(stripe.subscribe(team.pk, number=2, status=new))
    assert "two subscriptions: cancel sub_1 or sub_2" in caplog.text
    assert Subscription.objects.get().stripe_id == kept


@pytest.mark.parametrize("ended", ["sub_1", "sub_2"])
def test_of_two_subscriptions_the_one_that_is_left_counts(stripe, team, ended):
    for number in (1, 2):
        billing.refetch(stripe.subscribe(team.pk, number=number))
    stripe.subscribe(999, number=3)
    billing.refetch(stripe.subscribe(team.pk, number=int(ended[-1]), status="canceled"))
    row = Subscription.objects.get()
    assert row.is_active and row.stripe_id != ended


def test_a_team_that_comes_back_waits_for_its_first_payment(stripe, team):
    billing.refetch(stripe.subscribe(team.pk, status="canceled"))
    assert billing.refetch(stripe.subscribe(team.pk, number=2, status="incomplete")).stripe_id == "sub_2"


def test_what_stripe_said_before_the_team_was_locked_does_not_count(stripe, team, monkeypatch):
    def answer(self, call):
        said = FakeStripe.answer(self, call)
        self.subscribe(team.pk, status="active")
        return said

    monkeypatch.setattr(stripe, "answer", answer.__get__(stripe))
    assert billing.refetch(stripe.subscribe(team.pk, status="incomplete")).is_active


def test_of_several_items_the_one_of_a_plan_counts(stripe, team, plan):
    stripe_id = stripe.subscribe(team.pk)
    items = stripe.objects[f"/v1/subscriptions/{stripe_id}"]["items"]["data"]
    items.insert(0, {"id": "si_support", "quantity": 9, "price": {"id": "price_support"}})
    row = billing.refetch(stripe_id)
    assert (row.item_id, row.quantity) == ("si_1", 1)


@pytest.mark.parametrize(
    ("status", "days", "is_doubtful"),
    [("active", 1, False), ("active", -1, True), ("incomplete", 1, True), ("canceled", -1, False)],
)
def test_what_should_have_been_heard_of_is_doubtful(stripe, team, status, days, is_doubtful):
    billing.refetch(stripe.subscribe(team.pk, status=status))
    Subscription.objects.update(current_period_end=timezone.now() + timedelta(days=days))
    assert billing.doubtful().exists() == is_doubtful


@pytest.mark.parametrize(
    ("price", "shown"),
    [
        ({"unit_amount_decimal": "1200", "currency": "usd"}, "USD 12"),
        ({"unit_amount_decimal": "1250", "currency": "usd"}, "USD 12.50"),
        ({"unit_amount_decimal": "12.5", "currency": "eur"}, "EUR 0.125"),
        ({"unit_amount_decimal": "1500", "currency": "jpy"}, "JPY 1,500"),
        ({"unit_amount_decimal": "1500", "currency": "kwd"}, "KWD 1.500"),
        ({"tiers": [{"unit_amount_decimal": "900"}, {"unit_amount_decimal": "700"}], "currency": "usd"}, "USD 7"),
        ({"unit_amount_decimal": "0", "currency": "usd"}, "USD 0"),
        ({"tiers": [{"unit_amount_decimal": "0"}, {"unit_amount_decimal": "900"}], "currency": "usd"}, "USD 0"),
        ({"unit_amount_decimal": None, "currency": "usd"}, ""),
    ],
)
def test_the_price_of_a_plan_is_read_from_stripe(stripe, price, shown):
    stripe.objects["/v1/prices/price_1"] = {"object": "price", "recurring": {"interval": "month"}} | price
    plan = Plan(price_id="price_1")
    billing.read_price(plan)
    assert plan.price == shown and plan.interval == "month"


def test_a_failure_that_passes_is_tried_again_by_the_sdk(stripe):
    stripe.objects["/v1/prices/price_1"] = {"object": "price", "currency": "usd", "unit_amount_decimal": "100"}
    stripe.failures.extend([503, 503])
    plan = Plan(price_id="price_1")
    billing.read_price(plan)
    assert plan.amount == Decimal(100) and len(stripe.calls) == 3

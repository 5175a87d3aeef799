"""The quantity at Stripe follows the seats of the team."""

from io import StringIO

import pytest

pytest.importorskip("celery")
pytest.importorskip("stripe")

from django.conf import settings as project_settings
from django.core.management import CommandError, call_command
from django.db import transaction

from apps.background.immediate import AfterCommitBackend
from apps.subscriptions import billing, seats
from apps.subscriptions.models import Subscription
from apps.subscriptions.units import units_of
from apps.teams.models import Membership, create_team
from apps.users.models import User
from tests.environment import Table, assert_told, rows

NONSENSE: Table = {"STRIPE_PRORATION": [("sometimes", "but must be one of create_prorations, always_invoice, none")]}


@pytest.fixture
def sent(monkeypatch):
    """The ids of the teams for which a task was sent, once the transaction is committed."""
    ids = []
    monkeypatch.setattr("celery.Task.apply_async", lambda task, args, kwargs, **options: ids.append(args[0]))

    def enqueue(backend, task, args, kwargs):
        transaction.on_commit(lambda: ids.append(args[0]))

    monkeypatch.setattr(AfterCommitBackend, "enqueue", enqueue)
    return ids


@pytest.fixture
def subscribed(stripe, team, plan, sent):
    """A team with a subscription that is in step; the fake has forgotten how it came about."""
    billing.refetch(stripe.subscribe(team.pk))
    stripe.calls.clear()
    return team


def join(team, count=1):
    first = User.objects.count()
    users = [User.objects.create(email=f"{number}@example.com") for number in range(first, first + count)]
    return [Membership.objects.create(team=team, user=user) for user in users]


def sync_subscriptions(*arguments) -> str:
    out = StringIO()
    call_command("sync_subscriptions", *arguments, stdout=out, stderr=out)
    return out.getvalue()


def test_a_checkout_begins_with_the_seats_of_the_team(team):
    join(team, 2)
    assert units_of(team) == 3


def test_twenty_seats_are_one_call(subscribed, stripe, sent, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True), transaction.atomic():
        join(subscribed, 20)
    for team_id in sent:
        seats.sync_team.call(team_id)
    assert [call.form["quantity"] for call in stripe.calls] == ["21"]
    assert stripe.calls[0].form["proration_behavior"] == project_settings.STRIPE_PRORATION
    assert Subscription.objects.get().quantity == 21


def test_a_seat_that_is_left_is_told_as_well(subscribed, stripe, sent, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True):
        [membership] = join(subscribed)
        membership.delete()
    assert sent == [subscribed.pk] * 2
    assert not seats.sync(subscribed.pk) and stripe.calls == []


def test_a_new_role_is_no_new_seat(subscribed, sent, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True):
        subscribed.memberships.get().save()
    assert sent == []


def test_a_team_without_a_subscription_sends_nothing(team, sent, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True):
        join(team)
    assert sent == [] and not seats.sync(team.pk)


@pytest.mark.parametrize(
    ("status", "calls"),
    [
        ("trialing", 1),
        ("past_due", 1),
        ("canceled", 0),
        ("incomplete", 0),
        ("paused", 0),
        ("unpaid", 0),
    ],
)
def test_what_is_paid_or_tried_is_synced(stripe, team, plan, sent, status, calls):
    billing.refetch(stripe.subscribe(team.pk, status=status))
    stripe.calls.clear()
    join(team)
    seats.sync(team.pk)
    assert len(stripe.calls) == calls


def test_a_price_of_no_plan_is_left_alone(subscribed, stripe, plan):
    join(subscribed)
    plan.delete()
    assert not seats.sync(subscribed.pk) and not seats.out_of_step().exists()
    assert stripe.calls == []


def test_a_team_that_nobody_is_left_in_is_reported(subscribed, stripe, owner, caplog):
    owner.delete()
    assert not seats.sync(subscribed.pk) and stripe.calls == []
    assert "cancel sub_1" in caplog.text
    assert "nobody is left; cancel sub_1" in sync_subscriptions()


def test_who_joins_while_the_subscription_is_written_is_told(team, sent, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks(execute=True):
        join(team)
        Subscription.objects.bulk_create([Subscription(team=team, quantity=1)])
    assert sent == [team.pk]


def test_who_joined_before_the_payment_is_counted(stripe, team, sent, django_capture_on_commit_callbacks):
    join(team)
    with django_capture_on_commit_callbacks(execute=True):
        billing.refetch(stripe.subscribe(team.pk, quantity=1))
    assert sent == [team.pk]


@pytest.mark.parametrize("status", [429, 500])
def test_what_passes_by_itself_is_tried_again(subscribed, stripe, status):
    join(subscribed)
    stripe.failures.append(status)
    with pytest.raises(seats.TRANSIENT_ERRORS):
        seats.sync(subscribed.pk)
    assert Subscription.objects.get().quantity == 1
    assert seats.sync(subscribed.pk) and Subscription.objects.get().quantity == 2


def test_no_key_no_call(subscribed, stripe, settings):
    join(subscribed)
    settings.STRIPE_SECRET_KEY = ""
    seats.sync_team.call(subscribed.pk)
    assert stripe.calls == []


def test_the_schedule_finds_what_sent_no_task(subscribed, sent, owner, django_capture_on_commit_callbacks):
    create_team("Without a subscription", owner)
    Membership.objects.bulk_create([Membership(team=subscribed, user=User.objects.create(email="bulk@example.com"))])
    with django_capture_on_commit_callbacks(execute=True):
        seats.sync_all.call()
    assert sent == [subscribed.pk]


def test_the_schedule_asks_for_what_was_not_heard_of(subscribed, sent, django_capture_on_commit_callbacks):
    Subscription.objects.update(status="incomplete")
    with django_capture_on_commit_callbacks(execute=True):
        seats.sync_all.call()
    assert sent == ["sub_1"]


@pytest.fixture
def two_out_of_step(subscribed, stripe, owner):
    """Two teams whose subscriptions have another quantity than seats; the first one has no item at Stripe."""
    other = create_team("Zeppelins", owner)
    billing.refetch(stripe.subscribe(other.pk, number=2))
    join(subscribed)
    join(other)
    del stripe.objects["/v1/subscription_items/si_1"]
    stripe.calls.clear()
    return subscribed, other


def test_by_hand_one_error_does_not_stop_the_others(two_out_of_step):
    with pytest.raises(CommandError, match="1 of 2 failed"):
        sync_subscriptions()
    assert list(Subscription.objects.order_by("team_id").values_list("quantity", flat=True)) == [1, 2]


def test_by_hand_one_team_can_be_named(two_out_of_step):
    assert sync_subscriptions("--team", str(two_out_of_step[1].pk)).endswith("Zeppelins: 1 -> 2 seats\n")


def test_by_hand_a_team_without_a_subscription_is_an_error(stripe, db):
    with pytest.raises(CommandError, match="no team 999"):
        sync_subscriptions("--team", "999")


def test_by_hand_nothing_to_do_is_told(subscribed):
    assert "as many seats" in sync_subscriptions()


def test_a_dry_run_tells_stripe_nothing(two_out_of_step, stripe, settings):
    settings.STRIPE_SECRET_KEY = ""
    assert sync_subscriptions("--dry-run").count("1 -> 2 seats") == 2
    assert stripe.calls == []


def test_by_hand_without_a_key_is_an_error(db, settings):
    settings.STRIPE_SECRET_KEY = ""
    with pytest.raises(CommandError, match="STRIPE_SECRET_KEY"):
        sync_subscriptions()


# Settings -------------------------------------------------------------------


@pytest.mark.parametrize(("name", "value", "words"), rows(NONSENSE))
def test_a_variable_that_cannot_be_used_is_told_in_a_sentence(tmp_path, name, value, words):
    assert_told(tmp_path, name, value, words)

"""An event of Stripe is answered at once, and a worker asks back."""

import pytest

pytest.importorskip("celery")
pytest.importorskip("stripe")

from celery import current_app
from kombu.exceptions import OperationalError

from apps.subscriptions import tasks
from apps.subscriptions.models import Subscription


@pytest.mark.django_db(transaction=True)
def test_a_worker_refetches_the_subscription(stripe, team, monkeypatch):
    monkeypatch.setitem(current_app.conf, "task_always_eager", True)
    tasks.follow_up(stripe.subscribe(team.pk))
    assert Subscription.objects.get().team == team


@pytest.mark.django_db(transaction=True)
def test_while_the_broker_is_away_the_request_refetches(stripe, team, monkeypatch):
    def refuse(*args, **options):
        raise OperationalError("Connection refused")

    monkeypatch.setattr("celery.Task.apply_async", refuse)
    tasks.follow_up(stripe.subscribe(team.pk))
    assert Subscription.objects.get().team == team


def test_only_what_passes_by_itself_is_tried_again(stripe, team, monkeypatch):
    monkeypatch.setattr(tasks.refetch_subscription, "retry", lambda **options: options["exc"])
    stripe.failures.append(429)
    with pytest.raises(tasks.TRANSIENT_ERRORS):
        tasks.refetch_subscription(stripe.subscribe(team.pk))
    assert len(stripe.calls) == 1

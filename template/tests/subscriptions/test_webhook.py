"""The webhook believes signatures only, and turns events into questions."""

import json
import time

import pytest

pytest.importorskip("stripe")

from django.urls import reverse
from stripe import WebhookSignature

from apps.subscriptions import webhook

SUBSCRIPTION = {"object": "subscription", "id": "sub_1"}
CHECKOUT = {"object": "checkout.session", "id": "cs_1", "subscription": "sub_1"}


@pytest.fixture(autouse=True)
def secret(settings):
    settings.STRIPE_WEBHOOK_SECRET = "whsec_1"


@pytest.fixture
def refetched(monkeypatch):
    """The ids of the subscriptions that are refetched."""
    ids = []
    monkeypatch.setattr(webhook, "follow_up", ids.append)
    return ids


@pytest.fixture
def post(client):
    """Return a function that posts an event about something, signed some seconds ago."""

    def post(subject, secret="whsec_1", age_seconds=0, **headers):
        body = json.dumps({"object": "event", "id": "evt_1", "type": "test", "data": {"object": subject}})
        signed_at = int(time.time()) - age_seconds
        headers = {"Stripe-Signature": WebhookSignature.generate_signature_header(body, secret, signed_at)} | headers
        return client.post(reverse("subscriptions:webhook"), body, content_type="application/json", headers=headers)

    return post


@pytest.mark.parametrize("subject", [SUBSCRIPTION, CHECKOUT])
def test_an_event_about_a_subscription_leads_to_a_refetch(post, refetched, subject):
    assert post(subject).status_code == 200
    assert refetched == ["sub_1"]


@pytest.mark.parametrize("subject", [{"object": "invoice"}, {**CHECKOUT, "subscription": None}, {"id": "x_1"}])
def test_other_events_are_taken_and_forgotten(post, refetched, subject):
    assert post(subject).status_code == 200
    assert refetched == []


@pytest.mark.parametrize("data", ["[]", "1", '"a"', "null", '{"data": []}', '{"data": {"object": 1}}', "{", "\xff"])
def test_what_is_signed_but_no_event_is_refused_without_a_failure(client, refetched, data):
    signed = WebhookSignature.generate_signature_header(data, "whsec_1", int(time.time()))
    answer = client.post(
        reverse("subscriptions:webhook"), data, content_type="application/json", headers={"Stripe-Signature": signed}
    )
    assert (answer.status_code, refetched) == (400, [])


@pytest.mark.parametrize(
    "forged",
    [
        {"secret": "whsec_2"},
        {"age_seconds": 600},
        {"Stripe-Signature": "v1=1"},
        {"Stripe-Signature": "t=1,v1=\xff"},
        {"Stripe-Signature": f"t={int(time.time())},v1=\xff"},
    ],
)
def test_a_bad_or_old_signature_is_refused(post, refetched, forged):
    assert post(SUBSCRIPTION, **forged).status_code == 400
    assert refetched == []


def test_without_a_secret_everything_is_refused(post, refetched, settings):
    settings.STRIPE_WEBHOOK_SECRET = ""
    assert post(SUBSCRIPTION, secret="").status_code == 400
    assert refetched == []


def test_what_is_no_event_is_refused(client):
    body = b"\xff"
    response = client.post(reverse("subscriptions:webhook"), body, content_type="text/plain")
    assert response.status_code == 400


def test_only_posts_are_taken(client):
    assert client.get(reverse("subscriptions:webhook")).status_code == 405

"""Anybody sees the plans, members see what the team pays for, and owners pay."""

import pytest

pytest.importorskip("stripe")

from django.test import Client
from django.urls import reverse

from apps.subscriptions import billing
from apps.subscriptions.models import Plan, Subscription
from apps.subscriptions.units import UNIT
from apps.teams.models import Membership, Role, Team, create_team
from apps.users.models import User

UNCONFIGURED = "Billing is not configured"


@pytest.fixture
def page(team):
    return reverse("subscriptions:team", args=[team.pk])


@pytest.fixture
def as_owner(client, owner):
    client.force_login(owner)
    return client


@pytest.fixture
def subscribe(as_owner, team, plan):
    return lambda: as_owner.post(reverse("subscriptions:checkout", args=[team.pk, plan.pk]))


def text(response) -> str:
    return " ".join(response.content.decode().split())


def test_visitors_see_the_plans_and_their_prices(client, stripe, plan):
    Plan.objects.create(name="Hidden", price_id="price_2", is_public=False)
    shown = text(client.get(reverse("subscriptions:pricing")))
    assert "Orbit" in shown and "<strong>USD 12</strong>" in shown and "Hidden" not in shown
    assert ('from <strong>USD 12</strong> <span class="plan-interval"> per seat / month' in shown) == bool(UNIT)


@pytest.mark.parametrize("names", [[], ["Orbit"]])
def test_without_keys_the_pages_say_so(as_owner, page, settings, names):
    settings.STRIPE_SECRET_KEY = ""
    for name in names:
        Plan.objects.create(name=name, price_id=name)
    for url in (reverse("subscriptions:pricing"), page, reverse("web:home")):
        response = as_owner.get(url)
        assert response.status_code == 200
    assert UNCONFIGURED in text(as_owner.get(page)) and "Subscribe</button>" not in text(as_owner.get(page))


def test_without_keys_nothing_crashes(subscribe, settings, as_owner, page):
    settings.STRIPE_SECRET_KEY = ""
    assert subscribe().url == page
    assert as_owner.get(f"{page}done/").url == page
    assert UNCONFIGURED in text(as_owner.get(page))


def test_an_owner_is_sent_to_the_checkout_of_the_plan(subscribe, stripe, team):
    assert subscribe().url == "https://stripe.example/page"
    assert stripe.calls[0].form == {"email": "owner@example.com", "name": "Rockets"}
    form = stripe.calls[-1].form
    assert form["line_items[0][price]"] == "price_1" and form["customer"] == "cus_1"
    assert form["client_reference_id"] == form["subscription_data[metadata][team]"] == str(team.pk)
    assert form["success_url"].endswith("/subscription/done/?session={CHECKOUT_SESSION_ID}")


def test_a_team_that_comes_back_is_the_same_customer(subscribe, stripe, team):
    billing.refetch(stripe.subscribe(team.pk, status="canceled"))
    subscribe()
    assert stripe.calls[-1].form["customer"] == "cus_1"


@pytest.mark.parametrize("status", ["active", "incomplete", "past_due", "paused", "trialing", "unpaid"])
def test_nobody_subscribes_before_the_last_subscription_has_ended(as_owner, subscribe, stripe, team, page, status):
    billing.refetch(stripe.subscribe(team.pk, status=status))
    stripe.calls.clear()
    assert "Subscribe</button>" not in text(as_owner.get(page))
    assert subscribe().url == page and not stripe.calls


@pytest.mark.parametrize(("status", "is_told"), [("active", False), ("unpaid", True), ("canceled", False)])
def test_what_can_still_be_paid_is_told(as_owner, stripe, team, page, status, is_told):
    billing.refetch(stripe.subscribe(team.pk, status=status))
    assert ("It is neither paid nor ended" in text(as_owner.get(page))) == is_told


def test_of_two_checkouts_only_the_later_one_can_be_paid(subscribe, stripe):
    subscribe()
    [first] = stripe.open_sessions
    subscribe()
    [second] = stripe.open_sessions
    assert first != second and [call.path for call in stripe.calls].count("/v1/customers") == 1


@pytest.mark.parametrize(
    ("status", "sentence"), [(500, "try again later"), (429, "try again later"), (400, "the log of the server says")]
)
def test_a_stripe_that_fails_is_told_on_the_page(subscribe, stripe, as_owner, page, status, sentence):
    stripe.failures.append(status)
    assert subscribe().url == page
    shown = text(as_owner.get(page))
    assert "Nothing was changed" in shown and sentence in shown


def test_a_customer_that_stripe_does_not_know_gets_a_new_one(subscribe, stripe, team):
    subscribe()
    stripe.unknown_customers.add("cus_1")
    assert subscribe().url == "https://stripe.example/page"
    assert stripe.calls[-1].form["customer"] == Team.objects.get(pk=team.pk).customer_id == "cus_2"


def test_after_a_customer_was_deleted_the_team_can_choose_a_plan_again(as_owner, stripe, team, plan, page):
    billing.refetch(stripe.subscribe(team.pk))
    stripe.unknown_customers.add("cus_1")
    stripe.subscribe(team.pk, status="canceled")
    assert as_owner.post(f"{page}portal/").url == page
    shown = text(as_owner.get(page))
    assert "Choose a plan to begin again" in shown and "Subscribe</button>" in shown


LIVE = "sk_live_1"


@pytest.mark.parametrize(("key", "is_live", "counts"), [(LIVE, False, False), (LIVE, True, True), ("", True, True)])
def test_a_subscription_counts_in_its_own_mode(as_owner, stripe, team, plan, page, settings, key, is_live, counts):
    billing.refetch(stripe.subscribe(team.pk, livemode=is_live))
    settings.STRIPE_SECRET_KEY = key
    assert Team.objects.get().subscription.is_active == Subscription.objects.exists() == counts
    assert ("<dt>Status</dt>" in text(as_owner.get(page))) == counts


def test_from_test_to_live_the_team_subscribes_again(subscribe, stripe, team, settings):
    billing.refetch(stripe.subscribe(team.pk, number=7))
    settings.STRIPE_SECRET_KEY = LIVE
    stripe.unknown_customers.add("cus_7")
    assert subscribe().url == "https://stripe.example/page"
    billing.refetch(stripe.subscribe(team.pk, number=2, livemode=True))
    row = Subscription.of_all_modes.get()
    assert (row.stripe_id, row.is_active) == ("sub_2", True)


def test_back_from_the_checkout_the_subscription_is_there(as_owner, stripe, team, page):
    session = {"id": "cs_1", "client_reference_id": str(team.pk), "subscription": stripe.subscribe(team.pk)}
    stripe.objects["/v1/checkout/sessions/cs_1"] = session
    as_owner.get(f"{page}done/", {"session": "cs_1"})
    assert Subscription.objects.get().is_active
    assert "The subscription has begun" in text(as_owner.get(page))


def test_who_paid_a_second_subscription_is_not_thanked(as_owner, stripe, team, page):
    billing.refetch(stripe.subscribe(team.pk))
    session = {"id": "cs_2", "client_reference_id": str(team.pk), "subscription": stripe.subscribe(team.pk, number=2)}
    stripe.objects["/v1/checkout/sessions/cs_2"] = session
    as_owner.get(f"{page}done/", {"session": "cs_2"})
    shown = text(as_owner.get(page))
    assert "pays twice" in shown and "has begun" not in shown


def test_the_checkout_of_another_team_gives_nothing(as_owner, stripe, team, page):
    session = {"id": "cs_1", "client_reference_id": "999", "subscription": stripe.subscribe(999)}
    stripe.objects["/v1/checkout/sessions/cs_1"] = session
    as_owner.get(f"{page}done/", {"session": "cs_1"})
    assert not Subscription.objects.exists()


def test_an_owner_is_sent_to_the_portal(as_owner, stripe, team):
    billing.refetch(stripe.subscribe(team.pk))
    assert as_owner.post(reverse("subscriptions:portal", args=[team.pk])).url == "https://stripe.example/page"
    assert stripe.calls[-1].form["customer"] == "cus_1"


@pytest.mark.parametrize("role", [Role.MEMBER, Role.ADMIN])
def test_others_see_the_subscription_but_do_not_pay(client, stripe, team, plan, page, role):
    client.force_login(User.objects.create_user("jane@example.com"))
    Membership.objects.create(team=team, user=User.objects.get(email="jane@example.com"), role=role)
    assert client.get(page).status_code == 200
    assert client.post(f"{page}checkout/{plan.pk}/").status_code == 403
    assert client.post(f"{page}portal/").status_code == client.get(f"{page}done/").status_code == 403


def test_another_team_is_not_found_and_visitors_sign_in(client, team, page, plan):
    assert client.get(page).url.startswith(reverse("account_login"))
    client.force_login(User.objects.create_user("stranger@example.com"))
    answers = [client.get(page), client.post(f"{page}checkout/{plan.pk}/"), client.post(f"{page}portal/")]
    assert {answer.status_code for answer in answers} == {404}


def test_a_form_without_its_token_is_refused(owner, page, plan):
    client = Client(enforce_csrf_checks=True)
    client.force_login(owner)
    assert client.post(f"{page}checkout/{plan.pk}/").status_code == 403


@pytest.fixture
def choice(plan):
    return reverse("subscriptions:choose", args=[plan.pk])


def test_a_choice_leads_visitors_to_the_sign_up_and_back(client, owner, choice):
    pricing = reverse("subscriptions:pricing")
    assert f'href="{reverse("account_signup")}?next={choice}"' in text(client.get(pricing))
    client.force_login(owner)
    assert f'href="{choice}"' in text(client.get(pricing))


def test_an_owner_of_several_teams_chooses_for_which_one_and_the_plan_is_kept(as_owner, stripe, owner, plan, choice):
    teams = [create_team(f"Team {number}", owner) for number in (1, 2, 3)]
    billing.refetch(stripe.subscribe(teams[0].pk))
    shown = text(as_owner.get(choice))
    offered = [reverse("subscriptions:checkout", args=[each.pk, plan.pk]) in shown for each in teams]
    assert offered == [False, True, True]


def test_who_owns_no_team_makes_one_and_comes_back(client, team, choice):
    client.force_login(User.objects.create_user("jane@example.com"))
    teams = f"{reverse('teams:list')}?next={choice}"
    assert teams in text(client.get(choice))
    assert client.post(teams, {"name": "Janes"}).url == choice
    assert "Which team subscribes?" in text(client.get(choice))


def test_a_plan_that_is_hidden_cannot_be_chosen(as_owner, plan, choice):
    Plan.objects.update(is_public=False)
    assert as_owner.get(choice).status_code == 404


# The admin ------------------------------------------------------------------


@pytest.fixture
def as_boss(client, db):
    client.force_login(User.objects.create_superuser("boss@example.com"))
    return client


@pytest.mark.parametrize("answers", [True, False])
def test_a_plan_saved_in_the_admin_reads_its_price(as_boss, stripe, answers):
    if answers:
        price = {"object": "price", "currency": "usd", "unit_amount_decimal": "900", "recurring": {"interval": "month"}}
        stripe.objects["/v1/prices/price_9"] = price
    form = {"name": "Moon", "price_id": "price_9", "position": 1, "is_public": "on"}
    response = as_boss.post(reverse("admin:subscriptions_plan_add"), form, follow=True)
    assert Plan.objects.get().price == ("USD 9" if answers else "")
    assert ("The price was not read" in text(response)) != answers


def test_a_price_that_is_paid_once_is_told(as_boss, stripe):
    stripe.objects["/v1/prices/price_9"] = {"object": "price", "currency": "usd", "unit_amount_decimal": "900"}
    form = {"name": "Moon", "price_id": "price_9", "position": 1, "is_public": "on"}
    assert "Nobody can subscribe" in text(as_boss.post(reverse("admin:subscriptions_plan_add"), form, follow=True))


@pytest.mark.parametrize(("status", "is_kept"), [("active", True), ("canceled", False)])
def test_a_price_that_teams_pay_stays_a_plans(as_boss, stripe, team, plan, status, is_kept):
    billing.refetch(stripe.subscribe(team.pk, status=status))
    page = text(as_boss.get(reverse("admin:subscriptions_plan_change", args=[plan.pk])))
    assert ('name="price_id"' not in page) == is_kept
    as_boss.post(reverse("admin:subscriptions_plan_delete", args=[plan.pk]), {"post": "yes"})
    assert Plan.objects.exists() == is_kept


def test_from_test_to_live_a_plan_gets_another_price_and_rows_of_test_mode_can_go(
    as_boss, stripe, team, plan, settings
):
    row = billing.refetch(stripe.subscribe(team.pk))
    settings.STRIPE_SECRET_KEY = LIVE
    assert 'name="price_id"' in text(as_boss.get(reverse("admin:subscriptions_plan_change", args=[plan.pk])))
    as_boss.post(reverse("admin:subscriptions_subscription_delete", args=[row.pk]), {"post": "yes"})
    assert not Subscription.of_all_modes.exists()


def test_the_admin_shows_subscriptions_and_changes_none(as_boss, stripe, team):
    row = billing.refetch(stripe.subscribe(team.pk))
    assert as_boss.get(reverse("admin:subscriptions_subscription_changelist")).status_code == 200
    page = reverse("admin:subscriptions_subscription_change", args=[row.pk])
    assert as_boss.post(page, {"quantity": 9}).status_code == 403


@pytest.mark.parametrize(("status", "teams"), [("active", 1), ("unpaid", 1), ("canceled", 0)])
def test_a_team_is_deleted_after_its_subscription_and_that_after_its_end(as_boss, stripe, team, status, teams):
    row = billing.refetch(stripe.subscribe(team.pk, status=status))
    for name, pk in ("subscriptions_subscription", row.pk), ("teams_team", team.pk):
        as_boss.post(reverse(f"admin:{name}_delete", args=[pk]), {"post": "yes"})
    assert Team.objects.count() == Subscription.objects.count() == teams

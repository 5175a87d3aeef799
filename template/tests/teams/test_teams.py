"""Teams are for their members: owners give roles, admins invite and remove, nobody else learns of them."""

import re
from datetime import timedelta
from urllib.parse import quote

import pytest

pytest.importorskip("stripe")

from django.core import mail
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from apps.teams import models
from apps.teams.models import Allowance, Invitation, Membership, Role, create_team
from apps.users.models import User


@pytest.fixture
def sign_in(client):
    """Return a function that signs a user in, and returns the client."""

    def sign_in(user):
        client.force_login(user)
        return client

    return sign_in


@pytest.fixture
def jane(db):
    return User.objects.create_user("jane@example.com")


@pytest.fixture
def join(team, jane):
    """Return a function that makes Jane a member with a role."""
    return lambda role=Role.MEMBER: Membership.objects.create(team=team, user=jane, role=role)


def url(name, team, *arguments):
    return reverse(f"teams:{name}", args=[team.pk, *arguments])


def invite(client, team, email="new@example.com", role="member"):
    return client.post(url("invite", team), {"email": email, "role": role}, follow=True)


def roles(team):
    return {membership.user.email: membership.role for membership in team.memberships.select_related("user")}


def test_who_makes_a_team_owns_it(sign_in, jane):
    page = sign_in(jane).post(reverse("teams:list"), {"name": "Rockets"}, follow=True).content.decode()
    assert "Rockets" in page and "1 seat taken" in page
    assert Membership.objects.get().role == Role.OWNER


def test_a_team_needs_a_name(sign_in, jane):
    assert "This field is required" in sign_in(jane).post(reverse("teams:list"), {"name": ""}).content.decode()


@pytest.mark.parametrize("name", ["Win at https://evil.example", "www.evil.example", "evil.example/now", "EVIL://x"])
def test_the_name_of_a_team_is_no_advertisement(sign_in, jane, name):
    answer = sign_in(jane).post(reverse("teams:list"), {"name": name})
    assert "contains no link" in answer.content.decode() and not jane.teams.exists()


def test_the_name_of_a_team_is_one_line(sign_in, jane):
    sign_in(jane).post(reverse("teams:list"), {"name": "Acme Inc. \r\n\r\nYou have won"})
    assert jane.teams.get().name == "Acme Inc. You have won"


def test_a_person_owns_only_so_many_teams(sign_in, jane, monkeypatch):
    monkeypatch.setattr(models, "TEAMS_PER_OWNER", 2)
    for number in range(4):
        answer = sign_in(jane).post(reverse("teams:list"), {"name": f"Team {number}"})
    assert jane.teams.count() == 2 and "You own 2 teams" in answer.content.decode()


@pytest.mark.parametrize("team_id", [10**18, 2**63, 10**30])
def test_a_number_that_no_team_can_have_is_no_page(sign_in, jane, team_id):
    for path in (f"/teams/{team_id}/", f"/teams/{team_id}/subscription/"):
        assert sign_in(jane).get(path).status_code == 404


def test_a_list_shows_the_own_teams_only(sign_in, team, jane):
    assert "You are in no team yet" in sign_in(jane).get(reverse("teams:list")).content.decode()


# Invitations ----------------------------------------------------------------


@pytest.fixture
def link(sign_in, owner, team):
    """The link in an e-mail that invites Jane."""
    invite(sign_in(owner), team, "Jane@Example.com", "admin")
    return re.search(r"http://testserver(\S+)", mail.outbox[0].body)[1]


def test_an_invitation_is_an_email_with_a_link(link):
    assert mail.outbox[0].to == ["jane@example.com"]
    assert "owner@example.com invites you to the team Rockets" in mail.outbox[0].body


def test_a_name_is_written_in_the_email_as_it_is(sign_in, owner):
    invite(sign_in(owner), create_team("Tom & Jerry's", owner))
    assert "Tom & Jerry's" in mail.outbox[0].subject and "Tom & Jerry's" in mail.outbox[0].body


def test_a_visitor_is_asked_to_sign_in_or_up_and_comes_back(client, link):
    client.logout()
    page = client.get(link).content.decode()
    assert all(f"{reverse(way)}?next={quote(link)}" in page for way in ("account_signup", "account_login"))
    client.post(link)
    assert Membership.objects.count() == 1


def test_who_accepts_has_a_seat_and_the_role(sign_in, jane, team, link):
    assert "Accept the invitation" in sign_in(jane).get(link).content.decode()
    assert Membership.objects.count() == 1
    assert "2 seats taken" in sign_in(jane).post(link, follow=True).content.decode()
    assert roles(team)["jane@example.com"] == Role.ADMIN


def test_an_invitation_is_accepted_once(sign_in, jane, link):
    sign_in(jane).post(link)
    Membership.objects.get(user=jane).delete()
    assert sign_in(jane).post(link).status_code == 404
    assert not Membership.objects.filter(user=jane).exists()


def test_a_link_that_was_passed_on_is_no_invitation(sign_in, link):
    tom = User.objects.create_user("tom@example.com")
    assert "You are signed in as tom@example.com" in sign_in(tom).post(link).content.decode()
    assert not Membership.objects.filter(user=tom).exists()


@pytest.mark.parametrize("spoil", ["forge", "age", "withdraw"])
def test_a_spoiled_link_says_that_the_invitation_has_ended(sign_in, owner, team, link, monkeypatch, spoil):
    if spoil == "forge":
        link = link[:-2] + "x/"
    elif spoil == "age":
        monkeypatch.setattr(models, "INVITATION_LIFETIME", models.INVITATION_LIFETIME * -1)
    else:
        sign_in(owner).post(url("withdraw", team, Invitation.objects.get().pk))
    response = sign_in(owner).get(link)
    assert response.status_code == 404 and "This invitation has ended" in response.content.decode()


def test_an_invitation_that_cannot_be_sent_is_none(sign_in, owner, team, monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionRefusedError

    monkeypatch.setattr("apps.teams.views.send_mail", refuse)
    assert "could not be sent" in invite(sign_in(owner), team).content.decode()
    assert not Invitation.objects.exists()


def test_a_second_invitation_replaces_the_first(sign_in, owner, team):
    invite(sign_in(owner), team, role="member")
    invite(sign_in(owner), team, role="admin")
    assert Invitation.objects.get().role == Role.ADMIN


@pytest.mark.parametrize(
    ("email", "role", "sentence"),
    [
        ("owner@example.com", "member", "is in the team already"),
        ("nobody", "member", "valid email address"),
        ("new@example.com", "owner", "not one of the available choices"),
    ],
)
def test_a_wrong_invitation_is_refused_with_a_sentence(sign_in, owner, team, email, role, sentence):
    assert sentence in invite(sign_in(owner), team, email, role).content.decode()
    assert not Invitation.objects.exists() and not mail.outbox


@pytest.mark.parametrize("email", ["a@example.com", "b@example.com"])
def test_nobody_can_invite_half_the_world(sign_in, owner, team, monkeypatch, email):
    monkeypatch.setattr(models, "INVITATIONS_PER_HOUR", 1)
    invite(sign_in(owner), team, "a@example.com")
    sign_in(owner).post(url("withdraw", team, Invitation.objects.get().pk))
    other = create_team("Zeppelins", owner)
    assert "1 times within an hour" in invite(sign_in(owner), other, email).content.decode()
    assert len(mail.outbox) == 1 and not Invitation.objects.exists()


def test_after_an_hour_one_may_invite_again(sign_in, owner, team, monkeypatch):
    monkeypatch.setattr(models, "INVITATIONS_PER_HOUR", 1)
    invite(sign_in(owner), team)
    Allowance.objects.update(hour_began_at=timezone.now() - timedelta(hours=1))
    invite(sign_in(owner), team)
    assert len(mail.outbox) == 2


def test_an_invitation_that_is_too_old_is_not_listed(sign_in, owner, team, link):
    assert "Invited, not here yet" in sign_in(owner).get(url("team", team)).content.decode()
    Invitation.objects.update(sent_at=timezone.now() - models.INVITATION_LIFETIME)
    assert "Invited, not here yet" not in sign_in(owner).get(url("team", team)).content.decode()


@pytest.mark.parametrize("end", [models.remove, lambda membership: models.change_role(membership, Role.MEMBER)])
def test_who_manages_no_more_has_invited_nobody(sign_in, jane, team, join, end):
    mine = join(Role.ADMIN)
    invite(sign_in(jane), team, "jane.too@example.com", "admin")
    end(mine)
    link = re.search(r"http://testserver(\S+)", mail.outbox[0].body)[1]
    assert sign_in(User.objects.create_user("jane.too@example.com")).post(link).status_code == 404


# Roles ----------------------------------------------------------------------


@pytest.mark.parametrize(("role", "status"), [(Role.MEMBER, 403), (Role.ADMIN, 200), (Role.OWNER, 200)])
def test_owners_and_admins_invite(sign_in, jane, team, join, role, status):
    join(role)
    assert invite(sign_in(jane), team).status_code == status
    assert Invitation.objects.exists() == (status == 200)


@pytest.mark.parametrize(("role", "status"), [(Role.MEMBER, 403), (Role.ADMIN, 403), (Role.OWNER, 302)])
def test_only_owners_give_roles(sign_in, jane, team, join, role, status):
    mine = join(role)
    response = sign_in(jane).post(url("change_role", team, mine.pk), {"role": "admin"})
    assert response.status_code == status


@pytest.mark.parametrize(
    ("mine", "other", "status"),
    [("member", "member", 403), ("admin", "member", 302), ("admin", "owner", 403), ("owner", "owner", 302)],
)
def test_who_may_remove_whom(sign_in, jane, team, join, mine, other, status):
    join(mine)
    tom = Membership.objects.create(team=team, user=User.objects.create_user("tom@example.com"), role=other)
    assert sign_in(jane).post(url("remove", team, tom.pk)).status_code == status
    assert Membership.objects.filter(pk=tom.pk).exists() == (status == 403)


def test_a_member_may_leave(sign_in, jane, team, join):
    assert sign_in(jane).post(url("remove", team, join().pk)).url == reverse("teams:list")
    assert "jane@example.com" not in roles(team)


@pytest.mark.parametrize(("action", "form"), [("remove", {}), ("change_role", {"role": "member"})])
def test_the_last_owner_stays(sign_in, owner, team, join, action, form):
    join(Role.ADMIN)
    page = sign_in(owner).post(url(action, team, team.memberships.get(user=owner).pk), form, follow=True)
    assert "A team needs an owner" in page.content.decode()
    assert roles(team)["owner@example.com"] == Role.OWNER


def test_a_role_for_who_has_left_meanwhile_changes_nothing(team, join):
    mine = join()
    Membership.objects.filter(pk=mine.pk).delete()
    models.change_role(mine, Role.ADMIN)
    assert roles(team) == {"owner@example.com": Role.OWNER}


# Users who are deleted ------------------------------------------------------


@pytest.fixture
def tom(team, join):
    """A member who came after Jane."""
    join()
    return Membership.objects.create(team=team, user=User.objects.create_user("tom@example.com"))


@pytest.mark.parametrize(("role", "heir"), [(Role.MEMBER, "jane@example.com"), (Role.ADMIN, "tom@example.com")])
def test_when_the_last_owner_is_deleted_the_oldest_admin_or_member_owns(owner, team, tom, role, heir):
    models.change_role(tom, role)
    owner.delete()
    assert [email for email, role in roles(team).items() if role == Role.OWNER] == [heir]


def test_when_one_of_two_owners_is_deleted_the_other_one_owns(owner, team, tom):
    models.change_role(tom, Role.OWNER)
    owner.delete()
    assert roles(team) == {"jane@example.com": Role.MEMBER, "tom@example.com": Role.OWNER}


def test_a_team_without_an_owner_can_be_left(team, tom):
    team.memberships.update(role=Role.MEMBER)
    models.remove(tom)
    assert "tom@example.com" not in roles(team)


def test_a_team_is_deleted_with_its_members(team, tom):
    team.delete()
    assert not Membership.objects.exists()


# Strangers ------------------------------------------------------------------


@pytest.fixture
def doors(team, owner):
    """Every address of a team, with the method that it takes."""
    membership = team.memberships.get()
    invitation = team.invitations.create(email="new@example.com", invited_by=owner)
    return [
        ("get", url("team", team)),
        ("post", url("invite", team)),
        ("post", url("withdraw", team, invitation.pk)),
        ("post", url("change_role", team, membership.pk)),
        ("post", url("remove", team, membership.pk)),
    ]


def test_another_team_is_not_found(sign_in, jane, doors):
    assert {getattr(sign_in(jane), method)(address).status_code for method, address in doors} == {404}


def test_visitors_are_sent_to_the_login(client, doors):
    answers = [getattr(client, method)(address) for method, address in doors]
    assert all(answer.url.startswith(reverse("account_login")) for answer in answers)


def test_a_member_of_another_team_is_out_of_reach(sign_in, jane, doors, team):
    mine = create_team("Mine", jane)
    other = team.memberships.get().pk
    answers = [sign_in(jane).post(url(name, mine, other), {"role": "member"}) for name in ("change_role", "remove")]
    assert {answer.status_code for answer in answers} == {404}


def test_forms_without_their_token_are_refused(owner, doors):
    client = Client(enforce_csrf_checks=True)
    client.force_login(owner)
    assert {client.post(address).status_code for method, address in doors if method == "post"} == {403}


# The admin ------------------------------------------------------------------


@pytest.fixture
def as_boss(sign_in, db):
    return sign_in(User.objects.create_superuser("boss@example.com"))


@pytest.mark.parametrize("name", ["team", "invitation"])
def test_the_admin_lists_them(as_boss, team, name):
    assert as_boss.get(reverse(f"admin:teams_{name}_changelist")).status_code == 200


def test_the_admin_counts_the_seats_of_all_teams_at_once(as_boss, owner, team, tom, django_assert_max_num_queries):
    for name in range(10):
        create_team(name, owner)
    with django_assert_max_num_queries(8):
        page = as_boss.get(reverse("admin:teams_team_changelist"), {"q": "example.com"}).content.decode()
    assert '<td class="field-seats">3</td>' in page

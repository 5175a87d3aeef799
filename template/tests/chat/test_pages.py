"""The pages of chats: only one's own, and every step works with htmx and without."""

import re

import pytest

pytest.importorskip("celery")

from django.test import Client
from django.urls import reverse

from apps.chat import replies
from apps.chat.models import Chat, Message

HTMX = {"HX-Request": "true"}


@pytest.fixture(autouse=True)
def no_tasks(monkeypatch):
    """Nothing is sent: what tasks do has tests of its own."""
    monkeypatch.setattr("celery.Task.apply_async", lambda *args, **kwargs: None)


@pytest.fixture
def ask(page, chat):
    return lambda text, headers=HTMX: page.post(reverse("chat:chat", args=[chat.pk]), {"text": text}, headers=headers)


def urls(chat, reply):
    """Every address of a chat, with the method that it takes."""
    return [
        ("get", reverse("chat:chat", args=[chat.pk])),
        ("post", reverse("chat:chat", args=[chat.pk])),
        ("post", reverse("chat:delete", args=[chat.pk])),
        ("get", reverse("chat:name", args=[chat.pk])),
        ("post", reverse("chat:rename", args=[chat.pk])),
        ("post", reverse("chat:retry", args=[reply.pk])),
        ("post", reverse("chat:stop", args=[reply.pk])),
    ]


def test_the_chats_of_others_do_not_exist(client, chat, reply, other):
    client.force_login(other)
    assert {getattr(client, method)(url).status_code for method, url in urls(chat, reply)} == {404}
    assert "Trains" not in client.get(reverse("chat:index")).content.decode()


def test_visitors_go_to_the_login(client, chat, reply):
    pages = [*urls(chat, reply), ("get", reverse("chat:index"))]
    locations = {getattr(client, method)(url).headers.get("Location", "").split("?")[0] for method, url in pages}
    assert locations == {reverse("account_login")}


def test_nothing_is_changed_without_a_csrf_token(user, chat, reply):
    client = Client(enforce_csrf_checks=True)
    client.force_login(user)
    posts = [url for method, url in urls(chat, reply) if method == "post"]
    assert {client.post(url, {"text": "x"}).status_code for url in posts} == {403}


def test_a_first_question_starts_a_chat(page, user):
    response = page.post(reverse("chat:index"), {"text": "Are trains long?"}, follow=True)
    assert "<h1" in response.content.decode() and "Are trains long?" in response.content.decode()
    assert [message.state for message in user.chats.get().messages.all()] == ["done", "waiting"]


def test_a_refused_first_question_leaves_no_chat(page, settings):
    settings.CHAT_REPLIES_PER_HOUR = 0
    response = page.post(reverse("chat:index"), {"text": "Are trains long?"})
    assert response.status_code == 422 and "Try again later" in response.content.decode()
    assert not Chat.objects.exists()


def test_the_answer_to_a_question_is_what_is_new_and_an_empty_form(ask):
    html = ask("Are <trains> long?").content.decode()
    assert "Are &lt;trains&gt; long?" in html and 'aria-busy="true"' in html and 'hx-swap-oob="true"' in html


def test_without_htmx_a_question_leads_to_the_page(ask, chat):
    assert ask("Are trains long?", headers={}).url == reverse("chat:chat", args=[chat.pk])


@pytest.mark.parametrize(("text", "error"), [("", "required"), (" ", "required"), ("x" * 4001, "at most 4000")])
def test_what_is_no_question_is_told_beside_the_form(ask, text, error):
    response = ask(text)
    assert response.status_code == 422 and error in response.content.decode()
    assert response.headers["HX-Retarget"] == "#ask"


def test_a_question_that_is_refused_stays_in_the_form(ask, reply):
    response = ask("And planes?")
    assert response.status_code == 422
    assert "still being answered" in response.content.decode() and "And planes?" in response.content.decode()


def test_a_long_chat_is_shown_from_its_end_and_the_rest_on_demand(page, chat):
    Message.objects.bulk_create(Message(chat=chat, role="question", text=f"Number {i}.") for i in range(60))
    html = page.get(reverse("chat:chat", args=[chat.pk])).content.decode()
    assert html.count("<article") == 40 and "Number 20." in html and "Number 59." in html
    earlier = re.search(r'hx-get="(.*?/before/.*?)"', html)[1]
    html = page.get(earlier).content.decode()
    assert html.count("<article") == 20 and "Number 19." in html and "/before/" not in html and "<textarea" not in html


def test_many_chats_take_more_than_one_page(page, user):
    Chat.objects.bulk_create(Chat(owner=user, name=f"Number {i}.") for i in range(50))
    first, second = (page.get(reverse("chat:index"), {"page": number}).content.decode() for number in (1, 2))
    assert (first.count("<time"), second.count("<time")) == (40, 10)
    assert "?page=2" in first and "?page=1" in second


def test_stop_shows_what_there_is_and_a_way_to_go_on(page, reply):
    Message.objects.filter(pk=reply.pk).update(text="Some *are*")
    html = page.post(reverse("chat:stop", args=[reply.pk]), headers=HTMX).content.decode()
    assert "<em>are</em>" in html and "Try again" in html and "aria-busy" not in html


def test_retry_lets_the_reply_wait_again(page, reply, end):
    replies.stop(reply)
    html = page.post(reverse("chat:retry", args=[reply.pk]), headers=HTMX).content.decode()
    assert 'aria-busy="true"' in html
    assert end() == ("waiting", "", "")


def test_a_retry_that_is_refused_says_why(page, reply, settings):
    replies.stop(reply)
    settings.CHAT_REPLIES_PER_HOUR = 1
    html = page.post(reverse("chat:retry", args=[reply.pk]), headers=HTMX).content.decode()
    assert "Try again later" in html


def test_rename(page, chat):
    page.post(reverse("chat:rename", args=[chat.pk]), {"name": "Rails"})
    page.post(reverse("chat:rename", args=[chat.pk]), {"name": ""})
    chat.refresh_from_db()
    assert chat.name == "Rails"


@pytest.mark.parametrize("headers", [HTMX, {}])
def test_delete(page, chat, reply, headers):
    response = page.post(reverse("chat:delete", args=[chat.pk]), headers=headers)
    assert reverse("chat:index") in (response.headers.get("HX-Redirect"), response.headers.get("Location"))
    assert not Message.objects.exists()


def test_a_page_asks_for_the_name_until_there_is_one(page, chat):
    url = reverse("chat:name", args=[chat.pk])
    assert b"hx-get" not in page.get(url).content
    Chat.objects.update(name="")
    assert page.get(url).status_code == 204
    assert f'hx-get="{url}"' in page.get(reverse("chat:chat", args=[chat.pk])).content.decode()


def test_the_home_page_offers_chats_to_those_who_are_signed_in(client, user):
    assert "Open the chats" not in client.get(reverse("web:home")).content.decode()
    client.force_login(user)
    assert "Open the chats" in client.get(reverse("web:home")).content.decode()

"""A reply is written once, by one process, and ends in a state from which the person can go on."""

import asyncio
from contextlib import suppress
from datetime import timedelta
from unittest.mock import AsyncMock

import pytest

pytest.importorskip("celery")

from asgiref.sync import async_to_sync, sync_to_async
from django.urls import reverse
from django.utils import timezone

from apps.chat import ai, replies
from apps.chat.models import Chat, Message
from apps.users.models import User


@async_to_sync
async def write(reply):
    """Claim and write the reply; return the draft."""
    draft = await replies.claim(reply.pk)
    await replies.write(draft)
    return draft


@pytest.fixture
def write_until(reply, saved):
    """`write_until(text, act)` writes the reply; once the text is saved, it does something, and waits for the end."""

    @async_to_sync
    async def write_until(text, act):
        draft = await replies.claim(reply.pk)
        writing = asyncio.create_task(replies.write(draft))
        await saved(text)
        await sync_to_async(act)(writing)
        await asyncio.wait_for(asyncio.gather(writing, return_exceptions=True), timeout=60)

    return write_until


def test_the_whole_answer_is_kept(reply, answers, end):
    answers("Some ", "are.")
    write(reply)
    assert end() == ("done", "Some are.", "")


def test_a_reply_is_claimed_once(reply):
    claim = async_to_sync(replies.claim)
    assert claim(reply.pk)
    assert claim(reply.pk) is None


def test_a_second_question_waits_for_the_end_of_the_first_reply(chat, reply):
    with pytest.raises(replies.Refused, match="still being answered"):
        replies.ask(chat, "And planes?")
    replies.stop(reply)
    replies.ask(chat, "And planes?")


def test_a_reply_that_is_stopped_keeps_its_text_and_waits_for_no_more(reply, answers, end, write_until):
    answers("Some ", None)
    write_until("Some ", lambda _: replies.stop(reply))
    assert end() == ("stopped", "Some ", "")


def test_a_writer_keeps_off_a_reply_that_was_stopped_and_is_written_anew(reply, answers, end, write_until):
    answers("Some ", None)

    def stop_and_ask_again(_):
        replies.stop(reply)
        replies.ask_again(reply)
        async_to_sync(replies.claim)(reply.pk)

    write_until("Some ", stop_and_ask_again)
    assert end() == ("writing", "Some ", "")


def test_a_chat_that_is_deleted_while_its_reply_is_written_ends_quietly(chat, reply, answers, caplog, write_until):
    answers("Some ", None)
    write_until("Some ", lambda _: chat.delete())
    assert not Message.objects.exists() and not caplog.records


def test_a_writer_that_is_cut_off_keeps_the_text_and_leaves_a_reply_to_retry(reply, answers, end, write_until):
    answers("Some ", None)
    write_until("Some ", lambda writing: writing.cancel())
    assert end() == ("stopped", "Some ", replies.CUT_OFF)
    replies.ask_again(reply)
    assert end() == ("waiting", "Some ", "")


def test_what_there_is_stays_until_another_attempt_has_words(reply, answers, end):
    ill = ai.ModelFailed("The model is ill.")
    answers("Some ", ill)
    write(reply)
    for pieces, text in [(["\n", ill], "Some "), (["\n", "No", ill], "\nNo")]:
        replies.ask_again(reply)
        answers(*pieces)
        write(reply)
        assert end() == ("failed", text, "The model is ill.")


@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (ai.ModelFailed("The model is ill."), "The model is ill."),
        (ValueError("secret"), replies.FAILED),
    ],
)
def test_a_failure_is_told_in_a_sentence_and_what_there_is_stays(reply, answers, end, failure, sentence):
    answers("Some ", failure)
    write(reply)
    assert end() == ("failed", "Some ", sentence)


def test_a_reply_that_is_cut_short_keeps_its_text_says_so_and_can_be_asked_for_again(reply, answers, end):
    answers("Some ", ai.CutShort("Too long."))
    write(reply)
    assert end() == ("stopped", "Some ", "Too long.")


def test_only_staff_see_what_the_provider_said_and_another_attempt_forgets_it(page, user, chat, reply, answers):
    answers(ai.ModelFailed("The model is ill.", "Key sk-1 is not valid."))
    write(reply)
    url = reverse("chat:chat", args=[chat.pk])
    assert "The model is ill." in page.get(url).content.decode()
    for is_staff in (False, True):
        User.objects.update(is_staff=is_staff)
        assert ("Key sk-1 is not valid." in page.get(url).content.decode()) == is_staff
    replies.ask_again(reply)
    assert not Message.objects.exclude(detail="").exists()


def test_a_model_that_says_nothing_has_failed(reply, answers, end):
    answers("", "\n")
    write(reply)
    assert end()[2] == replies.WORDLESS


def test_a_model_that_takes_too_long_is_given_up(reply, answers, end, settings, monkeypatch):
    settings.CHAT_REPLY_SECONDS = 0.1
    # To read the conversation may take longer than that; without it the first word is there before the time begins.
    monkeypatch.setattr(replies, "turns_before", AsyncMock(return_value=[]))
    answers("Some ", None)
    write(reply)
    assert end() == ("failed", "Some ", replies.TOO_SLOW)


def test_a_writer_that_has_died_leaves_a_reply_to_retry(chat, reply, end):
    async_to_sync(replies.claim)(reply.pk)
    replies.close_silent(chat=chat)
    assert end()[0] == "writing"
    Message.objects.update(updated_at=timezone.now() - timedelta(seconds=replies.SILENT_SECONDS + 1))
    replies.close_silent(chat=chat)
    assert end() == ("failed", "", replies.SILENT)


def test_the_model_gets_the_end_of_the_conversation_from_a_question_on_and_no_empty_reply(chat, settings):
    settings.CHAT_HISTORY_MESSAGES = 4
    for role, text in [("question", "1"), ("reply", "2"), ("question", "3"), ("reply", ""), ("question", "4")]:
        chat.messages.create(role=role, text=text)
    reply = replies.ask(chat, "5")[1]
    turns = async_to_sync(replies.turns_before)(replies.Draft(reply.pk, None))
    assert turns == [ai.Turn(False, "3"), ai.Turn(False, "4"), ai.Turn(False, "5")]


# Allowance ------------------------------------------------------------------


@pytest.fixture
def two_an_hour(settings):
    settings.CHAT_REPLIES_PER_HOUR = 2


def ask_and_stop(chat):
    replies.stop(replies.ask(chat, "Why?")[1])


def test_so_many_replies_in_an_hour_and_retries_count(two_an_hour, chat, reply, end):
    replies.stop(reply)
    replies.ask_again(reply)
    replies.stop(reply)
    with pytest.raises(replies.Refused, match="2 times within an hour"):
        replies.ask_again(reply)
    with pytest.raises(replies.Refused, match="2 times within an hour"):
        ask_and_stop(chat)
    assert end()[0] == "stopped"


def test_deleting_a_chat_does_not_give_replies_back(two_an_hour, chat, user):
    ask_and_stop(chat)
    ask_and_stop(chat)
    chat.delete()
    with pytest.raises(replies.Refused):
        ask_and_stop(Chat.objects.create(owner=user))


def test_a_question_that_is_refused_costs_nothing(two_an_hour, chat, reply, user):
    for _ in range(3):
        with pytest.raises(replies.Refused, match="still being answered"):
            replies.ask(chat, "And planes?")
    assert user.allowance.replies == 1


def test_so_many_replies_at_once_and_lost_ones_hold_nobody_up(settings, user, other):
    settings.CHAT_REPLIES_AT_ONCE = 2
    first, *_, third = chats = [Chat.objects.create(owner=user) for _ in range(3)]
    for chat in chats[:2]:
        replies.ask(chat, "Why?")
    with pytest.raises(replies.Refused, match="other chats are still being answered"):
        replies.ask(third, "Why?")
    replies.ask(Chat.objects.create(owner=other), "Why?")
    first.messages.update(updated_at=timezone.now() - timedelta(seconds=replies.WAITING_SECONDS + 1))
    replies.ask(third, "Why?")


def test_replies_that_nobody_reads_do_not_pile_up_until_all_are_written_at_once(settings, user):
    for age in range(9, 0, -1):
        for chat in [Chat.objects.create(owner=user) for _ in range(settings.CHAT_REPLIES_AT_ONCE)]:
            with suppress(replies.Refused):
                replies.ask(chat, "Why?")
        Message.objects.update(updated_at=timezone.now() - timedelta(seconds=age * settings.CHAT_REPLY_SECONDS))
    drafts = [async_to_sync(replies.claim)(reply.pk) for reply in Message.objects.filter(role="reply")]
    assert len([draft for draft in drafts if draft]) <= settings.CHAT_REPLIES_AT_ONCE


def test_a_reply_that_has_waited_too_long_is_not_written_and_can_be_asked_for_again(chat, reply, end):
    Message.objects.update(updated_at=timezone.now() - timedelta(seconds=replies.WAITING_SECONDS + 1))
    assert async_to_sync(replies.claim)(reply.pk) is None
    replies.close_silent(chat=chat)
    assert end() == ("failed", "", replies.FORGOTTEN)
    replies.ask_again(reply)
    assert async_to_sync(replies.claim)(reply.pk)


def test_the_next_hour_begins_anew_and_others_have_their_own(two_an_hour, chat, user, other):
    ask_and_stop(chat)
    ask_and_stop(chat)
    ask_and_stop(Chat.objects.create(owner=other))
    user.allowance.hour_began_at -= timedelta(hours=1)
    user.allowance.save()
    ask_and_stop(chat)

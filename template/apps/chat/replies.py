"""The life of a reply: asked for, claimed by one process, written, and done, stopped or failed.

Every step is one conditional update of the row, so that it happens once however many processes try it. People are
shown only what the row holds, so that nothing they have seen is lost, whatever ends the reply: even a process that is
killed, and says no more.
"""

import asyncio
import logging
from contextlib import aclosing
from dataclasses import dataclass
from datetime import timedelta
from itertools import dropwhile
from uuid import UUID, uuid4

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django.utils import timezone

from apps.web import clock

from . import ai
from .models import Allowance, Chat, Message

logger = logging.getLogger(__name__)

# So often the text so far is saved, which is also the sign of life of the process that writes. Nobody sees a word
# before, so this is how smoothly the text grows. A save costs about a millisecond, far less than to render Markdown.
SAVE_SECONDS = 0.1
# A reply without a sign of life for so long is given up.
SILENT_SECONDS = 30

CUT_OFF = "The connection was lost before the reply was complete."
FAILED = "The reply failed. The log of the server says why."
SILENT = "What wrote the reply has died."
TOO_SLOW = "The model took too long."
WORDLESS = "The model said nothing."


class Refused(Exception):
    """A question is not taken; the message is a sentence for the person who asked."""


@dataclass
class Draft:
    """A reply that this process has claimed; its text grows, and `saved` is what the row has of it."""

    reply_id: int
    writer: UUID
    text: str = ""
    saved: str = ""

    @property
    def row(self) -> QuerySet[Message]:
        """The row of the reply, or none once it was stopped, given up or deleted."""
        return Message.objects.filter(pk=self.reply_id, writer=self.writer, state=Message.State.WRITING)

    async def save(self, **fields: str) -> bool:
        """Write down the text and other fields; return whether there was a row to write to.

        An attempt without a word leaves the row the text of the one before.
        """
        # More may come while the database is at work.
        text = self.text
        if text.strip():
            fields["text"] = text
        is_ours = bool(await self.row.aupdate(updated_at=timezone.now(), **fields))
        if is_ours:
            self.saved = fields.get("text", "")
        return is_ours


# Asking ---------------------------------------------------------------------


def ask(chat: Chat, text: str) -> tuple[Message, Message]:
    """Write down a question, and return it with its reply, which waits; raise Refused."""
    close_silent(chat=chat)
    try:
        with transaction.atomic():
            use_allowance(chat)
            question = chat.messages.create(role=Message.Role.QUESTION, text=text)
            reply = chat.messages.create(role=Message.Role.REPLY, state=Message.State.WAITING)
            Chat.objects.filter(pk=chat.pk).update(asked_at=timezone.now())
    except IntegrityError as error:
        raise _busy() from error
    return question, reply


def ask_again(reply: Message) -> None:
    """Let a reply that stopped or failed wait once more; raise Refused. Its text stays until there is another."""
    ended = Message.objects.filter(pk=reply.pk, state__in=[Message.State.STOPPED, Message.State.FAILED])
    try:
        with transaction.atomic():
            use_allowance(reply.chat)
            waits = ended.update(state=Message.State.WAITING, error="", writer=None, updated_at=timezone.now())
            if not waits:
                raise _busy()
    except IntegrityError as error:
        raise _busy() from error


def use_allowance(chat: Chat) -> None:
    """Count one reply of this hour for the owner of the chat; raise Refused when there have been enough.

    Or when too many are being written: one person must not hold every worker.
    """
    if not Allowance.use(chat.owner_id, settings.CHAT_REPLIES_PER_HOUR):
        raise Refused(f"You have asked {settings.CHAT_REPLIES_PER_HOUR} times within an hour. Try again later.")
    # What has been silent for longer is lost, and holds nobody up.
    earliest = timezone.now() - timedelta(seconds=settings.CHAT_REPLY_SECONDS)
    recent = Message.objects.filter(updated_at__gt=earliest)
    if recent.filter(chat__owner=chat.owner_id, state__in=Message.ACTIVE).count() >= settings.CHAT_REPLIES_AT_ONCE:
        raise Refused("Your other chats are still being answered. Wait for the end of a reply, or stop one.")


def _busy() -> Refused:
    return Refused("The last question is still being answered. Wait for the end of the reply, or stop it.")


# Ending ---------------------------------------------------------------------


def stop(reply: Message) -> None:
    """Stop a reply with the text that it has; whoever writes it notices within a moment and keeps off it."""
    Message.objects.filter(pk=reply.pk, state__in=Message.ACTIVE).update(state=Message.State.STOPPED)


def fail(reply: Message, error: str) -> None:
    """Let a reply that waits fail with a sentence that says why."""
    Message.objects.filter(pk=reply.pk, state=Message.State.WAITING).update(state=Message.State.FAILED, error=error)


def close_silent(**which: object) -> None:
    """Let replies fail whose writer has not been heard of for too long, of those that the filter names."""
    latest = clock.ago(timedelta(seconds=SILENT_SECONDS))
    silent = Message.objects.filter(**which, state=Message.State.WRITING, updated_at__lt=latest)
    silent.update(**_failure(SILENT))


# Writing --------------------------------------------------------------------


async def claim(reply_id: int) -> Draft | None:
    """Return the reply for this process alone to write, or None if it does not wait: a reply is paid for once."""
    draft = Draft(reply_id, uuid4())
    waiting = Message.objects.filter(pk=reply_id, state=Message.State.WAITING)
    claimed = await waiting.aupdate(state=Message.State.WRITING, writer=draft.writer, updated_at=timezone.now())
    return draft if claimed else None


async def write(draft: Draft) -> None:
    """Ask the model and write the reply down as it grows.

    Ends quietly when the reply is stopped or deleted meanwhile. If this is cancelled, what there is stays as a reply
    that can be asked for again.
    """
    reading = asyncio.create_task(_read_answer(draft))
    end = {"state": Message.State.STOPPED, "error": CUT_OFF}
    try:
        async with asyncio.timeout(settings.CHAT_REPLY_SECONDS):
            while not reading.done():
                await asyncio.wait([reading], timeout=SAVE_SECONDS)
                if not await draft.save():
                    return
            await reading
        end = {"state": Message.State.DONE} if draft.text.strip() else _failure(WORDLESS)
    except TimeoutError:
        end = _failure(TOO_SLOW)
    except ai.ModelFailed as error:
        logger.warning("Reply %s failed: %s", draft.reply_id, error, exc_info=True)
        end = _failure(str(error))
    except Exception:
        logger.exception("Reply %s failed", draft.reply_id)
        end = _failure(FAILED)
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await draft.save(**end)


async def _read_answer(draft: Draft) -> None:
    """Let the text of the draft grow until the model is done."""
    async with aclosing(ai.answer(await turns_before(draft))) as pieces:
        async for piece in pieces:
            draft.text += piece


async def turns_before(draft: Draft) -> list[ai.Turn]:
    """Return the end of the conversation before the reply, the question last; replies without a word are left out.

    It begins with a question: some providers refuse a conversation that begins with a reply.
    """
    before = Message.objects.filter(chat__messages=draft.reply_id, pk__lt=draft.reply_id).exclude(text="")
    latest = [message async for message in before.order_by("-pk")[: settings.CHAT_HISTORY_MESSAGES]]
    turns = [ai.Turn(message.role == Message.Role.REPLY, message.text) for message in reversed(latest)]
    return list(dropwhile(lambda turn: turn.is_reply, turns))


def _failure(error: str) -> dict[str, str]:
    return {"state": Message.State.FAILED, "error": error}

"""The life of a reply: asked for, claimed by one process, written, and done, stopped or failed.

Every step is one conditional update of the row, so it happens once, however many processes try it. People see only what
the row contains, so nothing that they have seen is lost, whatever ends the reply, even if its process is killed.
"""

import asyncio
import logging
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime, timedelta
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

# How often the text is saved, in seconds. Saving is also the writer's sign of life. People see only saved text, so this
# sets how smoothly it grows. A save costs about a millisecond, far less than rendering Markdown.
SAVE_SECONDS = 0.1
# A reply without a sign of life for this many seconds has failed.
SILENT_SECONDS = 30
# A reply that nobody has begun to write after this many seconds is not written any more.
WAITING_SECONDS = 600

CUT_OFF = "The connection was lost before the reply was complete."
FAILED = "The reply failed. The log of the server says why."
FORGOTTEN = "It has waited too long."
SILENT = "What wrote the reply has died."
TOO_SLOW = "The model took too long."
WORDLESS = "The model said nothing."


class Refused(Exception):
    """A question is not accepted. The message is a sentence for the person who asked."""


@dataclass
class Draft:
    """A reply that this process has claimed. Its text grows, and `saved` is the part that is in the row."""

    reply_id: int
    writer: UUID
    text: str = ""
    saved: str = ""

    @property
    def row(self) -> QuerySet[Message]:
        """The row of the reply, or none after it was stopped, has failed, or was deleted."""
        return Message.objects.filter(pk=self.reply_id, writer=self.writer, state=Message.State.WRITING)

    async def save(self, **fields: str) -> bool:
        """Save the text and other fields. Return whether there was a row to write to.

        An attempt that has produced no text keeps the text of the previous attempt.
        """
        # More text may arrive while the database is working.
        text = self.text
        if text.strip():
            fields["text"] = text
        is_ours = bool(await self.row.aupdate(updated_at=timezone.now(), **fields))
        if is_ours:
            self.saved = fields.get("text", "")
        return is_ours


# Asking ---------------------------------------------------------------------


def ask(chat: Chat, text: str) -> tuple[Message, Message]:
    """Save a question, and return it with its waiting reply. Raises Refused."""
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
    """Queue a stopped or failed reply again. Its text stays until there is a new one. Raises Refused."""
    ended = Message.objects.filter(pk=reply.pk, state__in=[Message.State.STOPPED, Message.State.FAILED])
    try:
        with transaction.atomic():
            use_allowance(reply.chat)
            waits = ended.update(
                state=Message.State.WAITING, error="", detail="", writer=None, updated_at=timezone.now()
            )
            if not waits:
                raise _busy()
    except IntegrityError as error:
        raise _busy() from error


def use_allowance(chat: Chat) -> None:
    """Count one reply of this hour for the owner of the chat. Raise Refused when the limit is reached.

    Also raise it when too many are being written, because one person must not occupy every worker.
    """
    if not Allowance.use(chat.owner_id, settings.CHAT_REPLIES_PER_HOUR):
        raise Refused(f"You have asked {settings.CHAT_REPLIES_PER_HOUR} times within an hour. Try again later.")
    # A waiting reply counts as well, because it may be written at any moment. One that is lost blocks nobody.
    close_silent(chat__owner=chat.owner_id)
    active = Message.objects.filter(chat__owner=chat.owner_id, state__in=Message.ACTIVE)
    if active.count() >= settings.CHAT_REPLIES_AT_ONCE:
        raise Refused("Your other chats are still being answered. Wait for the end of a reply, or stop one.")


def _busy() -> Refused:
    return Refused("The last question is still being answered. Wait for the end of the reply, or stop it.")


# Ending ---------------------------------------------------------------------


def stop(reply: Message) -> None:
    """Stop a reply with the text that it has. The writer notices within a moment and leaves it alone."""
    Message.objects.filter(pk=reply.pk, state__in=Message.ACTIVE).update(state=Message.State.STOPPED)


def fail(reply: Message, error: str) -> None:
    """Mark a waiting reply as failed, with a sentence that says why."""
    Message.objects.filter(pk=reply.pk, state=Message.State.WAITING).update(state=Message.State.FAILED, error=error)


def close_silent(**which: object) -> None:
    """Mark those replies in the filter as failed that have waited too long, or whose writer shows no sign of life."""
    silent = Message.objects.filter(**which, state=Message.State.WRITING, updated_at__lt=_ago(SILENT_SECONDS))
    silent.update(**_failure(SILENT))
    forgotten = Message.objects.filter(**which, state=Message.State.WAITING, updated_at__lt=_ago(WAITING_SECONDS))
    forgotten.update(**_failure(FORGOTTEN))


def _ago(seconds: int) -> datetime:
    return clock.ago(timedelta(seconds=seconds))


# Writing --------------------------------------------------------------------


async def claim(reply_id: int) -> Draft | None:
    """Claim the reply for this process alone, or return None if it waits no more. A reply is paid for only once."""
    draft = Draft(reply_id, uuid4())
    waiting = Message.objects.filter(pk=reply_id, state=Message.State.WAITING, updated_at__gte=_ago(WAITING_SECONDS))
    claimed = await waiting.aupdate(state=Message.State.WRITING, writer=draft.writer, updated_at=timezone.now())
    return draft if claimed else None


async def write(draft: Draft) -> None:
    """Ask the model and save the reply as it grows.

    Ends quietly if the reply is stopped or deleted in the meantime. If this is cancelled, the text so far stays as a
    reply that can be asked for again.
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
    except ai.CutShort as error:
        end = {"state": Message.State.STOPPED, "error": str(error)}
    except ai.ModelFailed as error:
        logger.warning("Reply %s failed: %s", draft.reply_id, error, exc_info=True)
        end = _failure(str(error)) | {"detail": error.detail}
    except Exception:
        logger.exception("Reply %s failed", draft.reply_id)
        end = _failure(FAILED)
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await draft.save(**end)


async def _read_answer(draft: Draft) -> None:
    """Extend the text of the draft until the model is done."""
    async with aclosing(ai.answer(await turns_before(draft))) as pieces:
        async for piece in pieces:
            draft.text += piece


async def turns_before(draft: Draft) -> list[ai.Turn]:
    """Return the end of the conversation before the reply, the question last, without empty replies.

    It begins with a question, because some providers refuse a conversation that begins with a reply.
    """
    before = Message.objects.filter(chat__messages=draft.reply_id, pk__lt=draft.reply_id).exclude(text="")
    latest = [message async for message in before.order_by("-pk")[: settings.CHAT_HISTORY_MESSAGES]]
    turns = [ai.Turn(message.role == Message.Role.REPLY, message.text) for message in reversed(latest)]
    return list(dropwhile(lambda turn: turn.is_reply, turns))


def _failure(error: str) -> dict[str, str]:
    return {"state": Message.State.FAILED, "error": error}

"""Replies by server-sent events: the first page that opens the stream of a reply makes the web server write it.

The writing does not depend on that page. After a reload or a lost connection, the page follows the text that is being
written.

https://developer.mozilla.org/en-US/docs/Web/API/Server-sent_events
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

from asgiref.sync import sync_to_async
from django.db import close_old_connections
from django.http import Http404, HttpRequest, StreamingHttpResponse
from django.template.loader import render_to_string
from django.urls import path
from django.views.decorators.http import require_safe

from . import replies
from .markdown import to_html
from .models import Message

# Shows a reply that is not complete, and opens the stream.
TEMPLATE = "chat/streamed_reply.html"
SCRIPTS = ["chat/stream.js"]
SHOW_SECONDS = 0.1
FOLLOW_SECONDS = 0.5
# Proxies cut connections that are silent for a minute.
STILL_HERE_SECONDS = 15
# Proxies must not buffer text that people should see at once.
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

# The event loop keeps only weak references to its tasks.
_writers: set[asyncio.Task[None]] = set()


def begin(reply: Message) -> None:
    """Do nothing, because the page that shows the reply opens the stream, and the stream writes the reply."""


@require_safe
async def stream(request: HttpRequest, reply_id: int) -> StreamingHttpResponse:
    """Send the text of a reply as it grows, and the whole message at the end."""
    own = Message.objects.filter(pk=reply_id, chat__owner=await request.auser(), role=Message.Role.REPLY)
    if not await own.aexists():
        raise Http404("No such reply.")
    return StreamingHttpResponse(_events(request, reply_id), content_type="text/event-stream", headers=HEADERS)


async def _events(request: HttpRequest, reply_id: int) -> AsyncIterator[str]:
    # Browsers reopen a broken stream, and people open two tabs. Only the first stream claims the reply, and so pays.
    draft = await replies.claim(reply_id)
    shown, said_at = "", time.monotonic()
    async with aclosing(_written(draft) if draft else _followed(reply_id)) as texts:
        async for text in texts:
            if text != shown:
                shown, said_at = text, time.monotonic()
                # This does not run on the event loop, where everybody would wait, and takes at most half of the time.
                html = await asyncio.to_thread(to_html, text)
                yield event("text", html)
                await asyncio.sleep(time.monotonic() - said_at)
            elif time.monotonic() - said_at > STILL_HERE_SECONDS:
                said_at = time.monotonic()
                yield ": still here\n\n"
    yield event("end", await sync_to_async(_whole_message)(request, reply_id))


async def _written(draft: replies.Draft) -> AsyncIterator[str]:
    """Write the reply, and yield its text now and then, as far as it is saved: text that was seen must not be lost.

    If nobody listens any more, the reply is still written to its end.
    """
    writing = asyncio.create_task(_write(draft))
    _writers.add(writing)
    writing.add_done_callback(_writers.discard)
    while not writing.done():
        await asyncio.wait([writing], timeout=SHOW_SECONDS)
        yield draft.saved


async def _write(draft: replies.Draft) -> None:
    """Write the reply, then do what Django does at the end of a request, because the page's own may have ended."""
    try:
        await replies.write(draft)
    finally:
        await sync_to_async(close_old_connections)()


async def _followed(reply_id: int) -> AsyncIterator[str]:
    """Yield the text of a reply that another connection writes, as far as it is saved."""
    while True:
        await sync_to_async(replies.close_silent)(pk=reply_id)
        reply = await Message.objects.filter(pk=reply_id).afirst()
        if reply is None or not reply.is_active:
            return
        yield reply.text
        await asyncio.sleep(FOLLOW_SECONDS)


def _whole_message(request: HttpRequest, reply_id: int) -> str:
    """Return the reply as the page shows it, or nothing if its chat was deleted."""
    reply = Message.objects.filter(pk=reply_id).first()
    context = {"message": reply, "live_template": TEMPLATE}
    return render_to_string("chat/reply.html", context, request) if reply else ""


def event(name: str, data: str) -> str:
    """Return an event in the format of the protocol, which marks each line of the data."""
    return f"event: {name}\n" + "".join(f"data: {line}\n" for line in data.split("\n")) + "\n"


urlpatterns = [path("replies/<int:reply_id>/stream/", stream, name="stream")]

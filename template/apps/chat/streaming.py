"""Replies by server-sent events: the first page that opens the stream of a reply makes the web server write it.

The writing does not depend on that page. After a reload or a lost connection, the page follows the text that is being
written.

A stream may last for minutes, and Django gives each request a connection to the database. Streams therefore hold none
while they wait: they close their own, and one connection of the process serves all who write and all who follow.

https://developer.mozilla.org/en-US/docs/Web/API/Server-sent_events
"""

import asyncio
import contextvars
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager

from asgiref.sync import SyncToAsync, sync_to_async
from django.db import connections
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
# How many streams a person may have open in one process, in tabs and on devices.
STREAMS_AT_ONCE = 10
# When a browser may open a stream again that was one too many.
REOPEN_SECONDS = 15
# Proxies must not buffer text that people should see at once.
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

# The event loop keeps only weak references to its tasks.
_writers: set[asyncio.Task[None]] = set()
# How many streams each person has open in this process.
_open: Counter[int] = Counter()


def begin(reply: Message) -> None:
    """Do nothing, because the page that shows the reply opens the stream, and the stream writes the reply."""


@require_safe
async def stream(request: HttpRequest, reply_id: int) -> StreamingHttpResponse:
    """Send the text of a reply as it grows, and the whole message at the end."""
    user = await request.auser()
    if not await Message.objects.filter(pk=reply_id, chat__owner=user, role=Message.Role.REPLY).aexists():
        raise Http404("No such reply.")
    events = _events_of_person(user.pk, request, reply_id)
    return StreamingHttpResponse(events, content_type="text/event-stream", headers=HEADERS)


async def _events_of_person(user_id: int, request: HttpRequest, reply_id: int) -> AsyncIterator[str]:
    """Yield the events of the reply, unless the person has too many streams open. The browser then asks again later."""
    if _open[user_id] >= STREAMS_AT_ONCE:
        yield f"retry: {REOPEN_SECONDS * 1000}\n\n"
        return
    _open[user_id] += 1
    try:
        async with aclosing(_events(request, reply_id)) as events:
            async for each in events:
                yield each
    finally:
        _open[user_id] -= 1
        if not _open[user_id]:
            del _open[user_id]


async def _events(request: HttpRequest, reply_id: int) -> AsyncIterator[str]:
    # Browsers reopen a broken stream, and people open two tabs. Only the first stream claims the reply, and so pays.
    draft = await replies.claim(reply_id)
    await sync_to_async(_release_connections)()
    shown, said_at = "", time.monotonic()
    async with aclosing(_written(draft) if draft else _watch.follow(reply_id)) as texts:
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
    writing = asyncio.create_task(_write(draft), context=_shared_context())
    _writers.add(writing)
    writing.add_done_callback(_writers.discard)
    while not writing.done():
        await asyncio.wait([writing], timeout=SHOW_SECONDS)
        yield draft.saved


async def _write(draft: replies.Draft) -> None:
    try:
        await replies.write(draft)
    finally:
        await sync_to_async(_release_connections)()


class Watch:
    """Looks up the replies that the streams of this process follow, all of them with one query."""

    def __init__(self) -> None:
        self.readers: Counter[int] = Counter()
        self.asked: frozenset[int] = frozenset()
        self.texts: dict[int, str] = {}
        self.looked = asyncio.Event()
        self.looking: asyncio.Task[None] | None = None

    async def follow(self, reply_id: int) -> AsyncIterator[str]:
        """Yield the text of a reply that another stream writes, as far as it is saved, now and then until its end."""
        async with self._reader(reply_id):
            while not self.looking.done():
                await self.looked.wait()
                if reply_id in self.texts:
                    yield self.texts[reply_id]
                elif reply_id in self.asked:
                    return

    @asynccontextmanager
    async def _reader(self, reply_id: int) -> AsyncIterator[None]:
        self.readers[reply_id] += 1
        if self.looking is None or self.looking.done():
            self.looking = asyncio.create_task(self._look(), context=_shared_context())
        try:
            yield
        finally:
            self.readers[reply_id] -= 1
            if not self.readers[reply_id]:
                del self.readers[reply_id]

    async def _look(self) -> None:
        try:
            while self.readers:
                asked = frozenset(self.readers)
                self.texts = await sync_to_async(_texts)(asked)
                self.asked = asked
                self._tell()
                await asyncio.sleep(FOLLOW_SECONDS)
        finally:
            await sync_to_async(_release_connections)()
            self._tell()

    def _tell(self) -> None:
        looked, self.looked = self.looked, asyncio.Event()
        looked.set()


_watch = Watch()


def _texts(reply_ids: Iterable[int]) -> dict[int, str]:
    """Return the texts of those replies that are not complete."""
    replies.close_silent(pk__in=reply_ids)
    return dict(Message.objects.filter(pk__in=reply_ids, state__in=Message.ACTIVE).values_list("pk", "text"))


def _release_connections() -> None:
    """Close the connections of this thread. In a test, the transaction around it goes on."""
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close()


def _shared_context() -> contextvars.Context:
    """Return a context in which the database is used by a thread that all tasks share, instead of one per request."""
    context = contextvars.copy_context()
    context.run(SyncToAsync.thread_sensitive_context.set, None)
    return context


def _whole_message(request: HttpRequest, reply_id: int) -> str:
    """Return the reply as the page shows it, or nothing if its chat was deleted."""
    reply = Message.objects.filter(pk=reply_id).first()
    context = {"message": reply, "live_template": TEMPLATE}
    return render_to_string("chat/reply.html", context, request) if reply else ""


def event(name: str, data: str) -> str:
    """Return an event in the format of the protocol, which marks each line of the data."""
    return f"event: {name}\n" + "".join(f"data: {line}\n" for line in data.split("\n")) + "\n"


urlpatterns = [path("replies/<id:reply_id>/stream/", stream, name="stream")]

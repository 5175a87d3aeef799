"""What stands between an ASGI server and Django, which writes a body to the disk before any middleware runs.

Without this, anybody could fill the temporary folder with one request to any address.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from django.conf import settings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

TOO_LARGE, TOO_SLOW = 413, 408


def guarded(application: Application) -> Application:
    """Return the application with limits for the body of a request, and without a traceback for each web socket."""

    async def guard(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            # Django knows no web sockets. The server answers with 403.
            await receive()
            await send({"type": "websocket.close"})
        elif scope["type"] == "http":
            await _answer(application, scope, receive, send)
        else:
            await application(scope, receive, send)

    return guard


async def _answer(application: Application, scope: Message, receive: Receive, send: Send) -> None:
    body = Body(receive)
    if _announced_bytes(scope) > settings.REQUEST_MAX_BYTES:
        body.refusal = TOO_LARGE
    else:
        await application(scope, body.receive, send)
    if body.refusal:
        headers = [(b"connection", b"close"), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": body.refusal, "headers": headers})
        await send({"type": "http.response.body"})


def _announced_bytes(scope: Message) -> int:
    length = dict(scope["headers"]).get(b"content-length", b"")
    return int(length) if length.isdigit() else 0


class Body:
    """The body of a request, which may be neither too large nor too slow. `refusal` is the status if it is."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._began = time.monotonic()
        self._size = 0
        self._is_complete = False
        self.refusal = 0

    async def receive(self) -> Message:
        """Return the next message. Once the body is refused, Django hears that the visitor has left."""
        if self._is_complete:
            return await self._receive()
        until = self._began + settings.REQUEST_SECONDS + self._size / settings.REQUEST_BYTES_PER_SECOND
        try:
            message = await asyncio.wait_for(self._receive(), max(0, until - time.monotonic()))
        except TimeoutError:
            return self._refuse(TOO_SLOW)
        self._size += len(message.get("body", b""))
        if self._size > settings.REQUEST_MAX_BYTES:
            return self._refuse(TOO_LARGE)
        self._is_complete = not message.get("more_body", False)
        return message

    def _refuse(self, status: int) -> Message:
        self._is_complete = True
        self.refusal = status
        return {"type": "http.disconnect"}

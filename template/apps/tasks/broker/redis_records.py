"""Kombu's messages on Redis, and its records of unacknowledged ones, for broken messages and a server that refuses."""

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import Any

from kombu.transport import redis, virtual
from kombu.utils.json import dumps
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import OutOfMemoryError
from redis.exceptions import TimeoutError as NoAnswer

logger = logging.getLogger(__name__)

# The delivery tags of messages whose tasks have ended, which could not be acknowledged to the server yet.
untold: set[str] = set()
# Whether a message is requeued now because nobody has acknowledged it in time, so that its worker may have died.
is_overdue: ContextVar[bool] = ContextVar("is_overdue", default=False)


class Message(virtual.Message):
    """A message. If a part of its envelope is broken, it has no headers, and its body is the envelope as text."""

    def __init__(self, payload: dict[str, Any], channel: Any = None, **options: Any) -> None:
        try:
            super().__init__(payload, channel, **options)
            dicts = (self.headers, self.properties, self.delivery_info)
            is_whole = all(isinstance(each, dict) for each in dicts) and isinstance(self.body, bytes | str | None)
        except Exception:
            is_whole = False
        if not is_whole:
            properties = {name: payload["properties"][name] for name in ("delivery_tag", "delivery_info")}
            if not isinstance(properties["delivery_info"], dict):
                properties["delivery_info"] = {}
            super().__init__({"body": dumps(payload), "properties": properties}, channel, **options)


class QoS(redis.QoS):
    """Kombu's record of unacknowledged messages. The script has already recorded the messages that it took."""

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message: with the next message that is taken, at once, or when the server accepts it."""
        untold.add(delivery_tag)
        # Its slot is free, whatever the server knows.
        virtual.QoS.ack(self, delivery_tag)
        if not self.channel.takes_soon:
            self.tell()
        if transport := self.channel.connection:
            transport.slot_is_free.set()

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Drop or requeue a message. If it cannot be requeued now, the server redelivers it later."""
        if not requeue:
            self.ack(delivery_tag)
            return
        try:
            super().reject(delivery_tag, requeue=True)
        finally:
            virtual.QoS.ack(self, delivery_tag)

    def tell(self) -> None:
        """Acknowledge what has ended, or log that the server cannot accept that now."""
        try:
            self._tell_all()
        except self.channel.connection_errors as error:
            logger.warning("The broker is told later that a task has ended: %s", error)

    def _tell_all(self) -> None:
        for delivery_tag in tuple(untold):
            self._remove_from_indices(delivery_tag).execute()
            untold.discard(delivery_tag)

    def restore_visible(self, *args: Any, **options: Any) -> None:
        """Send the delayed acknowledgements, and then requeue what is overdue."""
        self._tell_all()
        token = is_overdue.set(True)
        try:
            # A server whose memory is full cannot requeue anything. It is asked again soon.
            with suppress(OutOfMemoryError):
                super().restore_visible(*args, **options)
        finally:
            is_overdue.reset(token)

    def keep(self, delivery_tags: Iterable[str]) -> None:
        """Do not requeue these messages when the channel closes, because their tasks go on without it.

        When a task ends, its message is acknowledged by its tag. If the worker dies first, the server redelivers it.
        """
        for delivery_tag in delivery_tags:
            self._delivered.pop(delivery_tag, None)

    def restore_unacked(self, client: Any = None) -> None:
        """Requeue what this process has taken and not acknowledged. One that cannot be requeued stops no other."""
        _attempt(self._tell_all)
        self._flush()
        for delivery_tag in tuple(self._delivered):
            _attempt(partial(self.restore_by_tag, delivery_tag, client))
        self._delivered.clear()

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Requeue what this process has taken, because the channel closes. The server redelivers the rest later."""
        try:
            self._tell_all()
            super().restore_unacked_once(stderr)
        except self.channel.connection_errors as error:
            logger.warning("The broker will deliver again what cannot be given back now: %s", error)

    def append(self, message: virtual.Message, delivery_tag: str) -> None:
        """Remember a delivered message."""
        if self.channel.taking:
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)


def _attempt(step: Callable[[], object]) -> None:
    """Call a function, and log what it raises, unless no other call would succeed either."""
    try:
        step()
    except (ConnectionLost, NoAnswer):
        raise
    except Exception as error:
        logger.error("The broker will deliver again what cannot be given back: %s", error)

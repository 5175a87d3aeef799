"""Kombu's records of unacknowledged messages on Redis, for a server that cannot accept an update at the moment."""

import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from kombu.transport import redis, virtual
from redis.exceptions import OutOfMemoryError

logger = logging.getLogger(__name__)

# The delivery tags of messages whose tasks have ended, which could not be acknowledged to the server yet.
untold: set[str] = set()


class QoS(redis.QoS):
    """Kombu's record of unacknowledged messages. The script has already recorded the messages that it took."""

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message. If the server cannot accept that now, acknowledge it later."""
        try:
            self._remove_from_indices(delivery_tag).execute()
        except self.channel.connection_errors as error:
            untold.add(delivery_tag)
            logger.warning("The broker is told later that a task has ended: %s", error)
        # Its slot is free, whatever the server knows.
        virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Drop or requeue a message. If it cannot be requeued now, the server redelivers it later."""
        if not requeue:
            self.ack(delivery_tag)
            return
        try:
            super().reject(delivery_tag, requeue=True)
        finally:
            virtual.QoS.ack(self, delivery_tag)

    def _tell(self) -> None:
        for delivery_tag in tuple(untold):
            self._remove_from_indices(delivery_tag).execute()
            untold.discard(delivery_tag)

    def restore_visible(self, *args: Any, **options: Any) -> None:
        """Send the delayed acknowledgements, and then requeue what is overdue."""
        self._tell()
        # A server whose memory is full cannot requeue anything. It is asked again soon.
        with suppress(OutOfMemoryError):
            super().restore_visible(*args, **options)

    def keep(self, delivery_tags: Iterable[str]) -> None:
        """Do not requeue these messages when the channel closes, because their tasks go on without it.

        When a task ends, its message is acknowledged by its tag. If the worker dies first, the server redelivers it.
        """
        for delivery_tag in delivery_tags:
            self._delivered.pop(delivery_tag, None)

    def restore_unacked(self, client: Any = None) -> None:
        """Requeue what this process has taken and not acknowledged."""
        self._tell()
        self._flush()
        super().restore_unacked(client)

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Requeue what this process has taken, because the channel closes. The server redelivers the rest later."""
        try:
            self._tell()
            super().restore_unacked_once(stderr)
        except self.channel.connection_errors as error:
            logger.warning("The broker will deliver again what cannot be given back now: %s", error)

    def append(self, message: virtual.Message, delivery_tag: str) -> None:
        """Remember a delivered message."""
        if self.channel.taking:
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

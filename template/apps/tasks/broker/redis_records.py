"""Kombu's records of unacknowledged messages on Redis, for a server that cannot be told now what it must know."""

import logging
from contextlib import suppress
from typing import Any

from kombu.transport import redis, virtual
from redis.exceptions import OutOfMemoryError

logger = logging.getLogger(__name__)

# The tags of messages whose tasks have ended, which no server could be told yet.
untold: set[str] = set()


class QoS(redis.QoS):
    """Kombu's record of unacknowledged messages, which the script has written already for those that it took."""

    def ack(self, delivery_tag: str) -> None:
        """Have the server forget a message; if it cannot be told now, later."""
        try:
            self._remove_from_indices(delivery_tag).execute()
        except self.channel.connection_errors as error:
            untold.add(delivery_tag)
            logger.warning("The broker is told later that a task has ended: %s", error)
        # Its place is free, whatever the server knows.
        virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Have the server forget a message, or give it to somebody else; what cannot be given back now comes back."""
        if not requeue:
            self.ack(delivery_tag)
            return
        try:
            super().reject(delivery_tag, requeue=True)
        finally:
            virtual.QoS.ack(self, delivery_tag)

    def restore_visible(self, *args: Any, **options: Any) -> None:
        """Tell what has ended, and then give back what is overdue."""
        for delivery_tag in tuple(untold):
            self._remove_from_indices(delivery_tag).execute()
            untold.discard(delivery_tag)
        # A full memory takes nothing back. It is asked again soon.
        with suppress(OutOfMemoryError):
            super().restore_visible(*args, **options)

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Give back what this process has taken, because the channel closes; what cannot be now comes back later."""
        try:
            super().restore_unacked_once(stderr)
        except self.channel.connection_errors as error:
            logger.warning("The broker will deliver again what cannot be given back now: %s", error)

    def append(self, message: virtual.Message, delivery_tag: str) -> None:
        """Remember a message that was delivered."""
        if self.channel.taking:
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

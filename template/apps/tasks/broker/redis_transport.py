"""A transport for Redis and Valkey without kombu's window: a message leaves the queue and is recorded in one step.

Kombu takes a message with BRPOP and then records it as unacknowledged. If the worker, the server or the connection dies
in between, the message is lost. A script takes and records in one step, but cannot wait for a message. So senders also
ring a bell, which is a list beside each queue, and idle workers wait for that. If nobody hears the bell, or another
program sent the message without ringing, the message is late by at most one second. Queues and records are kombu's own,
so workers, senders and tools with kombu's transport can be mixed with this one.

While messages wait, a slot must not stand empty for longer than one round trip. So the script that takes a message also
acknowledges those whose tasks have ended, and a worker without an event loop is woken as soon as a slot is free.

A server that refuses commands, for example because it has become a replica, is treated like a server that is down:
clients connect again, by its name, until a server accepts tasks. A server whose memory is full stays in use, because
tasks that are taken free some of it.
"""

import logging
import threading
from collections.abc import Iterable
from queue import Empty
from time import monotonic, time
from typing import Any

from celery import current_app
from kombu.transport import redis
from kombu.utils.json import dumps
from redis.exceptions import NoPermissionError, OutOfMemoryError, ResponseError

from .priorities import NO_PRIORITY
from .redis_records import Message, QoS, is_overdue, untold
from .redis_rights import examine, lacking_right, refusal
from .redis_scripts import PUT, TAKE

logger = logging.getLogger(__name__)

# A longer bell list would only wake idle workers for messages that others have taken long ago.
BELL_RINGS = 10
# Nobody hears the bells of temporary reply queues, such as those of `inspect`, so these bells must expire.
BELL_MILLISECONDS = 60_000
# For how long a queue remembers what was sent to it. A sender tries again for some seconds, and the outbox for minutes.
SENT_SECONDS = 300
# How often a worker without an event loop, whose slots are all taken, listens to remote commands, in seconds.
FULL_SECONDS = 0.05


class Channel(redis.Channel):
    """A channel that takes messages by the script, unless a consumer wants them unrecorded."""

    Message = Message
    QoS = QoS
    default_priority = NO_PRIORITY

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._unrecorded: set[str] = set()
        self._asked = "BRPOP"
        self._found_nothing = False
        self._telling: tuple[str, ...] = ()
        super().__init__(*args, **kwargs)

    def _create_client(self, asynchronous: bool = False) -> Any:
        # Without transactions where kombu needs none: a server whose memory is full refuses transactions, even if they
        # would free memory.
        client = super()._create_client(asynchronous)
        pipeline = client.pipeline
        client.pipeline = lambda transaction=False, shard_hint=None: pipeline(transaction, shard_hint)
        return client

    def examine(self, everything: bool = False) -> OutOfMemoryError | None:
        """Ask whether a task can be sent now or, with `everything`, taken as well.

        Returns the error of a server whose memory is full, because its queues can still be drained. Raises all other
        errors.
        """
        return examine(self, sorted(current_app.amqp.queues), everything)

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        """Record that the queue gets what is sent to the exchange.

        If the server's memory is full, ignore that for a binding that it already has, or that is short-lived. A worker
        that waited for memory would not take the tasks that fill it.
        """
        try:
            super()._queue_bind(exchange, routing_key, pattern, queue)
        except OutOfMemoryError:
            if queue not in self._expires and all(name != queue for *_, name in self.get_table(exchange)):
                raise

    def _do_restore_message(self, payload: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Requeue a message. Say in it whether a living worker gives it back, because only deaths count against it."""
        if not isinstance(payload.get("headers"), dict):
            # Kombu would lose such a message.
            payload["headers"] = {}
        payload["headers"]["given_back"] = not is_overdue.get()
        super()._do_restore_message(payload, *args, **kwargs)

    def _delete(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._delete(*args, **kwargs)
        except self.connection_errors:
            # While the channel closes, it deletes queues that nobody needs any more. An error would leave it half open.
            if not self._closing:
                raise

    @property
    def taking(self) -> bool:
        """Whether the awaited or just delivered answer comes from the script."""
        return self._asked == "TAKE"

    @property
    def takes_soon(self) -> bool:
        """Whether this channel is about to ask by the script, so that acknowledgements can go with it."""
        uses_script = bool(self.active_queues) and self._unrecorded.isdisjoint(self.active_queues)
        # A bell may be silent for a second. The script answers at once.
        return uses_script and (self.taking or not self._in_poll) and self.qos.can_consume()

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        """Start to consume the queue."""
        (self._unrecorded.add if no_ack or not self.ack_emulation else self._unrecorded.discard)(queue)
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def _put(self, queue: str, message: dict[str, Any], _publish_batch: Any = None, **kwargs: Any) -> None:
        """Append the message to its queue and ring the bell, unless this very sending has already done so."""
        if queue in self._expires:
            return super()._put(queue, message, _publish_batch=_publish_batch, **kwargs)
        keys = [self._q_for_pri(queue, self._get_message_priority(message, reverse=False)), self._bell(queue)]
        if token := (message.get("headers") or {}).get("sending"):
            keys.append(f"{queue}{self.sep}sent-{token}")
        values = (dumps(message), BELL_RINGS - 1, BELL_MILLISECONDS, SENT_SECONDS)
        command = (PUT, len(keys), *self._prefixed(keys), *values)
        if _publish_batch is not None:
            _publish_batch.add("eval", *command)
            return None
        with self.conn_or_acquire() as client:
            client.eval(*command)

    def _bell(self, queue: str) -> str:
        return f"{queue}{self.sep}bell"

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Ask for a message or, after an empty answer, wait for a bell."""
        if not self._unrecorded.isdisjoint(self.active_queues):
            self._asked = "BRPOP"
            return super()._brpop_start(timeout)
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return None
        self._asked = "BELL" if self._found_nothing and not untold else "TAKE"
        self._found_nothing = False
        self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        if self.taking:
            keys = [self._q_for_pri(queue, priority) for priority in self.priority_steps for queue in queues]
            keys = self._prefixed([*keys, self.unacked_key, self.unacked_index_key])
            names = list(queues) * len(self.priority_steps)
            self._telling = tuple(untold)
            self._in_poll.send_command("EVAL", TAKE, len(keys), *keys, time(), *names, *self._telling)
        else:
            bells = self._prefixed(map(self._bell, queues))
            self._in_poll.send_command("BRPOP", *bells, timeout or self.brpop_timeout or 0)

    def _prefixed(self, keys: Iterable[str]) -> list[str]:
        return [self.global_keyprefix + key for key in keys]

    def _brpop_read(self, **options: Any) -> bool:
        """Deliver the message that was taken. Raise Empty if there was none, or only a bell."""
        if self._asked == "BELL":
            self._hear_bell(**options)
            raise Empty
        try:
            # The script answers as BRPOP does: with the queue and the message.
            delivered = super()._brpop_read(**options)
        except Empty:
            self._found_nothing = True
            untold.difference_update(self._telling)
            raise
        untold.difference_update(self._telling)
        return delivered

    def _basic_cancel(self, consumer_tag: str) -> None:
        super()._basic_cancel(consumer_tag)
        # Nothing is taken any more.
        self.qos.tell()

    def _hear_bell(self, **options: Any) -> None:
        try:
            self.client.parse_response(self.client.connection, "BRPOP", **options)
        except self.connection_errors:
            self.client.connection.disconnect()
            raise
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        # The task ended after its connection had been closed. Kombu's AttributeError would end the worker.
        if not (self.connection and self.connection.client):
            raise ConnectionError("The connection to the broker was lost.")
        return super()._connparams(asynchronous)


class Transport(redis.Transport):
    """Kombu's transport with these channels."""

    Channel = Channel
    # A server that answers with an error accepts no tasks now, or another server has taken its place.
    connection_errors = (*redis.Transport.connection_errors, ResponseError)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._restored_at = 0.0
        self.slot_is_free = threading.Event()

    def establish_connection(self) -> Any:
        """Connect. Raise a connection error if the server is down, accepts nothing now, or forbids something."""
        try:
            connection = super().establish_connection()
        except NoPermissionError as error:
            raise refusal(self.client.userid, lacking_right(error, "")) from None
        try:
            self._avail_channels[-1].examine()
        except self.connection_errors:
            self._avail_channels.pop().close()
            raise
        return connection

    def drain_events(self, connection: Any, timeout: float | None = None) -> None:
        """Deliver the next message. Raise socket.timeout if there is none."""
        self._restore(connection.client.transport_options)
        # Without an event loop, as on gevent, kombu would wait for the server although a slot has become free.
        self.slot_is_free.clear()
        is_full = timeout and not all(channel.qos.can_consume() for channel in self.cycle._channels)
        if is_full and not self.slot_is_free.wait(min(timeout, FULL_SECONDS)):
            timeout = 0
        super().drain_events(connection, timeout=timeout)

    def _restore(self, options: dict[str, Any]) -> None:
        """Requeue the messages of dead workers as often as a worker with an event loop does.

        Without an event loop, kombu does so only after a wait in which Redis sends nothing, but Redis says every second
        that a queue is empty.
        """
        if monotonic() - self._restored_at >= options.get("unacked_restore_interval", Channel.unacked_restore_interval):
            self._restored_at = monotonic()
            self.cycle.maybe_restore_messages()

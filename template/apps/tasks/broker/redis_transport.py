"""Redis and Valkey as broker, without kombu's window: a message that leaves the queue is on record in the same step.

Kombu takes a message with BRPOP and then writes it down as unacknowledged. If the worker, the server or the connection
dies in between, nobody has it any more. A script takes and records in one step, but cannot wait for a message, so
senders also ring a bell, a list beside each queue, and idle workers wait for that. A bell that is not heard, or not
rung because another program sent the message, delays it for a second at most. Queues and records are kombu's own:
workers, senders and tools that use its transport go along with this one.

A server that refuses what it is asked, as one does that has become a replica, is for everybody like one that is away:
they connect anew, by its name, until one takes tasks. One without memory is asked on, because tasks that are taken give
it some back.
"""

import logging
from collections.abc import Iterable
from queue import Empty
from time import monotonic, time
from typing import Any

from celery import current_app
from kombu.transport import redis
from kombu.utils.json import dumps
from redis.exceptions import NoPermissionError, OutOfMemoryError, ResponseError

from .redis_records import QoS
from .redis_rights import examine, lacking_right, refusal

logger = logging.getLogger(__name__)

# More would only wake idle workers for messages that others have taken long ago.
BELL_RINGS = 10
# Nobody hears the bells of queues that last for one answer, as a look at the workers makes them: they must not stay.
BELL_MILLISECONDS = 60_000
# How often a worker without an event loop looks for a free place.
FULL_SECONDS = 0.05

# KEYS: the queues, best priority first, then the two records that kombu keeps. RPOP comes first, because a server whose
# memory is full refuses the others as the first write of a script: a full queue could not be emptied.
TAKE = """
for i = 1, #KEYS - 2 do
  local item = redis.call('RPOP', KEYS[i])
  if item then
    pcall(function()
      local properties = cjson.decode(item).properties
      local tag, info = properties.delivery_tag, properties.delivery_info
      local names = cjson.encode(info.exchange) .. ',' .. cjson.encode(info.routing_key)
      redis.call('HSET', KEYS[#KEYS - 1], tag, '[' .. item .. ',' .. names .. ']')
      redis.call('ZADD', KEYS[#KEYS], ARGV[1], tag)
    end)
    return {KEYS[i], item}
  end
end
return false
"""


class Channel(redis.Channel):
    """A channel that takes messages by the script, unless a consumer wants them unrecorded."""

    QoS = QoS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._unrecorded: set[str] = set()
        self._asked = "BRPOP"
        self._found_nothing = False
        super().__init__(*args, **kwargs)

    def _create_client(self, asynchronous: bool = False) -> Any:
        # No transactions where kombu needs none: a server without memory refuses even those that make room.
        client = super()._create_client(asynchronous)
        pipeline = client.pipeline
        client.pipeline = lambda transaction=False, shard_hint=None: pipeline(transaction, shard_hint)
        return client

    def examine(self, everything: bool = False) -> OutOfMemoryError | None:
        """Ask whether a task can be sent now or, with `everything`, taken as well.

        Returns the error of a server whose memory is full, since that can be emptied; raises all others.
        """
        return examine(self, sorted(current_app.amqp.queues), everything)

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        """Write down that the queue gets what is sent to the exchange.

        A server without memory need not be told what it knows, or what lasts shortly: a worker that waited for memory
        would not take the tasks that fill it.
        """
        try:
            super()._queue_bind(exchange, routing_key, pattern, queue)
        except OutOfMemoryError:
            if queue not in self._expires and all(name != queue for *_, name in self.get_table(exchange)):
                raise

    def _delete(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._delete(*args, **kwargs)
        except self.connection_errors:
            # Those that nobody needs any more, when the channel closes: an error would leave it half open.
            if not self._closing:
                raise

    @property
    def taking(self) -> bool:
        """Whether the answer that is awaited, or just delivered, comes from the script."""
        return self._asked == "TAKE"

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        """Begin to take messages from the queue."""
        (self._unrecorded.add if no_ack or not self.ack_emulation else self._unrecorded.discard)(queue)
        return super().basic_consume(queue, no_ack, *args, **kwargs)

    def _put(self, queue: str, message: dict[str, Any], _publish_batch: Any = None, **kwargs: Any) -> None:
        """Append the message to its queue and ring, in one transaction or, for kombu, in a batch."""
        if queue in self._expires:
            return super()._put(queue, message, _publish_batch=_publish_batch, **kwargs)
        key = self._q_for_pri(queue, self._get_message_priority(message, reverse=False))
        bell = self._bell(queue)
        commands = (
            ("lpush", key, dumps(message)),
            ("lpush", bell, ""),
            ("ltrim", self.global_keyprefix + bell, 0, BELL_RINGS - 1),
            ("pexpire", bell, BELL_MILLISECONDS),
        )
        if _publish_batch is not None:
            for name, *arguments in commands:
                _publish_batch.add(name, *arguments)
            return None
        with self.conn_or_acquire() as client, client.pipeline(transaction=True) as pipe:
            for name, *arguments in commands:
                getattr(pipe, name)(*arguments)
            pipe.execute()

    def _bell(self, queue: str) -> str:
        return f"{queue}{self.sep}bell"

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Ask for a message, or after an empty answer wait for a bell."""
        if not self._unrecorded.isdisjoint(self.active_queues):
            self._asked = "BRPOP"
            return super()._brpop_start(timeout)
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return None
        self._asked = "BELL" if self._found_nothing else "TAKE"
        self._found_nothing = False
        self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()
        if self.taking:
            keys = [self._q_for_pri(queue, priority) for priority in self.priority_steps for queue in queues]
            keys = self._prefixed([*keys, self.unacked_key, self.unacked_index_key])
            self._in_poll.send_command("EVAL", TAKE, len(keys), *keys, time())
        else:
            bells = self._prefixed(map(self._bell, queues))
            self._in_poll.send_command("BRPOP", *bells, timeout or self.brpop_timeout or 0)

    def _prefixed(self, keys: Iterable[str]) -> list[str]:
        return [self.global_keyprefix + key for key in keys]

    def _brpop_read(self, **options: Any) -> bool:
        """Deliver the message that was taken; raise Empty if there was none, or only a bell."""
        if self._asked == "BELL":
            self._hear_bell(**options)
            raise Empty
        try:
            # The script answers as BRPOP does: with the queue and the message.
            return super()._brpop_read(**options)
        except Empty:
            self._found_nothing = True
            raise

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
        # A task that ends after its connection was given up: kombu's AttributeError would end the worker.
        if not (self.connection and self.connection.client):
            raise ConnectionError("The connection to the broker was lost.")
        return super()._connparams(asynchronous)


class Transport(redis.Transport):
    """Kombu's transport with these channels."""

    Channel = Channel
    # A server that answers with an error takes no tasks now, or another one has taken its place.
    connection_errors = (*redis.Transport.connection_errors, ResponseError)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._restored_at = 0.0

    def establish_connection(self) -> Any:
        """Connect; raise an error of the connection if the server is away, takes nothing now, or forbids something."""
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
        """Deliver what comes next; raise socket.timeout if nothing does."""
        self._restore(connection.client.transport_options)
        # Without an event loop, as on gevent, nothing tells a worker whose places are all taken that one is free.
        if timeout and not all(channel.qos.can_consume() for channel in self.cycle._channels):
            timeout = min(timeout, FULL_SECONDS)
        super().drain_events(connection, timeout=timeout)

    def _restore(self, options: dict[str, Any]) -> None:
        """Give back what dead workers held, as often as a worker with an event loop does.

        Without one kombu does so only after a wait in which Redis has sent nothing, but it says each second that a
        queue is empty.
        """
        if monotonic() - self._restored_at >= options.get("unacked_restore_interval", Channel.unacked_restore_interval):
            self._restored_at = monotonic()
            self.cycle.maybe_restore_messages()

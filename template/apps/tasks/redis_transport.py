"""Redis and Valkey as broker, without kombu's window: a message that leaves the queue is on record in the same step.

Kombu takes a message with BRPOP and then writes it down as unacknowledged. If the worker, the server or the connection
dies in between, nobody has it any more. A script takes and records in one step, but cannot wait for a message, so
senders also ring a bell, a list beside each queue, and idle workers wait for that. A bell that is not heard, or not
rung because another program sent the message, delays it for a second at most. Queues and records are kombu's own:
workers, senders and tools that use its transport go along with this one.

A server that answers "not now", as one that has become a replica does, is treated like one that is away. What a worker
could not tell its server about a task that has ended, it tells as soon as there is one again.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty
from time import monotonic, time
from typing import Any

from celery import current_app
from kombu.transport import redis, virtual
from kombu.utils.json import dumps
from redis.exceptions import NoPermissionError, ResponseError

from . import redis_rights
from .errors import Refused
from .redis_answers import AttentiveConnection, FullMemory, NotNow

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


# What no server has been told of the messages that this process has: True for "give it back", False for "it is done",
# None while a task still runs whose connection was lost. A process takes tasks from one broker.
untold: dict[str, bool | None] = {}


class QoS(redis.QoS):
    """Kombu's record of unacknowledged messages, which the script has written already for those that it took."""

    def keep(self, delivery_tag: str) -> None:
        """Do not give this message back when the channel closes, because its task runs on."""
        if self._delivered.pop(delivery_tag, None) is not None:
            untold[delivery_tag] = None

    def ack(self, delivery_tag: str) -> None:
        """Have the server forget a message; if it cannot be told now, later."""
        self._tell(delivery_tag, give_back=False)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Have the server forget a message, or give it to somebody else; if it cannot be told now, later."""
        self._tell(delivery_tag, give_back=requeue)

    def _tell(self, delivery_tag: str, give_back: bool) -> None:
        untold[delivery_tag] = give_back
        try:
            self._tell_server(delivery_tag, give_back)
        except self.channel.connection_errors as error:
            logger.warning("The broker will be told later that a task has ended: %s", error)
        # Its place is free, whatever the server knows.
        virtual.QoS.ack(self, delivery_tag)

    def _tell_server(self, delivery_tag: str, give_back: bool) -> None:
        with self.channel.conn_or_acquire() as client:
            if give_back:
                self.restore_by_tag(delivery_tag, client, leftmost=True)
            else:
                # No transaction: a server whose memory is full refuses that, although it makes room.
                self._remove_from_indices(delivery_tag, client.pipeline(transaction=False)).execute()
        untold.pop(delivery_tag, None)

    def _catch_up(self) -> None:
        ended = [(give_back, tag) for tag, give_back in tuple(untold.items()) if give_back is not None]
        # What is done comes first: a full memory takes nothing back.
        for give_back, tag in sorted(ended):
            self._tell_server(tag, give_back)

    def restore_visible(self, *args: Any, **options: Any) -> None:
        """Give back what is overdue, but first tell what has ended. A server that takes nothing now is asked again."""
        try:
            self._catch_up()
            super().restore_visible(*args, **options)
        except NotNow as error:
            logger.debug("Nothing is given back now: %s", error)

    def restore_all(self) -> None:
        """Give back what this process has, whichever connection it came by."""
        self._catch_up()
        for tag in tuple(untold):
            self._tell_server(tag, give_back=True)
        self.restore_unacked()

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Tell what has ended, and give back the rest, because the channel closes."""
        with suppress(*self.channel.connection_errors):
            self._catch_up()
        super().restore_unacked_once(stderr)

    def append(self, message: virtual.Message, delivery_tag: str) -> None:
        """Remember a message that was delivered."""
        if self.channel.taking:
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)


class Channel(redis.Channel):
    """A channel that takes messages by the script, unless a consumer wants them unrecorded."""

    QoS = QoS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._unrecorded: set[str] = set()
        self._asked = "BRPOP"
        self._found_nothing = False
        with self._explained():
            super().__init__(*args, **kwargs)

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """Yield a client; raise Refused with what is missing if its user may not do what is asked of it."""
        with self._explained(), super().conn_or_acquire(client) as client:
            yield client

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except NoPermissionError as error:
            raise Refused(self._explanation(str(error))) from error

    def _explanation(self, refusal: str) -> str:
        words = ""
        with suppress(*redis.Transport.connection_errors):
            words = " ".join(redis_rights.missing(self.pool.get_connection(), self._all_rights()))
        user = (self.connection and self.connection.client.userid) or "default"
        remedy = f"ACL SETUSER {user} {words}" if words else "see its ACL"
        return f"Redis does not let its user {user} do what tasks need ({refusal}). To allow it: {remedy}"

    def _all_rights(self) -> list[redis_rights.Right]:
        prefix, database = self.global_keyprefix, self.pool.connection_kwargs["db"]
        names = [self._prefixed([queue, self._bell(queue)]) for queue in sorted(current_app.amqp.queues)]
        return [
            *(redis_rights.to_send(*keys) for keys in names),
            *(redis_rights.to_take(*keys) for keys in names),
            redis_rights.to_keep_records(prefix),
            *redis_rights.to_talk(prefix, database),
            redis_rights.of_no_key(database),
        ]

    def try_to_send(self, queue: str) -> None:
        """Raise the error that a task for this queue would meet now, without sending one."""
        rights = [redis_rights.to_send(*self._prefixed([queue, self._bell(queue)]))]
        if words := redis_rights.missing(self.pool.get_connection(), rights):
            raise Refused(self._explanation(" ".join(words)))

    def try_to_write(self) -> None:
        """Raise an error of the connection if the server takes no writes now. A full memory is none: we empty it."""
        with suppress(ResponseError):
            self.client.zrem(self.unacked_index_key, "")

    # Kombu looks at queues, empties and deletes them in transactions, which a full memory refuses.

    def _size(self, queue: str) -> int:
        return sum(self._of_each_priority("llen", queue))

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return any(self._of_each_priority("exists", queue))

    def _purge(self, queue: str) -> int:
        size = self._size(queue)
        self._of_each_priority("delete", queue)
        return size

    def _delete(self, queue: str, exchange: str, routing_key: str, pattern: str, *args: Any, **kwargs: Any) -> None:
        self.auto_delete_queues.discard(queue)
        binding = self.sep.join([routing_key or "", pattern or "", queue or ""])
        with self.conn_or_acquire(kwargs.get("client")) as client:
            for key in (self.keyprefix_queue, self.keyprefix_binding_permanent):
                client.srem(key % exchange, binding)
        self._of_each_priority("delete", queue)

    def _of_each_priority(self, command: str, queue: str) -> list[int]:
        with self.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
            for priority in self.priority_steps:
                getattr(pipe, command)(self._q_for_pri(queue, priority))
            return pipe.execute()

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        """Write down that the queue gets what is sent to the exchange; a full memory need not know what lasts shortly.

        A worker that waited for the memory would not empty it.
        """
        try:
            super()._queue_bind(exchange, routing_key, pattern, queue)
        except FullMemory:
            # Broadcasts need no record. That of a queue which expires is written again and again.
            is_needless = self.typeof(exchange).type == "fanout" or queue in self._expires
            if not is_needless and all(name != queue for *_, name in self.get_table(exchange)):
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
        with self.conn_or_acquire() as client, client.pipeline() as pipe:
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
            with self._explained():
                return super()._brpop_read(**options)
        except Empty:
            self._found_nothing = True
            raise

    def _receive(self) -> Any:
        with self._explained():
            return super()._receive()

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
        params = super()._connparams(asynchronous)

        class Connection(AttentiveConnection, params["connection_class"]):
            pass

        return params | {"connection_class": Connection}


class Transport(redis.Transport):
    """Kombu's transport with these channels."""

    Channel = Channel
    # Said apart, so that a worker does not try again for ever to connect to a server that refuses it.
    recoverable_connection_errors = redis.Transport.connection_errors
    recoverable_channel_errors = redis.Transport.channel_errors

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._restored_at = 0.0

    def establish_connection(self) -> Any:
        """Connect; raise an error of the connection if the server is away, or takes no writes now."""
        connection = super().establish_connection()
        channel = self._avail_channels[-1]
        try:
            channel.try_to_write()
        except self.connection_errors:
            self._avail_channels.remove(channel)
            channel.close()
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

"""A transport for RabbitMQ that does not wait forever: a message that is not confirmed in time is an error.

Py-amqp bounds this wait with a socket option that has no effect under gevent: if a broker froze for a few seconds, a
greenlet waited forever, and so did everybody who wanted to send after it.

Py-amqp takes any confirmation for that of the last message. If one arrived late, it would confirm the message after
its own, which could then be lost unnoticed. So a connection is closed when its last message was not answered.

While RabbitMQ has a memory or disk alarm, it reports the alarm as soon as somebody sends, and stops reading. This, too,
is an immediate error. RabbitMQ accepts what has been sent by then once the alarm is over, so during the alarm only a
probe is sent.

In a gevent worker, the loop that takes tasks and the heartbeat read from the same connection. Gevent refuses the second
reader, and the worker would lose its connection every few seconds. So only one of them reads, and the others wait.
That loop also waits a tenth of a second for the broker's heartbeats after each message, which would limit the worker to
ten tasks per second. So it only looks whether there are any.
"""

import threading
from contextlib import suppress
from typing import Any, NoReturn

from amqp import Message
from amqp.exceptions import AccessRefused, Blocked, ChannelError, MessageNacked
from kombu.transport import pyamqp

# Seconds that Celery's loop for gevent waits for a heartbeat, and that it waits here.
CELERYS_LOOK_SECONDS, LOOK_SECONDS = 0.1, 0.001


class Channel(pyamqp.Channel):
    """A channel that waits for a confirmation as long as for any other answer."""

    def basic_publish_confirm(self, *args: Any, confirm_timeout: float | None = None, **kwargs: Any) -> Any:
        """Publish, and wait for the confirmation. Raise TimeoutError if it does not arrive within these seconds."""
        # If another error has closed the connection, py-amqp reports it and kombu opens a new one.
        seconds = confirm_timeout or (self.connection and self.connection.transport.read_timeout)
        if Connection.is_blocked:
            self.examine()
            Connection.is_blocked = False
        return self._publish_and_wait(*args, confirm_timeout=seconds, **kwargs)

    def examine(self, everything: bool = False) -> None:
        """Send a message that no queue gets. Raise a connection error if RabbitMQ does not accept it."""
        seconds = self.connection and self.connection.transport.read_timeout
        with suppress(AccessRefused):
            self._publish_and_wait(Message(), exchange="", routing_key="to.no.queue", confirm_timeout=seconds)

    def _publish_and_wait(self, *args: Any, **kwargs: Any) -> Any:
        connection = self.connection
        try:
            return super().basic_publish_confirm(*args, **kwargs)
        except (ChannelError, MessageNacked):
            # These are answers.
            raise
        except BaseException:
            # Among others, a time limit of the task that sends can end the wait at any moment.
            if connection:
                connection.collect()
            raise


class Connection(pyamqp.Connection):
    """A connection with these channels."""

    Channel = Channel
    # Whether the last message of this process ran into an alarm.
    is_blocked = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The reader may wait for another answer when it handles what it has read.
        self._reading = threading.RLock()
        self._has_read = threading.Condition()
        self._reads = 0

    def drain_events(self, timeout: float | None = None) -> None:
        """Read until something has arrived. Raise TimeoutError if nothing arrives within these seconds.

        If another thread or greenlet is reading, wait until it has: it may have read the expected answer. Its lock
        alone would not do. A busy loop takes that again before anybody else hears that it was free.
        """
        reads = self._reads
        if self._reading.acquire(blocking=False):
            try:
                super().drain_events(timeout)
            finally:
                self._reading.release()
                with self._has_read:
                    self._reads += 1
                    self._has_read.notify_all()
            return
        with self._has_read:
            if not self._has_read.wait_for(lambda: self._reads != reads, timeout):
                raise TimeoutError

    def _on_blocked(self) -> NoReturn:
        Connection.is_blocked = True
        raise Blocked("RabbitMQ takes nothing now, because its memory or its disk is full.")


class Transport(pyamqp.Transport):
    """Kombu's transport with these connections."""

    Connection = Connection

    def drain_events(self, connection: Connection, timeout: float | None = None, **kwargs: Any) -> None:
        """Read from the connection as it does, but only look where Celery's loop for gevent waits for a heartbeat."""
        timeout = LOOK_SECONDS if timeout == CELERYS_LOOK_SECONDS else timeout
        super().drain_events(connection, timeout=timeout, **kwargs)


class SSLTransport(Transport, pyamqp.SSLTransport):
    """The same with TLS."""

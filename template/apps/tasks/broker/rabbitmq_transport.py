"""RabbitMQ as broker, without waiting for ever: a message that is not confirmed in time is an error.

Py-amqp bounds this wait by an option of the socket, which does nothing under gevent: there a broker that froze for
seconds left a greenlet waiting for good, and with it everybody who wanted to send after it.

RabbitMQ with an alarm, of its memory or its disk, says so as soon as somebody sends, and reads nothing more. That is an
error at once, too. What has been sent by then it takes when the alarm is over, so until then only a probe is sent.
"""

from contextlib import suppress
from typing import Any, NoReturn

from amqp import Message
from amqp.exceptions import AccessRefused, Blocked
from kombu.transport import pyamqp


class Channel(pyamqp.Channel):
    """A channel that waits for a confirmation as long as for any other answer."""

    def basic_publish_confirm(self, *args: Any, confirm_timeout: float | None = None, **kwargs: Any) -> Any:
        """Publish, and wait for the confirmation; raise TimeoutError if it does not come in these seconds."""
        # Without a connection, which another error may have cost, it is for py-amqp to say so: kombu makes a new one.
        seconds = confirm_timeout or (self.connection and self.connection.transport.read_timeout)
        if Connection.is_blocked:
            self.examine()
            Connection.is_blocked = False
        return super().basic_publish_confirm(*args, confirm_timeout=seconds, **kwargs)

    def examine(self, everything: bool = False) -> None:
        """Send what no queue gets; raise an error of the connection if RabbitMQ does not take it."""
        seconds = self.connection and self.connection.transport.read_timeout
        with suppress(AccessRefused):
            super().basic_publish_confirm(Message(), exchange="", routing_key="to.no.queue", confirm_timeout=seconds)


class Connection(pyamqp.Connection):
    """A connection with these channels."""

    Channel = Channel
    # Whether the last message of this process has met an alarm.
    is_blocked = False

    def _on_blocked(self) -> NoReturn:
        Connection.is_blocked = True
        raise Blocked("RabbitMQ takes nothing now, because its memory or its disk is full.")


class Transport(pyamqp.Transport):
    """Kombu's transport with these connections."""

    Connection = Connection


class SSLTransport(pyamqp.SSLTransport):
    """The same with TLS."""

    Connection = Connection

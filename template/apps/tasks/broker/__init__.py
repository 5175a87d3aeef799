"""The broker: which one it is, how it is reached, and transports that lose nothing on the way.

Promises that no message is lost between the broker and a worker, and that no wait for the broker is without an end.
The settings and every other room call it; it calls none of them. Without `redis_transport` or `rabbitmq_transport`
kombu's own are used, see the README in the folder above.

The settings import this module, so it needs nothing but the standard library.
"""

from .options import (
    SENDER_SECONDS,
    WORKER_SECONDS,
    answer_limits,
    broker_failure,
    broker_kind,
    broker_options,
    describe_broker,
    is_rabbitmq,
    is_redis,
    local_broker_url,
    tls_options,
)

__all__ = [
    "SENDER_SECONDS",
    "WORKER_SECONDS",
    "answer_limits",
    "broker_failure",
    "broker_kind",
    "broker_options",
    "describe_broker",
    "is_rabbitmq",
    "is_redis",
    "local_broker_url",
    "tls_options",
]

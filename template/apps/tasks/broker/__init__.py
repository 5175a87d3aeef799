"""The broker: which one is used, how it is reached, and transports that lose nothing on the way.

This room promises that no message is lost between the broker and a worker, and that every wait for the broker has an
end. The settings and all other rooms call it. It calls none of them. Without `redis_transport` or `rabbitmq_transport`,
kombu's own transports are used. See the README in the folder above.

The settings import this module, so it needs only the standard library.
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

"""Translates priorities of Django's tasks, -100 to 100, to those of the brokers. A larger one is run sooner."""

from celery import current_app

from .options import is_rabbitmq

# Kombu keeps a list for each of these on Redis, and 0 comes first. A task of Celery's own without a priority is there.
REDIS_LEVELS = ((0, 0), (-1, 3), (-51, 6), (-101, 9))
# A quorum queue takes two messages of this priority for each one below it, since RabbitMQ 4.
RABBITMQ_HIGH = 5


def broker_priority(priority: int) -> int | None:
    """Return the priority of the message, or None for the broker's default.

    Redis distinguishes four levels, and RabbitMQ two.
    """
    if is_rabbitmq(current_app.conf.broker_url):
        return RABBITMQ_HIGH if priority > 0 else None
    return next(level for above, level in REDIS_LEVELS if priority > above)

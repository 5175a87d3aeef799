"""Translates priorities of Django's tasks, -100 to 100, to those of the brokers. A larger one is run sooner."""

from celery import current_app

from .options import is_rabbitmq

LOWEST, HIGHEST = -100, 100
# Kombu keeps four lists for a queue on Redis, for 0, 3, 6 and 9, and takes from the first one first. A message without
# a priority belongs into the second one: in the first, where kombu puts it, a steady stream would hold up all others.
NO_PRIORITY = 3
# The list on Redis for a priority above each of these, as the least number that leads there. For Celery, 0 is none.
REDIS_LEVELS = ((0, 1), (-1, NO_PRIORITY), (-51, 6), (LOWEST - 1, 9))
# A quorum queue takes two messages of this priority for each one below it, since RabbitMQ 4.
RABBITMQ_HIGH = 5


def broker_priority(priority: int) -> int | None:
    """Return the priority of the message, or None for the broker's default.

    Redis distinguishes four levels, and RabbitMQ two. Raises ValueError for what is no whole number from -100 to 100.
    """
    if type(priority) is not int or not LOWEST <= priority <= HIGHEST:
        raise ValueError(f"priority must be a whole number from {LOWEST} to {HIGHEST}, not {priority!r}.")
    if is_rabbitmq(current_app.conf.broker_url):
        return RABBITMQ_HIGH if priority > 0 else None
    return next(level for above, level in REDIS_LEVELS if priority > above)

"""Stamps each message with the moment from which it waits for a worker."""

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from celery.signals import before_task_publish

from apps.tasks.broker.queues import DELAY_LEVELS
from apps.web import clock

# The name begins as those of a broker's own headers do, so a message that is sent again after a failure loses it. That
# message did not wait meanwhile.
WAITS_SINCE = "x-waits-since"


@before_task_publish.connect
def stamp(headers: dict[str, Any] | None = None, routing_key: str | None = None, **kwargs: Any) -> None:
    """Write the moment into the headers, in seconds since 1970."""
    if headers is not None:
        headers[WAITS_SINCE] = waits_since(headers, routing_key or "")


def waits_since(headers: Mapping[str, Any], routing_key: str = "") -> float:
    """Return the moment at which a message that is sent now is due. Before that, it does not wait for a worker."""
    if eta := headers.get("eta"):
        return max(time.time(), clock.aware(datetime.fromisoformat(eta)).timestamp())
    # On RabbitMQ, the routing key begins with the seconds of the countdown, as a binary number with dots.
    levels = DELAY_LEVELS.match(routing_key)
    return time.time() + (int(levels[0].replace(".", ""), 2) if levels else 0)

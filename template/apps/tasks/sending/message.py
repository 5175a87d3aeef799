"""A task on its way to the broker: what is said of it, and its moments, which all have a time zone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from celery import current_app
from celery.app.task import Context

from apps.tasks.broker import is_rabbitmq
from apps.web import clock


@dataclass(frozen=True)
class Message:
    """A task as it is handed to the broker, made of what JSON can say if the task is sent as JSON."""

    name: str
    task_id: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    options: dict[str, Any]

    @property
    def row_id(self) -> str | None:
        """The key of the row that remembers a durable task until its end."""
        return (self.options.get("headers") or {}).get("outgoing")


def due(options: Mapping[str, Any]) -> datetime | None:
    """Return when a task with these options is to run, None for as soon as possible."""
    if countdown := options.get("countdown"):
        return clock.now() + timedelta(seconds=countdown)
    return moment(options.get("eta"))


def moment(time: datetime | str | None) -> datetime | None:
    """Return a time with its zone; a task that is sent again has it as text."""
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    return time and clock.aware(time)


def with_zones(options: Mapping[str, Any], eta: datetime | None) -> dict[str, datetime]:
    """Return those of the options that are moments, with a zone: one without Celery takes for UTC."""
    moments = {"eta": eta} if options.get("eta") else {}
    if isinstance(expires := options["expires"], datetime | str):
        moments["expires"] = moment(expires)
    return moments


def in_whole_seconds(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options of a task with a full second to wait, where less is left for RabbitMQ: Celery refuses that."""
    eta = due(options)
    if eta and is_rabbitmq(current_app.conf.broker_url) and timedelta() < eta - clock.now() < timedelta(seconds=1):
        return {**options, "countdown": 1, "eta": None}
    return options


def was_redelivered(request: Context) -> bool:
    """Return whether the broker delivers the message of a task not for the first time."""
    return bool((request.delivery_info or {}).get("redelivered"))

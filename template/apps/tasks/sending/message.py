"""A task on its way to the broker: its arguments, its options and its times, which all have a time zone."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from celery import current_app
from celery.app.task import Context
from django.conf import settings

from apps.tasks.broker import is_rabbitmq
from apps.web import clock
from apps.web.logs import fields
from apps.web.telemetry import has_opentelemetry


@dataclass(frozen=True)
class Message:
    """A task as the broker gets it. If the task is sent as JSON, this contains only JSON values."""

    name: str
    task_id: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    options: dict[str, Any]

    @property
    def row_id(self) -> str | None:
        """The key of the row that remembers a durable task until it has ended."""
        return (self.options.get("headers") or {}).get("outgoing")


def due(options: Mapping[str, Any]) -> datetime | None:
    """Return when a task with these options is due, or None for as soon as possible."""
    if countdown := options.get("countdown"):
        return clock.now() + timedelta(seconds=countdown)
    return moment(options.get("eta"))


def moment(time: datetime | str | None) -> datetime | None:
    """Return a time with its time zone. A task that is sent again has it as text."""
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    return time and clock.aware(time)


def with_zones(options: Mapping[str, Any], eta: datetime | None) -> dict[str, datetime]:
    """Return the options that are times, with a time zone, because Celery takes a time without one for UTC."""
    moments = {"eta": eta} if options.get("eta") else {}
    if isinstance(expires := options["expires"], datetime | str):
        moments["expires"] = moment(expires)
    return moments


def in_whole_seconds(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the options with a wait of one second if less is left on RabbitMQ, because Celery refuses less."""
    eta = due(options)
    if eta and is_rabbitmq(current_app.conf.broker_url) and timedelta() < eta - clock.now() < timedelta(seconds=1):
        return {**options, "countdown": 1, "eta": None}
    return options


def with_request_id(headers: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the headers with the id of the current request, which leads from the log lines of a page to its tasks.

    A task that sends another one hands the id on.
    """
    identity = fields.get().get("request_id")
    return {**({"request_id": identity} if identity else {}), **(headers or {})}


def trace_headers() -> dict[str, str]:
    """Return what leads from the current trace to a task that waits; empty if nothing is traced.

    Sentry and OpenTelemetry do this themselves for a task that is sent at once.
    """
    found: dict[str, str] = {}
    if has_opentelemetry():
        from opentelemetry import propagate

        propagate.inject(found)
    if settings.SENTRY_DSN:
        import sentry_sdk

        found |= {"sentry-trace": sentry_sdk.get_traceparent(), "baggage": sentry_sdk.get_baggage()}
    return {name: value for name, value in found.items() if value}


@contextmanager
def in_trace(name: str, headers: Mapping[str, Any]) -> Iterator[None]:
    """Send a task that has waited in the trace in which it was called, not in that of the task which sends it."""
    with ExitStack() as stack:
        if has_opentelemetry():
            from opentelemetry import context, propagate

            stack.callback(context.detach, context.attach(propagate.extract(headers)))
        if settings.SENTRY_DSN:
            import sentry_sdk

            stack.enter_context(sentry_sdk.isolation_scope())
            # Sentry's client gives a message a trace only from within a transaction.
            transaction = sentry_sdk.continue_trace(dict(headers), op="queue.submit.celery", name=f"send {name}")
            stack.enter_context(sentry_sdk.start_transaction(transaction))
        yield


@contextmanager
def back_in_trace() -> Iterator[None]:
    """Leave the trace as it was. OpenTelemetry by itself stays in that of a message which the broker has refused."""
    with ExitStack() as stack:
        if has_opentelemetry():
            from opentelemetry import context

            stack.callback(context.detach, context.attach(context.get_current()))
        yield


def was_redelivered(request: Context) -> bool:
    """Return whether the broker has delivered the message of a task before."""
    return bool((request.delivery_info or {}).get("redelivered"))


def has_lost_its_worker(request: Context) -> bool:
    """Return whether the last worker that had the message has died, as far as the broker can tell.

    On Redis, a worker that lives says so when it gives a message back.
    """
    return was_redelivered(request) and not request.get("given_back")

"""Keeps the message of a failed task as the broker had it, and sends it again.

It sends the message itself instead of calling the task again, so its callbacks and its place in a chain, group or chord
stay the same. A task that the deployed code does not know, or whose arguments it cannot read, can be sent again after
the next deployment.
"""

import json
from typing import Any

from celery import current_app
from django.db import transaction
from kombu import Message
from kombu.utils.uuid import uuid

from apps.tasks.models import FailedTask
from apps.web import clock

PROPERTIES = ("correlation_id", "priority", "reply_to")


def pack(message: Message) -> str:
    """Return everything needed to publish the message again, as text."""
    body, delivery, properties = message.body or b"", message.delivery_info or {}, message.properties or {}
    packed = {
        # Text stays readable, and every other byte survives the round trip.
        "body": body if isinstance(body, str) else bytes(body).decode("utf-8", "surrogateescape"),
        "content_type": message.content_type,
        "content_encoding": message.content_encoding,
        "headers": message.headers,
        "properties": {name: properties[name] for name in PROPERTIES if properties.get(name) is not None},
        "exchange": delivery.get("exchange") or "",
        "routing_key": delivery.get("routing_key") or current_app.conf.task_default_queue,
    }
    return json.dumps(packed, default=str)


def publish(packed: str, **changed_headers: Any) -> None:
    """Publish a packed message. Raise OperationalError if the broker does not accept it."""
    message = json.loads(packed)
    exchange, routing_key = message["exchange"], message["routing_key"]
    queues = current_app.amqp.queues
    with current_app.producer_or_acquire() as producer:
        producer.publish(
            message["body"].encode("utf-8", "surrogateescape"),
            content_type=message["content_type"] or "application/data",
            content_encoding=message["content_encoding"] or "binary",
            headers=_own_headers(message["headers"]) | {"sending": uuid()} | changed_headers,
            exchange=exchange,
            routing_key=routing_key,
            # RabbitMQ silently drops messages for a queue that does not exist.
            declare=[queues[routing_key]] if not exchange or routing_key in queues else [],
            retry=True,
            retry_policy=current_app.conf.task_publish_retry_policy,
            **message["properties"],
        )


def _own_headers(headers: dict[str, Any]) -> dict[str, Any]:
    """Return the headers without those of the previous delivery: its due time, which is past, and the broker's own."""
    passed = ("compression", "eta", "given_back", "redelivered")
    return {name: value for name, value in headers.items() if name not in passed and not name.startswith("x-")}


def send_again(failed_task_id: int) -> bool:
    """Requeue the message of this row, and delete the row.

    Return False if somebody else has just done so, or if the message could not be kept. The row then says why.

    Raises OperationalError, and keeps the row, if the broker does not accept the message.
    """
    with transaction.atomic():
        # Locked, so that only one of two people who do this at the same time succeeds.
        failed = FailedTask.objects.select_for_update().filter(pk=failed_task_id).first()
        if failed is None or not failed.message:
            return False
        earlier = {"tries": failed.tries, "since": clock.passed(failed.first_failed_at).isoformat()}
        # `outgoing` is dropped, because a worker would find that the outbox is done with this task.
        publish(failed.message, retries=0, expires=None, lost_workers=0, failed_earlier=earlier, outgoing=None)
        failed.delete()
    return True

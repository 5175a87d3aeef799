"""Sends messages that no task can be made of, as other programs might: `python -m probe.unreadable`."""

import django
from celery import current_app

django.setup()

from probe.tasks import note  # noqa: E402

EMPTY = b"[[], {}, {}]"
# The bodies, each with the headers that differ from those of a task.
MESSAGES = [
    (b"null", {}),
    (b"[]", {}),
    (b'{"a": 1}', {}),
    (b"[[1], {}]", {}),
    (b"{", {}),
    (EMPTY, {"task": ["a"]}),
    (EMPTY, {"timelimit": "x"}),
    (EMPTY, {"eta": "x"}),
    (EMPTY, {"expires": "x"}),
]
# On Redis, any client can put anything into the list that is the queue.
ENTRIES = ["no JSON", "[]", '{"body": ""}']


def main() -> None:
    """Send all of them, and note each."""
    queue = current_app.conf.task_default_queue
    with current_app.producer_or_acquire() as producer:
        for number, (body, headers) in enumerate(MESSAGES):
            headers = {"task": "probe.tasks.work", "id": f"unreadable-{number}"} | headers
            kind = {"content_type": "application/json", "content_encoding": "utf-8"}
            producer.publish(body, exchange="", routing_key=queue, headers=headers, **kind)
            note("unreadable", number)
        if hasattr(producer.channel, "client"):
            for number, entry in enumerate(ENTRIES, len(MESSAGES)):
                producer.channel.client.lpush(queue, entry)
                note("unreadable", number)


if __name__ == "__main__":
    main()

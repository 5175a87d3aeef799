"""Lists the work that would be lost, or would stop, if Celery were switched off now."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from celery import current_app
from django.db.models import Count
from django_celery_beat.models import PeriodicTask

from apps.background import TaskResultStatus
from apps.background.models import EnqueuedTask
from apps.tasks.broker.connection import Connection
from apps.tasks.broker.options import is_rabbitmq
from apps.tasks.broker.queues import queue_state
from apps.tasks.models import FailedTask, OutgoingTask
from apps.tasks.sending.unattended import REPLY_SECONDS, known_queues, quick_connection

# RabbitMQ keeps messages with a countdown in these queues, by the length of the wait.
DELAY_QUEUES = [f"celery_delayed_{level}" for level in range(28)]


class Waiting(NamedTuple):
    """A place where work waits: how much, and how often each task, as far as that is known."""

    place: str
    count: int
    tasks: dict[str, int]

    def __str__(self) -> str:
        return f"{self.place:34} {self.count:6}  {listed(self.tasks)}".rstrip()


def listed(tasks: dict[str, int]) -> str:
    """Return the names of tasks, each with its number."""
    return ", ".join(f"{name} ({count})" for name, count in sorted(tasks.items()))


def waiting() -> list[Waiting]:
    """Return the places where work waits. Raises an error of the broker if it does not answer."""
    return [place for place in (*_in_the_broker(), *_in_the_database()) if place.count]


def _in_the_broker() -> Iterator[Waiting]:
    if current_app.conf.task_always_eager:
        return
    names = known_queues()
    with quick_connection() as connection:
        for name in names:
            yield Waiting(f"queue {name}", _length(connection, name), {})
        if is_rabbitmq(current_app.conf.broker_url):
            yield Waiting("countdowns", sum(_length(connection, name) for name in DELAY_QUEUES), {})
        inspect = current_app.control.inspect(timeout=REPLY_SECONDS, connection=connection)
        yield _answered("held by workers, countdowns", inspect.scheduled())
        yield _answered("held by workers, next", inspect.reserved())
        yield _answered("running", inspect.active())


def _length(connection: Connection, name: str) -> int:
    return queue_state(connection, name)[0]


def _answered(place: str, answers: dict[str, Any] | None) -> Waiting:
    """Return what the workers have answered. A scheduled task is wrapped in its time."""
    calls = [call.get("request", call) for calls in (answers or {}).values() for call in calls]
    return Waiting(place, len(calls), Counter(call["name"] for call in calls))


def _in_the_database() -> Iterator[Waiting]:
    yield _rows("outgoing tasks", OutgoingTask.objects.values_list("name"))
    yield _rows("failed tasks, to be sent again", FailedTask.objects.values_list("name"))
    yield _rows("schedule", PeriodicTask.objects.filter(enabled=True).values_list("task"))


def _rows(place: str, names: Any) -> Waiting:
    tasks = _counted(names)
    return Waiting(place, sum(tasks.values()), tasks)


def _counted(names: Any) -> dict[str, int]:
    return dict(names.annotate(times=Count("pk")).order_by())


def kept() -> dict[str, int]:
    """Return the enqueued tasks that have not started, which `manage.py run_due_tasks` can run without Celery."""
    ready = EnqueuedTask.objects.filter(status=TaskResultStatus.READY)
    return _counted(ready.values_list("path"))

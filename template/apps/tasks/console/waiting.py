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
from apps.tasks.broker.options import answer_limits, is_rabbitmq
from apps.tasks.broker.queues import configured_queues, queue_state
from apps.tasks.models import FailedTask, OutgoingTask, UnknownQueue
from apps.tasks.sending.unattended import REPLY_SECONDS

# RabbitMQ keeps messages with a countdown in these queues, by the length of the wait.
DELAY_QUEUES = [f"celery_delayed_{level}" for level in range(28)]


class Waiting(NamedTuple):
    """A place where work waits: how much, and how often each task, as far as that is known."""

    place: str
    count: int
    tasks: dict[str, int]

    def __str__(self) -> str:
        names = ", ".join(f"{name} ({count})" for name, count in sorted(self.tasks.items()))
        return f"{self.place:34} {self.count:6}  {names}".rstrip()


def waiting() -> list[Waiting]:
    """Return the places where work waits. Raises an error of the broker if it does not answer."""
    return [place for place in (*_in_the_broker(), *_in_the_database()) if place.count]


def _in_the_broker() -> Iterator[Waiting]:
    if current_app.conf.task_always_eager:
        return
    names = {*configured_queues(), *UnknownQueue.objects.values_list("name", flat=True)}
    limits = answer_limits(current_app.conf.broker_url, REPLY_SECONDS)
    with current_app.connection_for_read(connect_timeout=REPLY_SECONDS, transport_options=limits) as connection:
        for name in sorted(names):
            yield Waiting(f"queue {name}", _length(connection, name), {})
        if is_rabbitmq(current_app.conf.broker_url):
            yield Waiting("countdowns", sum(_length(connection, name) for name in DELAY_QUEUES), {})
        inspect = current_app.control.inspect(timeout=REPLY_SECONDS, connection=connection)
        yield _listed("held by workers, countdowns", inspect.scheduled())
        yield _listed("held by workers, next", inspect.reserved())
        yield _listed("running", inspect.active())


def _length(connection: Connection, name: str) -> int:
    return queue_state(connection, name)[0]


def _listed(place: str, answers: dict[str, Any] | None) -> Waiting:
    """Return what the workers have answered. A scheduled task is wrapped in its time."""
    calls = [call.get("request", call) for calls in (answers or {}).values() for call in calls]
    return Waiting(place, len(calls), Counter(call["name"] for call in calls))


def _in_the_database() -> Iterator[Waiting]:
    yield _rows("outgoing tasks", OutgoingTask.objects.values_list("name"))
    yield _rows("failed tasks, to be sent again", FailedTask.objects.values_list("name"))
    yield _rows("schedule", PeriodicTask.objects.filter(enabled=True).values_list("task"))


def _rows(place: str, names: Any) -> Waiting:
    tasks = dict(names.annotate(times=Count("pk")).order_by())
    return Waiting(place, sum(tasks.values()), tasks)


def kept() -> dict[str, int]:
    """Return the enqueued tasks that have not started, which `manage.py run_due_tasks` can run without Celery."""
    ready = EnqueuedTask.objects.filter(status=TaskResultStatus.READY)
    return _rows("", ready.values_list("path")).tasks

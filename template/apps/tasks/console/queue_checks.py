"""System check: names of queues that the settings do not have, wherever a project writes one down."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from celery import Task, current_app
from celery.app.routes import MapRoute
from celery.utils.functional import maybe_evaluate
from django.conf import settings
from django.core.checks import CheckMessage, Warning, register

from apps.tasks.broker.queues import configured_queues, remedy

from .checks import project_tasks


@register("tasks")
def check_queues(**kwargs: object) -> list[CheckMessage]:
    """Warn of names that CELERY_TASK_QUEUES does not have: Celery makes such a queue, and no worker takes from it."""
    known = configured_queues()
    return [
        Warning(f"{place} names the queue {name}, which the settings do not have.", hint=remedy(name), id="tasks.W040")
        for place, name in dict.fromkeys(_named_queues(project_tasks()))
        if name not in known
    ]


def _named_queues(tasks: list[Task]) -> Iterator[tuple[str, str]]:
    """Yield each place that names a queue, and the name."""
    entries = getattr(settings, "SCHEDULED_TASKS", None)
    # What is no entry is for `bootstrap_celery_tasks` to refuse.
    entries = entries.items() if isinstance(entries, Mapping) else ()
    named: list[tuple[str, Any]] = [
        ("CELERY_TASK_DEFAULT_QUEUE", current_app.conf.task_default_queue),
        *(("CELERY_TASK_ROUTES", target) for target in _route_targets(tasks)),
        *((f"The task {task.name}", getattr(task, "queue", None)) for task in tasks),
        *((f"SCHEDULED_TASKS[{name!r}]", entry.get("queue")) for name, entry in entries if isinstance(entry, Mapping)),
    ]
    for place, queue in named:
        queue = queue.get("queue") if isinstance(queue, Mapping) else queue
        # A queue may be given as a Queue.
        name = getattr(queue, "name", queue)
        if name and isinstance(name, str):
            yield place, name


def _route_targets(tasks: Iterable[Task]) -> Iterator[Any]:
    """Yield what CELERY_TASK_ROUTES leads to: all of a mapping, and of a function what it says of these tasks."""
    for route in map(maybe_evaluate, current_app.amqp.routes):
        if isinstance(route, MapRoute):
            yield from (*route.map.values(), *route.patterns.values())
            continue
        for task in tasks:
            try:
                yield current_app.amqp.router.query_router(route, task.name, (), {}, {}, task)
            # It decides by arguments, which nobody has given yet.
            except Exception:
                continue

"""A system check for queue names that are not in the settings, wherever the project uses one."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from celery import Task, current_app
from celery.app.routes import MapRoute
from celery.utils.functional import maybe_evaluate
from django.conf import settings
from django.core.checks import CheckMessage, Warning, register

from apps.background.framework import task_backends
from apps.tasks.broker.queues import configured_queues, remedy
from apps.tasks.sending.backend import DEFAULT_QUEUE, WorkerBackend

from .checks import project_tasks


@register("tasks")
def check_queues(**kwargs: object) -> list[CheckMessage]:
    """Warn of names that are not in CELERY_TASK_QUEUES. Celery creates such a queue, but no worker consumes it."""
    known = configured_queues()
    return [
        Warning(f"{place} names the queue {name}, which the settings do not have.", hint=remedy(name), id="tasks.W040")
        for place, name in dict.fromkeys(_named_queues(project_tasks()))
        if name not in known
    ]


def _named_queues(tasks: list[Task]) -> Iterator[tuple[str, str]]:
    """Yield each place that names a queue, together with the name."""
    entries = getattr(settings, "SCHEDULED_TASKS", None)
    # `bootstrap_celery_tasks` refuses invalid entries.
    entries = entries.items() if isinstance(entries, Mapping) else ()
    named: list[tuple[str, Any]] = [
        ("CELERY_TASK_DEFAULT_QUEUE", current_app.conf.task_default_queue),
        *(("CELERY_TASK_ROUTES", target) for target in _route_targets(tasks)),
        *((f"The task {task.name}", getattr(task, "queue", None)) for task in tasks),
        *((f"TASKS[{alias!r}]", name) for alias, name in _allowed_queues()),
        *((f"SCHEDULED_TASKS[{name!r}]", entry.get("queue")) for name, entry in entries if isinstance(entry, Mapping)),
    ]
    for place, queue in named:
        queue = queue.get("queue") if isinstance(queue, Mapping) else queue
        # A queue may also be a Queue object.
        name = getattr(queue, "name", queue)
        if name and isinstance(name, str):
            yield place, name


def _allowed_queues() -> Iterator[tuple[str, str]]:
    """Yield the names of queues that TASKS allows, each with the alias of its backend, if workers run the tasks."""
    for alias in task_backends:
        backend = task_backends[alias]
        if isinstance(backend, WorkerBackend):
            yield from ((alias, name) for name in sorted(backend.queues - {DEFAULT_QUEUE}))


def _route_targets(tasks: Iterable[Task]) -> Iterator[Any]:
    """Yield the targets of CELERY_TASK_ROUTES: all targets of a mapping, and a function's targets for these tasks."""
    for route in map(maybe_evaluate, current_app.amqp.routes):
        if isinstance(route, MapRoute):
            yield from (*route.map.values(), *route.patterns.values())
            continue
        for task in tasks:
            try:
                yield current_app.amqp.router.query_router(route, task.name, (), {}, {}, task)
            # The function decides by arguments, which do not exist yet.
            except Exception:
                continue

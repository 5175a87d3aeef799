"""System checks that refuse settings which lose tasks or run them twice, and say how to fix each.

With an error, this is certain to happen. With a warning, it happens under conditions that may not apply to you. To
silence a warning: `SILENCED_SYSTEM_CHECKS = ["tasks.W003"]`.
"""

from collections.abc import Iterable, Iterator, Mapping
from math import inf
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from celery import Task, current_app
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning, register

from apps.tasks.broker import parts
from apps.tasks.broker.options import SENDER_SECONDS, broker_error, is_redis
from apps.tasks.sending.task import ProjectTask

from .rules import RULES, Conf

THIS_MACHINE = ("", "localhost", "::1")


@register("tasks")
def check_settings(**kwargs: object) -> list[CheckMessage]:
    """Refuse settings that lose tasks."""
    conf = Conf()
    return [_message(rule.id, rule.message.format(conf), rule.hint) for rule in RULES if rule.broken(conf)]


def _message(identifier: str, message: str, hint: str, task: Task | None = None) -> CheckMessage:
    kind = Error if identifier.startswith("E") else Warning
    return kind(message, hint=hint, obj=task and task.name, id=f"tasks.{identifier}")


# Options of single tasks ----------------------------------------------------

REPEATABLE = "Remove {}=False and make the task safe to repeat, or silence this check if it must not be repeated."


@register("tasks")
def check_tasks(**kwargs: object) -> list[CheckMessage]:
    """Check the options of each task that differ from the settings."""
    conf = Conf()
    return [message for task in project_tasks() for message in _task_messages(task, conf)]


def project_tasks() -> list[Task]:
    """Return all tasks except Celery's own, sorted by name."""
    # import_default_modules() would run the system checks.
    current_app.autodiscover_tasks(force=True)
    current_app.autodiscover_tasks([current_app.main], force=True)
    return [task for name, task in sorted(current_app.tasks.items()) if not name.startswith("celery.")]


def _task_messages(task: Task, conf: Conf) -> Iterator[CheckMessage]:
    limit, soft_limit = task.time_limit or conf.limit, task.soft_time_limit or conf.soft_limit
    # Celery copies the limits of the settings to tasks that have none.
    own_limits = (limit, soft_limit) != (conf.limit, conf.soft_limit)
    if own_limits and limit <= soft_limit < inf:
        message = f"Its soft_time_limit ({soft_limit} s) is not below its time_limit ({limit} s)."
        yield _message("E020", message, "Set both, the soft limit below the hard one.", task)
    if own_limits and conf.redis and limit >= conf.visibility:
        message = f"It may take {limit} s, and Redis delivers it again after {conf.visibility} s: it runs twice."
        yield _message("E021", message, "Lower its time_limit, or raise visibility_timeout in settings.py.", task)
    if conf.conf.task_acks_late and not task.acks_late:
        message = "Its acks_late is off: it is lost when its worker dies while it runs."
        yield _message("W020", message, REPEATABLE.format("acks_late"), task)
    if not isinstance(task, ProjectTask):
        message = "Its base is none of the project's: it is sent before the commit, and lost while the broker is away."
        yield _message("W022", message, "Derive its base from ProjectTask in apps.tasks.sending as well.", task)
    if conf.conf.task_reject_on_worker_lost and task.acks_late and not task.reject_on_worker_lost:
        message = "Its reject_on_worker_lost is off: it is lost when its process dies."
        yield _message("W021", message, REPEATABLE.format("reject_on_worker_lost"), task)


# The broker -----------------------------------------------------------------


@register("tasks", deploy=True)
def check_rights(**kwargs: object) -> list[CheckMessage]:
    """Ask Redis, if it answers, whether the user has the rights that tasks need. Only `check --deploy` asks."""
    if current_app.conf.task_always_eager or not is_redis(current_app.conf.broker_url or ""):
        return []
    from redis.exceptions import NoPermissionError

    error = broker_error(SENDER_SECONDS, everything=True)
    if not isinstance(error, NoPermissionError):
        return []
    hint = "If workers have a user of their own who may, silence this check."
    return [_message("W014", str(error), hint)]


# Celery itself --------------------------------------------------------------


@register("tasks")
def check_parts(**kwargs: object) -> list[CheckMessage]:
    """Warn of promises that are not kept with the installed release of Celery."""
    hint = "Install the versions that the template was tested with: `make tested`."
    return [_message("W041", sentence, hint) for sentence in parts.misfits().values()]


# The cache ------------------------------------------------------------------


@register("tasks")
def check_cache(**kwargs: object) -> list[CheckMessage]:
    """Refuse a cache in the Redis database of the queue, because `cache.clear()` empties the database."""
    hint = "Give the cache a database of its own: the number at the end of CACHE_URL, redis://host:6379/1 for example."
    return [
        _message("E030", f"The cache {alias!r} is in the Redis database of the queue: clearing it deletes tasks.", hint)
        for alias, options in settings.CACHES.items()
        if _cache_databases(options) & _databases((current_app.conf.broker_url or "").split(";"))
    ]


def _cache_databases(cache: Mapping[str, Any]) -> set[tuple[str, int, str]]:
    location = cache.get("LOCATION") or ""
    urls = location.split(",") if isinstance(location, str) else location
    return _databases(urls, str((cache.get("OPTIONS") or {}).get("db", 0)))


def _databases(urls: Iterable[str], default: str = "0") -> set[tuple[str, int, str]]:
    """Return each Redis database in the URLs as (host or socket path, port, number)."""
    return {found for url in urls if (found := _database(url.strip(), default))}


def _database(url: str, default: str) -> tuple[str, int, str] | None:
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    number = (query.get("db") or query.get("virtual_host") or [""])[0].strip("/")
    if parts.scheme in ("unix", "redis+socket"):
        return unquote(parts.path), 0, number or default
    if parts.scheme not in ("redis", "rediss"):
        return None
    host = "127.0.0.1" if (parts.hostname or "") in THIS_MACHINE else parts.hostname
    return host, parts.port or 6379, number or parts.path.strip("/") or default

"""Says what is wrong with a message that Celery would take for a task, and could not run.

A message may come from anywhere. Celery reads parts of it when it is too late to refuse it: an error there ends the
worker, which gives the message to the next one, or leaves it unacknowledged and holds a slot.
"""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from celery.exceptions import InvalidTaskError
from celery.utils.time import timezone
from celery.worker.request import Request
from kombu.asynchronous.timer import to_timestamp

# About three years. A time limit that is infinite, or no number, confuses the timers of a worker.
LONGEST_SECONDS = 1e8


def _is(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


def _is_time_limit(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and 0 <= value <= LONGEST_SECONDS)


def _are_time_limits(value: Any) -> bool:
    return not value or (isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_time_limit, value)))


def _are_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def _is_uuid(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(UUID(value))
    except ValueError:
        return False


# What each header must be, unless it is missing or None. The last ones are the project's own.
HEADERS: dict[str, Callable[[Any], bool]] = {
    "group": _is(str),
    "group_index": _is(int),
    "parent_id": _is(str),
    "replaced_task_nesting": _is(int),
    "retries": _is(int),
    "root_id": _is(str),
    "shadow": _is(str),
    "stamped_headers": _are_names,
    "stamps": _is(dict),
    "timelimit": _are_time_limits,
    "enqueued": _is(str),
    "failed_earlier": _is(dict),
    "lost_workers": _is(int),
    "outgoing": _is_uuid,
    "request_id": _is(str),
}


def check(request: Request) -> None:
    """Raise InvalidTaskError if a part of the message is not what its readers expect."""
    args, kwargs, embed = request._payload
    headers = request._request_dict
    wrong = [
        *(name for name in ("id", "task") if not isinstance(headers[name], str)),
        *(name for name, is_right in HEADERS.items() if headers.get(name) is not None and not is_right(headers[name])),
    ]
    if wrong:
        raise InvalidTaskError(f"Its headers are wrong: {', '.join(f'{name}={headers[name]!r}' for name in wrong)}")
    if not (isinstance(args, list | tuple) and isinstance(kwargs, dict) and isinstance(embed, dict | None)):
        raise InvalidTaskError("Its body is not a list of arguments, a mapping of arguments, and a mapping of options.")
    if request.eta:
        # Celery would drop a task whose time it cannot express.
        to_timestamp(timezone.to_system(request.eta))

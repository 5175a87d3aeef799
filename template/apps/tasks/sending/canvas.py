"""Decides which results are kept although results are ignored by default, because chords, chains and so on read them.

Without these results, a chord would not complete and `.get()` would wait forever.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from celery import Celery, signature

# Each of these calls another task for many arguments, and returns the results of that task.
REPEATERS = {"celery.chunks", "celery.map", "celery.starmap"}


def is_read(app: Celery, name: str, kwargs: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    """Return whether something reads the result of a task that is called with these options, whatever it declares.

    The reader is a chord that the task is a part of, a later task in its chain, which fails with it, or the caller of
    `map`, `starmap` or `chunks`.
    """
    if options.get("chord") or any(keeps_result(app, step) for step in options.get("chain") or ()):
        return True
    # The task to repeat may be given in any form that makes a signature.
    return name in REPEATERS and "task" in kwargs and keeps_result(app, signature(kwargs["task"], app=app))


def keeps_result(app: Celery, call: Mapping[str, Any]) -> bool:
    """Return whether any task of the signature keeps its result. The signature may come from a message."""
    return bool(call["options"].get("chord")) or any(_keeps_result(app, task) for task in _tasks_of(call))


def _keeps_result(app: Celery, task: Mapping[str, Any]) -> bool:
    name, ignored = task["task"], task["options"].get("ignore_result")
    if ignored is None and name in app.tasks:
        ignored = app.tasks[name].ignore_result
    # A task that this process does not know may declare anything.
    return ignored is False or is_read(app, name, task["kwargs"], task["options"])


def keep_result_of(task_id: str, call: Mapping[str, Any]) -> None:
    """Make the task with this id in a signature keep its result, unless the signature says otherwise."""
    for task in _tasks_of(call):
        if task["options"].get("task_id") == task_id:
            task["options"].setdefault("ignore_result", False)


def _tasks_of(call: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the tasks whose results are the results of a signature or of one of its steps."""
    match call["task"]:
        case "celery.chain" | "celery.group":
            parts = call["kwargs"]["tasks"]
        case "celery.chord":
            parts = [body] if (body := call["kwargs"].get("body")) else []
        case _:
            yield call
            return
    for part in parts:
        yield from _tasks_of(part)

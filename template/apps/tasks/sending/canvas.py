"""Results that are kept where results are ignored, because somebody reads them: in what Celery puts together of tasks.

Without them a chord would not go on, and `.get()` would wait for ever for what is not written.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from celery import Celery, signature

# Each calls another task for many arguments, and returns what that returns.
REPEATERS = {"celery.chunks", "celery.map", "celery.starmap"}


def is_read(app: Celery, name: str, kwargs: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
    """Return whether something reads the result of the task that is called like this, whatever the task itself says.

    That is a chord that it is a part of, or what follows it in a chain and fails when it does, or whoever asks for what
    it calls for many arguments.
    """
    if options.get("chord") or any(keeps_result(app, step) for step in options.get("chain") or ()):
        return True
    # The task to repeat may be named by anything that makes a signature.
    return name in REPEATERS and "task" in kwargs and keeps_result(app, signature(kwargs["task"], app=app))


def keeps_result(app: Celery, call: Mapping[str, Any]) -> bool:
    """Return whether the result is kept of one of the tasks of a signature, which may have come in a message."""
    return bool(call["options"].get("chord")) or any(_keeps_result(app, task) for task in _tasks_of(call))


def _keeps_result(app: Celery, task: Mapping[str, Any]) -> bool:
    name, ignored = task["task"], task["options"].get("ignore_result")
    if ignored is None and name in app.tasks:
        ignored = app.tasks[name].ignore_result
    # One that this process does not know may say whatever it likes.
    return ignored is False or is_read(app, name, task["kwargs"], task["options"])


def keep_result_of(task_id: str, call: Mapping[str, Any]) -> None:
    """Have the result kept of the task in a signature that has this id, unless the signature says otherwise."""
    for task in _tasks_of(call):
        if task["options"].get("task_id") == task_id:
            task["options"].setdefault("ignore_result", False)


def _tasks_of(call: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the tasks whose results are those of a signature, or of one of its steps."""
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

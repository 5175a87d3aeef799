"""The decorator that declares a task, and what a task may ask for beyond Django's framework."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import framework


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a task asks for. A backend that cannot give it ignores it, so that the task works with every backend."""

    durable: bool = False
    keep_result: bool = True
    max_retries: int = 6
    retry_for: tuple[type[Exception], ...] = ()
    time_limit: float | None = None


def task(
    function: Callable[..., Any] | None = None,
    *,
    durable: bool = False,
    keep_result: bool = True,
    max_retries: int = 6,
    retry_for: tuple[type[Exception], ...] = (),
    time_limit: float | None = None,
    **django_options: Any,
) -> Any:
    """Declare a task: Django's own decorator, which takes `priority`, `queue_name`, `takes_context` and `backend`.

    Further options, which workers follow:

    - `durable`: the task is remembered until it has ended, and is sent again if its message gets lost.
    - `keep_result`: a row records the task, its errors and its return value. Without it, the task is cheaper, and
      `get_result` does not find it.
    - `retry_for`: the errors after which the task is tried again, up to `max_retries` times. The wait begins at a
      second and doubles up to a minute, and is shortened at random.
    - `time_limit`: in seconds, instead of the limits in the settings. The task can clean up when nine tenths are over.

    Returns a Task of Django, with `enqueue` and `aenqueue`. Raises InvalidTask if the backend cannot run the function.
    """
    options = Options(
        durable=durable,
        keep_result=keep_result,
        max_retries=max_retries,
        retry_for=retry_for,
        time_limit=time_limit,
    )

    def declare(function: Callable[..., Any]) -> framework.Task:
        # On the function, because Django's own class for tasks has no place for it, whatever the backend.
        function.background_options = options
        return framework.task(**django_options)(function)

    return declare(function) if function else declare


def options_of(task: framework.Task) -> Options:
    """Return what the task asks for. A task that was declared with Django's own decorator asks for nothing."""
    return getattr(task.func, "background_options", Options())

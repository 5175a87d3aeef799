"""Lets coroutines send tasks, although Django does not allow database queries in coroutines, and be tasks."""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from inspect import iscoroutinefunction
from typing import Any, TypeVar

from django.core.exceptions import SynchronousOnlyOperation
from django.db import connections
from django.utils.asyncio import async_unsafe

Result = TypeVar("Result")


def call_where_queries_may_run(function: Callable[[], Result]) -> Result:
    """Call a function that uses the database. In a coroutine, call it in a thread, and wait for that thread.

    The thread has its own database connection, as a coroutine has. Neither is in the transaction of the code that runs
    the coroutine. Returns and raises what the function does.
    """
    if not _in_coroutine():
        return function()
    with ThreadPoolExecutor(max_workers=1) as threads:
        return threads.submit(copy_context().run, _call_and_disconnect, function).result()


def _in_coroutine() -> bool:
    try:
        _query()
    except SynchronousOnlyOperation:
        return True
    return False


@async_unsafe
def _query() -> None:
    """Stand in for a query, so that Django decides whether a query may run here."""


def _call_and_disconnect(function: Callable[[], Result]) -> Result:
    try:
        return function()
    finally:
        connections.close_all()


def refuse_async_on_gevent(task: Any) -> None:
    """Raise RuntimeError if the function of this task of Django's framework is async and runs on gevent.

    All greenlets share one thread. While it runs an event loop, Django refuses the queries of every other task in it.
    """
    monkey = sys.modules.get("gevent.monkey")
    if iscoroutinefunction(task.func) and monkey and monkey.is_module_patched("threading"):
        raise RuntimeError(
            f"{task.module_path} is async and cannot run on gevent: use --pool=prefork or threads for it."
        )

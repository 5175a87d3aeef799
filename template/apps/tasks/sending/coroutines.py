"""Lets coroutines send tasks, although Django does not allow database queries in coroutines."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

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

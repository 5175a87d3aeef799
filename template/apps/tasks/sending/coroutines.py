"""A coroutine may send tasks as well, although Django lets no coroutine ask the database."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

from django.core.exceptions import SynchronousOnlyOperation
from django.db import connections
from django.utils.asyncio import async_unsafe

Result = TypeVar("Result")


def call_where_queries_may_run(function: Callable[[], Result]) -> Result:
    """Call a function that asks the database: here, or from a coroutine in a thread, for whose end that one waits.

    The thread has a connection of its own, as a coroutine has: neither is in the transaction of whoever runs the
    coroutine. Returns and raises what the function does.
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
    """Stand for a query, so that Django decides whether one may run here."""


def _call_and_disconnect(function: Callable[[], Result]) -> Result:
    try:
        return function()
    finally:
        connections.close_all()

"""Health checks: everything that must respond for the project to work.

An app adds its own checks in a module `health`: functions with @health_check("name") that raise if something is wrong.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from functools import partial
from typing import Any
from uuid import uuid4

from django.core.cache import cache
from django.db import connection, connections

# The limit for all checks together. Probes usually wait five seconds.
TIMEOUT_SECONDS = 4.0
# A check that hangs is not tried again for this many seconds, so that probes do not pile up threads.
RETRY_HANGING_SECONDS = 60.0
OK = "ok"

# A check may return a detail to show beside the "ok".
Check = Callable[[], str | None]

logger = logging.getLogger(__name__)
checks: dict[str, Check] = {}
_runs: dict[str, tuple[float, Future[Any]]] = {}


class Unhealthy(Exception):
    """Something does not work. The health page shows the message, so it must contain no secrets."""


def health_check(name: str) -> Callable[[Check], Check]:
    """Register the decorated function under the name. It returns if all is well, and raises if not.

    What it returns, if anything, is shown as a detail.
    """

    def register(check: Check) -> Check:
        checks[name] = check
        return check

    return register


def run_checks(timeout_seconds: float = TIMEOUT_SECONDS) -> dict[str, str]:
    """Run all checks at once. Return "ok", maybe with a detail, or what is wrong, by the name of the check.

    A check that hangs is reported, and delays the answer no longer than the timeout.
    """
    results = answers({name: partial(_result, name, check) for name, check in checks.items()}, timeout_seconds)
    return {name: results.get(name, "no answer in time") for name in checks}


def answers(questions: Mapping[str, Callable[[], Any]], timeout_seconds: float = TIMEOUT_SECONDS) -> dict[str, Any]:
    """Call all functions at once, each in its own thread. Return what they have returned in time, by name.

    Each name belongs to one function in the whole project. None of the functions may raise an error.
    """
    runs = {name: _current_run(name, question) for name, question in questions.items()}
    wait(runs.values(), timeout=timeout_seconds)
    return {name: run.result() for name, run in runs.items() if run.done()}


def is_fine(result: str) -> bool:
    """Return whether this result of a check says that all is well."""
    return result == OK or result.startswith(f"{OK}, ")


def _current_run(name: str, question: Callable[[], Any]) -> Future[Any]:
    """Return the current call of the function, or start one."""
    started, run = _runs.get(name, (0.0, None))
    if run is None or run.done() or time.monotonic() - started > RETRY_HANGING_SECONDS:
        run = Future()
        _runs[name] = (time.monotonic(), run)
        threading.Thread(target=_perform, args=(question, run), name=f"health-{name}", daemon=True).start()
    return run


def _perform(question: Callable[[], Any], run: Future[Any]) -> None:
    try:
        run.set_result(question())
    finally:
        # Closes the connections of this thread, which ends here.
        connections.close_all()


def _result(name: str, check: Check) -> str:
    try:
        detail = check()
    except Unhealthy as problem:
        return str(problem)
    except Exception as error:
        # Messages of drivers may contain addresses and credentials. The page gets the type, and the log gets the rest.
        logger.warning("Health check %r failed", name, exc_info=True)
        return f"failed with {type(error).__name__}"
    return f"{OK}, {detail}" if detail else OK


@health_check("database")
def database_answers() -> None:
    """Ask the default database for a constant."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


@health_check("cache")
def cache_remembers() -> None:
    """Write to the default cache and read it back, because some caches swallow errors and lose the value."""
    key = f"health-{uuid4()}"
    cache.set(key, OK, timeout=10)
    if cache.get(key) != OK:
        raise Unhealthy("forgets what was written to it")
    cache.delete(key)

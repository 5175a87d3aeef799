"""Counts the tasks of a worker by name and outcome, and measures how long they wait and run.

A worker whose WORKER_METRICS_PORT is set serves the figures there. Each of its processes counts in a file of its own,
which survives the process. The process that takes its place counts on in the same file, so nothing is lost or counted
twice, and a worker has only as many files as places.
"""

import logging
import os
import time
from typing import Any

from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from billiard.process import current_process
from celery import Celery, Task, current_app, states
from celery.app.task import Context
from celery.signals import (
    task_failure,
    task_postrun,
    task_prerun,
    task_received,
    task_revoked,
    worker_init,
    worker_process_init,
    worker_ready,
    worker_shutdown,
)
from celery.worker.request import Request
from django.conf import settings
from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server, values
from prometheus_client.multiprocess import MultiProcessCollector

from apps.tasks.sending.deliveries import WorkerKiller
from apps.tasks.sending.message import was_redelivered

from . import folders
from .waits import WAITS_SINCE

SECONDS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600)
OUTCOMES = {
    states.SUCCESS: "succeeded",
    states.FAILURE: "failed",
    states.RETRY: "retried",
    states.IGNORED: "ignored",
    states.REJECTED: "rejected",
    states.REVOKED: "revoked",
}
# How a task ends outside of its function, in the main process of the worker.
KILLED = (TimeLimitExceeded, WorkerKiller, WorkerLostError)

logger = logging.getLogger(__name__)


def place() -> str:
    """Return the place of this process in the pool, which its successor takes over. The main process has none."""
    return str(getattr(current_process(), "index", "main"))


class Counting:
    """The figures of a worker, and the server that shows them."""

    def __init__(self, address: str) -> None:
        """Begin to count from zero. This comes before the pool starts its processes."""
        self.address = address
        self.folder = folders.make()
        # The library looks for its files there. It may have been imported by a command of another package, and has
        # then decided to count in memory.
        os.environ.update(PROMETHEUS_MULTIPROC_DIR=self.folder.name)
        values.ValueClass = values.MultiProcessValue(place)
        self.started = Counter("tasks_started", "Tasks that were started.", ["task"], registry=None)
        self.ended = Counter("tasks_ended", "Tasks that have ended, by outcome.", ["task", "outcome"], registry=None)
        self.waited = Histogram(
            "task_wait_seconds",
            "Seconds that tasks have waited for a worker since they were sent or due.",
            ["task"],
            registry=None,
            buckets=SECONDS,
        )
        self.ran = Histogram(
            "task_run_seconds", "Seconds that tasks have run.", ["task"], registry=None, buckets=SECONDS
        )
        self.running: dict[str, float] = {}
        self.killed: set[str] = set()
        self.server: Any = None

    def show_zeros(self, app: Celery) -> None:
        """Show each task before its first run. Otherwise Prometheus could not see the first one as an increase."""
        for name in (name for name in app.tasks if not name.startswith("celery.")):
            self.started.labels(name)
            for outcome in OUTCOMES.values():
                self.ended.labels(name, outcome)

    def serve(self) -> None:
        """Show the figures. If that is impossible, the worker works on without it."""
        host, _, port = self.address.rpartition(":")
        registry = CollectorRegistry()
        MultiProcessCollector(registry, self.folder.name)
        try:
            self.server, _ = start_http_server(int(port), host.strip("[]") or "127.0.0.1", registry)
        except (OSError, OverflowError) as error:
            logger.error(
                "The metrics cannot be served at WORKER_METRICS_PORT=%s: %s. Give each worker on this machine a port "
                "of its own.",
                self.address,
                error,
            )

    def start(self, task: Task) -> None:
        """Count a task that begins now."""
        request = task.request
        if request.is_eager:
            return
        self.running[request.id] = time.monotonic()
        self.started.labels(task.name).inc()
        since = request.get(WAITS_SINCE)
        # A message that was delivered before has waited for the end of its worker, too.
        if since and not was_redelivered(request):
            self.waited.labels(task.name).observe(max(0.0, time.time() - since))

    def end(self, name: str, task_id: str, outcome: str | None) -> None:
        """Count a task that has ended, if it was started here. Without an outcome, it was interrupted."""
        began = self.running.pop(task_id, None)
        if began is not None and outcome:
            self.ran.labels(name).observe(time.monotonic() - began)
            self.ended.labels(name, outcome).inc()

    def kill(self, name: str, task_id: str) -> None:
        """Count a task that was killed. Celery reports one that has exceeded its time limit twice."""
        if task_id not in self.running and task_id not in self.killed:
            self.killed.add(task_id)
            self.ended.labels(name, "failed").inc()


class Worker:
    counting: Counting | None = None


# Signals --------------------------------------------------------------------


@worker_init.connect
def begin(**kwargs: Any) -> None:
    """Count in this worker if its port is set."""
    if settings.WORKER_METRICS_PORT:
        folders.remove_abandoned()
        Worker.counting = Counting(settings.WORKER_METRICS_PORT)


@worker_ready.connect
def serve(**kwargs: Any) -> None:
    """Serve the figures from the main process."""
    if counting := Worker.counting:
        counting.show_zeros(current_app)
        counting.serve()


@worker_process_init.connect
def leave_the_server(**kwargs: Any) -> None:
    """Close a copy of the main process' socket, so that the port is free as soon as that process has ended."""
    if (counting := Worker.counting) and counting.server:
        counting.server.socket.close()


@worker_shutdown.connect
def end(**kwargs: Any) -> None:
    """Remove the files."""
    if counting := Worker.counting:
        counting.folder.cleanup()


@task_prerun.connect
def count_start(task: Task, **kwargs: Any) -> None:
    """Count a task that begins."""
    if counting := Worker.counting:
        counting.start(task)


@task_postrun.connect
def count_end(task: Task, task_id: str, state: str | None = None, **kwargs: Any) -> None:
    """Count a task that has ended."""
    if counting := Worker.counting:
        counting.end(task.name, task_id, OUTCOMES.get(state or ""))


@task_failure.connect
def count_killed(sender: Task, task_id: str, exception: BaseException, **kwargs: Any) -> None:
    """Count a task that was killed. Its own process could not do so."""
    if (counting := Worker.counting) and isinstance(exception, KILLED):
        counting.kill(sender.name, task_id)


@task_received.connect
def count_again(request: Request, **kwargs: Any) -> None:
    """Have a task that was killed counted anew when its message is delivered again."""
    if counting := Worker.counting:
        counting.killed.discard(request.id)


@task_revoked.connect
def count_revoked(sender: Task, request: Context, **kwargs: Any) -> None:
    """Count a task that was revoked, or had expired, before it began."""
    if counting := Worker.counting:
        counting.ended.labels(sender.name, "revoked").inc()

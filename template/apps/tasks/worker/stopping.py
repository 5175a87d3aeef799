"""Makes a worker wait for its broker, and exit in time when it has to stop.

Celery's own ways to stop do not suit containers. One waits for the running tasks however long they take, until the
container is killed and Redis holds their messages back for the visibility timeout. The other, REMAP_SIGTERM=SIGQUIT,
works with only one kind of pool and reads no results while it waits.
"""

import _thread
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from celery import bootsteps
from celery.concurrency.prefork import _run_ready_callbacks
from celery.exceptions import WorkerShutdown
from celery.signals import worker_shutting_down
from celery.worker import WorkController, state
from django.conf import settings
from kombu import pidbox

from apps.tasks.broker.options import WORKER_SECONDS, answer_limits, broker_error

from .rows import in_words
from .snapshot import excuse_what_comes_back, running_requests

logger = logging.getLogger(__name__)

# Windows has neither signal: nothing suspends a process there, and SIGTERM ends it at once.
STOP = getattr(signal, "SIGSTOP", None)
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)

# Seconds that a worker without tasks has to close its connections to the broker.
GOODBYE_SECONDS = 10
# Seconds that a worker waits for the result of one process before it looks at the next one.
RESULT_SECONDS = 0.01
# Seconds that a worker has, at the end, to read the results of tasks that have ended.
READING_SECONDS = 2
# Seconds for what follows the last result: a failed task leaves a row.
SETTLING_SECONDS = 0.2


class Node(pidbox.Node):
    """The receiver of remote commands such as `celery inspect ping`."""

    def reply(self, *args: Any, **kwargs: Any) -> None:
        """Answer a command. An answer that the broker does not take is dropped, because nobody waits for it long."""
        try:
            super().reply(*args, **kwargs)
        except (*self.state.consumer.connection_errors, *self.state.consumer.channel_errors) as error:
            logger.warning("The answer to a remote command cannot be sent: %s", error)


class Patience(bootsteps.StartStopStep):
    """A step in the start of a worker, before it connects, and the first one when it stops."""

    def __init__(self, worker: WorkController, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        conf = worker.app.conf
        limits = answer_limits(conf.broker_url, WORKER_SECONDS)
        conf.broker_transport_options = {**conf.broker_transport_options, **limits}
        conf.broker_connection_timeout = WORKER_SECONDS
        worker.app.control.mailbox.node_cls = Node

        def leave_in_time(how: str, **kwargs: object) -> None:
            # The other way, "Cold", terminates the running tasks by itself.
            if how == "Warm":
                # `threading` would wait until the thread runs, which gevent forbids in a signal handler.
                _thread.start_new_thread(leave_later, (worker,))

        worker_shutting_down.connect(leave_in_time, weak=False)

    def start(self, worker: WorkController) -> None:
        """End the worker with a sentence if its Redis user lacks a right, without which it would never get anywhere.

        Celery runs scripts on Redis before the steps of a consumer can look, and connects again for ever.
        """
        error = broker_error(everything=True)
        # The driver of Redis may not be installed.
        if type(error).__name__ == "NoPermissionError":
            logger.critical("%s", error)
            raise WorkerShutdown(1)

    def close(self, worker: WorkController) -> None:
        """Let the worker notice at once that a task has ended in a process of the pool."""
        results = getattr(_pool(worker), "_result_handler", None)
        if hasattr(results, "_flush_outqueue"):
            results._flush_outqueue = partial(_read_soon, results._flush_outqueue)
            # The timers go on. This would tell a task a second time that its soft time limit is over.
            results.check_timeouts = None


def _pool(worker: WorkController) -> Any:
    """Return the pool of processes, if it is one."""
    return getattr(worker.pool, "_pool", None)


def _read_soon(read: Callable[..., Any], fd: int, remove: Any, processes: dict[int, Any], on_state_change: Any) -> Any:
    """Read what a process has to say, if it has. Celery would wait half a second for each process in turn."""
    with suppress(OSError):
        if fd in processes and not processes[fd].outq._reader.poll(RESULT_SECONDS):
            return None
    return read(fd, remove, processes, on_state_change)


def leave_later(worker: WorkController) -> None:
    """Exit when the time is up, or as soon as nothing is left to do and the worker still does not exit by itself.

    The latter happens when the broker hangs: Celery says goodbye to it several times and waits for each answer.
    """
    end, idle_since = time.monotonic() + settings.WORKER_STOP_SECONDS, time.monotonic()
    try:
        while time.monotonic() < end and time.monotonic() < idle_since + GOODBYE_SECONDS:
            time.sleep(1)
            if state.reserved_requests or state.active_requests or getattr(_pool(worker), "_cache", None):
                idle_since = time.monotonic()
            _attempt(partial(_acknowledge, worker))
    finally:
        give_back_and_leave(worker)


def give_back_and_leave(worker: WorkController) -> None:
    """Give the messages of running tasks back to the broker, for other workers, and exit.

    Whatever goes wrong in one of the steps, the others follow.
    """
    processes = list(getattr(_pool(worker), "_pool", ()))
    children = [process.pid for process in processes]
    # Marks that the processes below do not die because of their tasks.
    state.should_terminate = True
    try:
        # A stopped process may hold a lock of the database.
        _attempt(partial(excuse_what_comes_back, worker.app))
        # They are stopped before another worker can start the same task, and killed when nothing here would react to it
        # any more.
        _attempt(partial(_send, STOP, children))
        _attempt(partial(_read_results, processes))
        _attempt(_tell)
        _attempt(partial(_acknowledge, worker))
        _attempt(partial(_give_back, worker))
    finally:
        # Nothing may come in between: if this thread failed here, the worker would never exit.
        try:
            _send(KILL, children)
        finally:
            os._exit(0)


def _attempt(step: Callable[[], None]) -> None:
    try:
        step()
    except Exception:
        logger.exception("Not all could be given back; the broker delivers it again by itself")


def _read_results(processes: list[Any]) -> None:
    """Wait until the main thread has read what the processes have said last, and has acted on it."""
    end = time.monotonic() + READING_SECONDS
    while time.monotonic() < end and any(map(_has_result, processes)):
        time.sleep(RESULT_SECONDS)
    time.sleep(SETTLING_SECONDS)


def _tell() -> None:
    if running := ", ".join(in_words(request.humaninfo) for request in running_requests()):
        logger.warning("Given back, because they still run after %s s: %s", settings.WORKER_STOP_SECONDS, running)
    else:
        logger.warning("Left without waiting any longer for the broker's answer to the goodbye")


def _send(number: signal.Signals | None, pids: list[int]) -> None:
    for pid in pids if number else ():
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _has_result(process: Any) -> bool:
    with suppress(OSError):
        return process.outq._reader.poll(0)
    return False


def _acknowledge(worker: WorkController) -> None:
    """Acknowledge the tasks that have ended. In a pool of threads, Celery waits until all have.

    Until the consumer has stopped, the main thread does so, and uses the connection for other things, too.
    """
    if worker.hub and worker.consumer.blueprint.state == bootsteps.TERMINATE:
        _run_ready_callbacks(worker.hub)


def _give_back(worker: WorkController) -> None:
    """Requeue the unacknowledged messages. RabbitMQ, whose channels keep no list, does so by itself."""
    if qos := getattr(worker.consumer.task_consumer.channel, "qos", None):
        for request in running_requests():
            # It may have come by a connection that was lost meanwhile.
            qos._delivered.setdefault(request._message.delivery_tag, request._message)
        qos.restore_unacked()

"""What is different in a worker: it is patient with its broker, and when it has to stop, it leaves in time.

Celery's own ways to stop fit no container. One waits for the running tasks however long they take, until the container
is killed and Redis holds their messages back for the visibility timeout; the other, REMAP_SIGTERM=SIGQUIT, is made for
one kind of pool, and reads no results while it waits.
"""

import _thread
import logging
import os
import signal
import time
from contextlib import suppress
from typing import Any

from celery import bootsteps
from celery.signals import worker_shutting_down
from celery.worker import WorkController, state
from django.conf import settings

from .broker import WORKER_SECONDS, answer_limits

logger = logging.getLogger(__name__)


class Patience(bootsteps.Step):
    """A step in the start of a worker, before it connects."""

    def __init__(self, worker: WorkController, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        conf = worker.app.conf
        limits = answer_limits(conf.broker_url, WORKER_SECONDS)
        conf.broker_transport_options = {**conf.broker_transport_options, **limits}
        conf.broker_connection_timeout = WORKER_SECONDS

        def leave_in_time(how: str, **kwargs: object) -> None:
            # The other way, "Cold", ends the running tasks by itself.
            if how == "Warm":
                # Not by `threading`: it waits until the thread runs, which gevent forbids where it handles signals.
                _thread.start_new_thread(leave_later, (worker,))

        worker_shutting_down.connect(leave_in_time, weak=False)


def leave_later(worker: WorkController) -> None:
    """Leave when the time is over, unless all tasks have ended before and the process with them."""
    time.sleep(settings.WORKER_STOP_SECONDS)
    give_back_and_leave(worker)


def give_back_and_leave(worker: WorkController) -> None:
    """Give the messages of the tasks that still run back to the broker, for other workers, and end this process."""
    children = [process.pid for process in getattr(getattr(worker.pool, "_pool", None), "_pool", ())]
    try:
        running = ", ".join(request.humaninfo() for request in tuple(state.active_requests))
        logger.warning("Given back, because they still run after %s s: %s", settings.WORKER_STOP_SECONDS, running)
        # Tells those who watch over tasks that the processes below do not die by a fault of their task.
        state.should_terminate = True
        # Stopped before another worker can start the same task, and killed once nobody here notices any more.
        _send(signal.SIGSTOP, children)
        _give_back(worker)
    except Exception:
        logger.exception("Not all could be given back; the broker delivers it again by itself")
    finally:
        _send(signal.SIGKILL, children)
        os._exit(0)


def _send(number: signal.Signals, pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _give_back(worker: WorkController) -> None:
    """Put what is not acknowledged back into its queue; RabbitMQ, whose channels keep no list, does so by itself."""
    if qos := getattr(worker.consumer.task_consumer.channel, "qos", None):
        qos.restore_unacked()

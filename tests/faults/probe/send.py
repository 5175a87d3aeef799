"""Sends tasks as a web server does, and notes which were sent or refused: `python -m probe.send '{"count": 9}'`."""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from threading import Timer
from typing import Any

import django
from celery import chord, current_app

django.setup()

from django.contrib.auth.models import Group  # noqa: E402
from django.db import transaction  # noqa: E402
from django.utils import timezone  # noqa: E402
from django_celery_beat.models import ClockedSchedule, PeriodicTask  # noqa: E402
from probe import tasks  # noqa: E402
from probe.tasks import note, wait_while_held  # noqa: E402


class RolledBack(Exception):
    """What makes every second transaction end without a trace."""


def send(identity: int, task: str, seconds: float, padding: int, options: dict[str, Any]) -> None:
    """Send one task; note how many seconds it took to send it, or to be refused and why."""
    begun = time.monotonic()
    arguments = (identity, seconds, "x" * padding) if padding else (identity, seconds)
    try:
        # One that is gone from the code is sent by those who still know its name.
        known = getattr(tasks, task, None) or current_app.signature(f"probe.tasks.{task}")
        start(known, *arguments, **options)
    except Exception as error:
        note("refused", identity, f"{time.monotonic() - begun:.1f} {type(error).__name__}")
    else:
        note("sent", identity, f"{time.monotonic() - begun:.1f}")


def start(task: Any, *arguments: Any, **options: Any) -> None:
    """Send a task of Celery with these options, or enqueue one of Django's framework."""
    if hasattr(task, "enqueue"):
        task.enqueue(*arguments)
    else:
        task.apply_async(arguments, **options)


def send_in_transaction(identity: int) -> None:
    """Send a task that looks for a row, and then commit the row, or roll it back if the number is odd."""
    with suppress(RolledBack), transaction.atomic():
        Group.objects.create(name=str(identity))
        start(tasks.find, identity, 0)
        time.sleep(0.02)
        if identity % 2:
            note("withdrawn", identity)
            raise RolledBack
        note("sent", identity)


def send_chord(identities: range, seconds: float) -> None:
    """Send tasks with these numbers, the last of which follows when all others are done."""
    *parts, body = (tasks.work.si(identity, seconds) for identity in identities)
    chord(parts)(body)
    for identity in identities:
        note("sent", identity)


def schedule(identity: int, moment: float) -> None:
    """Let beat send a task once, at a moment in seconds from now."""
    clocked = ClockedSchedule.objects.create(clocked_time=timezone.now() + timedelta(seconds=moment))
    what = {"task": "probe.tasks.work", "args": f"[{identity}, 0.01]"}
    PeriodicTask.objects.create(name=f"probe {identity}", clocked=clocked, one_off=True, **what)
    note("sent", identity)


def main(
    *,
    count: int,
    first: int = 0,
    how: str = "send",
    task: str = "work",
    seconds: float | None = None,
    pause: float = 0,
    soon: float = 0,
    padding: int = 0,
    at_once: int = 1,
    give_up: float | None = None,
    options: dict[str, Any],
) -> None:
    """Send tasks with the numbers from `first` on, some at once; without `seconds` they take 0.05 to 0.15.

    What is not sent in `give_up` seconds is neither sent nor refused.
    """
    numbers = range(first, first + count)
    if give_up:
        timer = Timer(give_up, os._exit, [0])
        timer.daemon = True
        timer.start()
    if how == "chord":
        send_chord(numbers, seconds or 0.05)
        return
    if at_once > 1:
        # The first one alone, as a server has sent tasks before it is busy.
        send(first, task, seconds or 0.05, padding, options)
        with ThreadPoolExecutor(at_once) as threads:
            for identity in numbers[1:]:
                threads.submit(send, identity, task, seconds or 0.05, padding, options)
        return
    for identity in numbers:
        wait_while_held("send", identity)
        if how == "transaction":
            send_in_transaction(identity)
        elif how == "schedule":
            schedule(identity, soon + pause * (identity - first))
        else:
            send(identity, task, seconds or 0.05 + identity % 11 / 100, padding, options)
            time.sleep(pause)


if __name__ == "__main__":
    main(**{"options": {}} | json.loads(sys.argv[1]))

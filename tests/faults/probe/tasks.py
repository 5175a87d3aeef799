"""Tasks that leave a line outside the broker and outside the database when they start and when they are done."""

import os
import signal
import time

from celery import shared_task
from django.contrib.auth.models import Group

# Under the same names, they are tasks of Celery or tasks of Django's framework, which bare Celery does not have.
if os.environ["PROBE_ENQUEUES"]:
    from apps.background import task as shared_task


def note(what: str, identity: int, detail: object = "") -> None:
    """Append a line to the record: so short a write is all there or not at all, whoever else writes and dies."""
    record = os.open(os.environ["PROBE_RECORD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(record, f"{time.time():.3f} {what} {identity} {detail}\n".encode())
    os.close(record)


def wait_while_held(what: str, identity: int) -> None:
    """Wait as long as the stage holds back this task, or the sending of it."""
    while held(what, identity):
        time.sleep(0.05)


def held(what: str, identity: int) -> bool:
    """Return whether the stage has said, in a file beside the record, that a task with this number has to wait."""
    try:
        with open(f"{os.environ['PROBE_RECORD']}.{what}") as file:
            first, end = map(int, file.read().split())
    except FileNotFoundError:
        return False
    return first <= identity < end


@shared_task
def work(identity: int, seconds: float, padding: str = "") -> None:
    """Wait, as a task does that asks another system."""
    note("started", identity, os.getpid())
    wait_while_held("work", identity)
    time.sleep(seconds)
    note("done", identity, os.getpid())


@shared_task(durable=True)
def work_durably(identity: int, seconds: float) -> None:
    """Do the same as a task that a row stands for until it is done; bare Celery does not know the word."""
    note("started", identity, os.getpid())
    wait_while_held("work", identity)
    time.sleep(seconds)
    note("done", identity, os.getpid())


@shared_task
def find(identity: int, seconds: float) -> None:
    """Look for the row that was written in the transaction of the sender."""
    note("done" if Group.objects.filter(name=str(identity)).exists() else "missing", identity)


@shared_task
def kill_the_worker(identity: int, seconds: float) -> None:
    """End the process at once, as lack of memory does."""
    note("poison", identity)
    os.kill(os.getpid(), signal.SIGKILL)


class WithoutText(Exception):
    """An error that has no text, which a mistake in its class or a lazy translation may bring about."""

    def __str__(self) -> str:
        return None


@shared_task
def fail_without_a_text(identity: int, seconds: float) -> None:
    """Fail with an error that cannot be written down as others are."""
    note("started", identity, os.getpid())
    raise WithoutText


@shared_task
def nothing() -> None:
    """Do nothing; for throughput."""


@shared_task(keep_result=False)
def nothing_without_result() -> None:
    """Do nothing; for throughput. Celery itself does not know the word, and keeps no result anyway."""


@shared_task
def wait_20_ms() -> None:
    """Wait as long as another system takes to answer; for throughput."""
    time.sleep(0.02)

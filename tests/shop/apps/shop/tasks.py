"""A task of each kind that Django's framework knows."""

from apps.background import TaskContext, task

from .models import Note


class SoldOut(Exception):
    """What a task raises here."""


@task
def write(text: str) -> str:
    """Write a note."""
    return Note.objects.create(text=text).text


@task(takes_context=True)
def write_attempt(context: TaskContext, text: str) -> list:
    """Write a note, and return what the context says."""
    Note.objects.create(text=text)
    return [context.attempt, context.task_result.args, context.task_result.status]


@task
async def write_in_a_coroutine(text: str) -> str:
    """Write a note in a coroutine."""
    return (await Note.objects.acreate(text=text)).text


@task
def write_later(text: str) -> str:
    """Write a note when its time has come."""
    return Note.objects.create(text=text).text


@task(priority=50)
def write_first(text: str) -> str:
    """Write a note before others are written."""
    return Note.objects.create(text=text).text


@task
def sell_out(text: str) -> None:
    """Write a note, and fail."""
    Note.objects.create(text=text)
    raise SoldOut(text)


@task
def read(note_id: int) -> str:
    """Read a note that was saved in the transaction that has enqueued this."""
    return Note.objects.get(pk=note_id).text


@task
def square(number: int) -> int:
    """Write a note for each of many."""
    Note.objects.create(text="square")
    return number * number

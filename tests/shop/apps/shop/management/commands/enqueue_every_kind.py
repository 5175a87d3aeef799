import json
import time
from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand
from django.db import transaction
from django.db.models import Count
from django.utils import timezone

from apps.background import Task, TaskResult, TaskResultDoesNotExist
from apps.shop import tasks
from apps.shop.models import Note

MANY = 200


class RolledBack(Exception):
    """Takes back a transaction."""


class Command(BaseCommand):
    """The command: enqueues tasks of every kind, and prints what has become of them as JSON."""

    help = "Enqueue a task of each kind, wait until all have ended, and print what has become of them."

    def handle(self, *args: Any, **options: Any) -> None:
        """Nothing that is printed depends on who has run the tasks, or on when."""
        Note.objects.all().delete()
        results = {
            "plain": tasks.write.enqueue("plain"),
            "with context": tasks.write_attempt.enqueue("with context"),
            "in a coroutine": tasks.write_in_a_coroutine.enqueue(text="in a coroutine"),
            "deferred": later(tasks.write_later).enqueue("deferred"),
            "prioritised": tasks.write_first.enqueue("prioritised"),
            "failing": tasks.sell_out.enqueue("failing"),
        }
        with transaction.atomic():
            results["committed"] = tasks.read.enqueue(Note.objects.create(text="committed").pk)
        lost = roll_back()
        many = [tasks.square.enqueue(number) for number in range(MANY)]
        self.stdout.write("All are enqueued.")
        self.stdout.flush()
        outcome: dict[str, Any] = {name: outcome_of(result) for name, result in results.items()}
        outcome["many"] = [outcome_of(result)["value"] for result in many]
        outcome["rolled back"] = has_result(lost)
        outcome["notes"] = dict(Note.objects.order_by("text").values_list("text").annotate(Count("pk")))
        self.stdout.write(json.dumps(outcome, sort_keys=True))


def later(task: Task) -> Task:
    """Return the task for later, by so much that somebody else has to run it."""
    return task.using(run_after=timezone.now() + timedelta(seconds=2))


def roll_back() -> TaskResult:
    """Enqueue a task in a transaction that is rolled back."""
    try:
        with transaction.atomic():
            result = tasks.write.enqueue("rolled back")
            raise RolledBack
    except RolledBack:
        return result


def has_result(result: TaskResult) -> bool:
    """Return whether there is a result of a task."""
    try:
        result.refresh()
    except TaskResultDoesNotExist:
        return False
    return True


def outcome_of(result: TaskResult) -> dict[str, Any]:
    """Wait until a task has ended, and return what has become of it."""
    result.refresh()
    while not result.is_finished:
        time.sleep(0.1)
        result.refresh()
    return {
        "attempts": result.attempts,
        "errors": [error.exception_class_path for error in result.errors],
        "status": result.status,
        "value": result.return_value if result.status == "SUCCESSFUL" else None,
    }

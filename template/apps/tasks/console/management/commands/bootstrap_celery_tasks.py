"""`manage.py bootstrap_celery_tasks`: writes SCHEDULED_TASKS to the database, where a running beat sees it in seconds.

Which wins, the settings or the admin:

- While an entry of SCHEDULED_TASKS stays the same, its row is not touched: an edit in the admin lasts, and the table
  that the command prints names it. Only a deleted row is created again, so to stop a task, disable it.
- When an entry changes, the settings win. This includes a key that was removed from the entry, which returns to its
  default. The exception is a task disabled in the admin, which stays disabled until it is enabled there. (A new
  schedule enables a one-off task again that beat disabled after its run, and a new `expires` enables one that was
  over.)
- A periodic task that this command did not create is left alone. If it has the name of an entry and runs the same task,
  the command adopts it. If it runs another task, the command refuses.
- An entry with a new name is a new entry, and the old one is stale. The task that a stale entry created is reported and
  keeps running, and `--remove-stale` deletes it. A task that it had adopted is released instead of deleted: it stays
  unchanged, keeps running, and counts as made in the admin again.

Each release calls this command, so it also sends the tasks that were enqueued to run later while Celery was off.
"""

from argparse import ArgumentParser
from collections import Counter
from typing import Any

from django.core.management import BaseCommand

from apps.tasks.beat.schedule import Step, bootstrap
from apps.tasks.sending.stored import send_stored


class Command(BaseCommand):
    """The command. The docstring of the module contains the rules."""

    help = "Write SCHEDULED_TASKS to the database, where beat reads it. Edits in the admin last until an entry changes."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the two options."""
        parser.add_argument(
            "--remove-stale",
            action="store_true",
            help="delete what this command made for entries that are gone; release what it had adopted",
        )
        parser.add_argument("--dry-run", action="store_true", help="print what would be done, write nothing")

    def handle(self, *, remove_stale: bool, dry_run: bool, verbosity: int, **options: Any) -> None:
        """Write, and print a line for each task."""
        steps = bootstrap(remove_stale=remove_stale, dry_run=dry_run)
        if verbosity:
            self.stdout.write("\n".join([*_table(steps), _summary(steps, dry_run)]))
        sent = 0 if dry_run else send_stored()
        if sent and verbosity:
            self.stdout.write(f"Sent to the workers: {sent}, enqueued while Celery was off.")


def _table(steps: list[Step]) -> list[str]:
    width = max((len(step.name) for step in steps), default=0)
    return [f"{step.action:9}  {step.name:{width}}  {step.note}".rstrip() for step in steps]


def _summary(steps: list[Step], dry_run: bool) -> str:
    counts = Counter(step.action for step in steps)
    counted = ", ".join(f"{count} {action}" for action, count in counts.items()) or "SCHEDULED_TASKS is empty"
    return f"{counted}. Nothing was written: --dry-run." if dry_run else f"{counted}."

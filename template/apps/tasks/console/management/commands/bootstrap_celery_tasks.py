"""`manage.py bootstrap_celery_tasks`: write SCHEDULED_TASKS to the database, where a running beat sees it in seconds.

Who wins, the settings or the admin:

- While an entry of SCHEDULED_TASKS stays the same, its row is not touched: an edit in the admin lasts, and the table
  that the command prints names it. Only a row that was deleted is made again; to stop a task, disable it.
- When an entry changes, the settings win, for a key that was removed from it too: it is back at its default. Except
  that a task disabled in the admin stays disabled, until it is enabled there. (A one-off task that beat disabled after
  its run is armed again by a new schedule, and one that was over by a new `expires`.)
- A periodic task that this command did not make is left alone. Only if it has the name of an entry is it adopted, when
  it runs the same task; when it runs another, the command refuses.
- An entry with a new name is a new entry, and the former one is stale. What a stale entry made is reported and goes on
  running; `--remove-stale` deletes it. What it had adopted is never deleted, but released: it stays as it is, goes on
  running, and is no more than a task that somebody made in the admin.
"""

from argparse import ArgumentParser
from collections import Counter
from typing import Any

from django.core.management import BaseCommand

from apps.tasks.beat.schedule import Step, bootstrap


class Command(BaseCommand):
    """The command; the rules are in the docstring of the module."""

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


def _table(steps: list[Step]) -> list[str]:
    width = max((len(step.name) for step in steps), default=0)
    return [f"{step.action:9}  {step.name:{width}}  {step.note}".rstrip() for step in steps]


def _summary(steps: list[Step], dry_run: bool) -> str:
    counts = Counter(step.action for step in steps)
    counted = ", ".join(f"{count} {action}" for action, count in counts.items()) or "SCHEDULED_TASKS is empty"
    return f"{counted}. Nothing was written: --dry-run." if dry_run else f"{counted}."

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from apps.background.framework import task_backends
from apps.background.immediate import run_due


class Command(BaseCommand):
    """The command. Nothing else runs these tasks, so call it every minute, for example from cron."""

    help = "Run the tasks whose time has come: those with `run_after`, and those that were enqueued and never started."

    def handle(self, *args: Any, **options: Any) -> None:
        """Run them, and say how many there were. Exit with 1 if one of them failed."""
        if not getattr(task_backends["default"], "runs_here", False):
            raise CommandError("Another backend in TASKS runs the tasks, so this command has nothing to do.")
        succeeded, failed = run_due()
        if failed:
            raise CommandError(f"Succeeded: {succeeded}, failed: {failed}. The admin shows the errors.")
        self.stdout.write(f"Succeeded: {succeeded}.")

"""`manage.py replay_failed_tasks`: sends failed tasks again: all of them, or those that the options select."""

from argparse import ArgumentParser
from datetime import datetime
from typing import Any

from django.core.management import BaseCommand, CommandError
from django.utils import timezone
from kombu.exceptions import OperationalError

from apps.tasks.models import FailedTask
from apps.tasks.worker.replay import send_again
from apps.web.clock import for_column


class Command(BaseCommand):
    """Each row is deleted as soon as the broker has the message."""

    help = "Send failed tasks again, the oldest first: all of them, or those that every option agrees on."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the options that select tasks."""
        parser.add_argument("ids", nargs="*", metavar="TASK_ID", help="the ids of these tasks only")
        parser.add_argument("--task", metavar="NAME", help="only tasks of this name, as in apps.orders.tasks.ship")
        parser.add_argument("--since", type=_moment, metavar="TIME", help="only what failed since 2026-01-31T09:00")
        parser.add_argument("--dry-run", action="store_true", help="print what would be sent, send nothing")

    def handle(
        self, *, ids: list[str], task: str | None, since: datetime | None, dry_run: bool, **options: Any
    ) -> None:
        """Send them one by one, and stop at the first one that the broker does not accept."""
        wanted = {"task_id__in": ids, "name": task, "last_failed_at__gte": since}
        chosen = FailedTask.objects.filter(**{lookup: value for lookup, value in wanted.items() if value})
        if unknown := set(ids).difference(chosen.values_list("task_id", flat=True)):
            raise CommandError(f"No failed task that you ask for has the id {', '.join(sorted(unknown))}.")
        sent = 0
        for failed in chosen.defer("message", "traceback").order_by("last_failed_at"):
            try:
                if dry_run or send_again(failed.pk):
                    self.stdout.write(f"{failed} {failed.args} {failed.kwargs}: {failed.exception}")
                    sent += 1
            except OperationalError as error:
                raise CommandError(f"The broker does not answer; {sent} sent, the others kept: {error}") from error
        self.stdout.write(f"{sent} would be sent." if dry_run else f"{sent} sent.")


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return for_column(moment if timezone.is_aware(moment) else timezone.make_aware(moment))

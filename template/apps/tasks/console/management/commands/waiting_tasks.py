"""`manage.py waiting_tasks`: lists the work that is lost, or stops, when Celery is switched off."""

from typing import Any

from celery import current_app
from django.core.management import BaseCommand, CommandError

from apps.tasks.broker.options import broker_error
from apps.tasks.console.waiting import kept, listed, waiting


class Command(BaseCommand):
    """It exits with 1 if there is any, so that a script can wait for the end of the work."""

    help = "List the tasks that wait: in queues, for their time, in the database, with workers and on the schedule."

    def handle(self, *args: Any, **options: Any) -> None:
        """Print a line for each place where tasks wait."""
        if not current_app.conf.task_always_eager and (error := broker_error()):
            raise CommandError(f"The broker does not answer, so its queues are not known: {error}")
        places = waiting()
        for place in places:
            self.stdout.write(str(place))
        if tasks := kept():
            self.stdout.write(f"Without Celery, `manage.py run_due_tasks` runs these of them: {listed(tasks)}.")
        if any(place.place != "schedule" for place in places):
            raise CommandError("Tasks wait. If you switch Celery off now, no worker runs them.")
        self.stdout.write("No task waits.")

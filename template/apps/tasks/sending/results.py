"""A result backend in the database whose chords complete even if a part runs twice."""

from functools import partial
from typing import Any

from celery.app.task import Context
from celery.canvas import maybe_signature
from django.db import router, transaction
from django_celery_results.backends import DatabaseBackend
from django_celery_results.backends.database import trigger_callback
from django_celery_results.models import ChordCounter

from apps.background.storable import as_text

from .coroutines import call_where_queries_may_run
from .message import was_redelivered


class ProjectBackend(DatabaseBackend):
    """Results in the database. A chord continues when each of its parts has a result, however often a part ran.

    django-celery-results itself counts how often parts end. A redelivered part is counted twice, so the body is
    requested while other parts are still running, and never again. If a worker dies after the last count, the body is
    never requested either.
    """

    def store_result(
        self, task_id: str, result: Any, state: str, traceback: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Store a result. A traceback with a character that PostgreSQL refuses must not take the place of the error."""
        return super().store_result(task_id, result, state, traceback and as_text(traceback), *args, **kwargs)

    def apply_chord(self, *args: Any, **kwargs: Any) -> None:
        """Record how many parts a chord has, even if a coroutine sends it."""
        call_where_queries_may_run(partial(super().apply_chord, *args, **kwargs))

    def on_chord_part_return(self, request: Context, state: str, result: Any, **kwargs: Any) -> None:
        """Send the body of the chord if this part was the last."""
        if not (request.id and request.group):
            return
        counters = ChordCounter.objects.using(router.db_for_write(ChordCounter))
        with transaction.atomic(using=counters.db):
            counter = counters.select_for_update().filter(group_id=request.group).first()
            # At zero, another part is sending the body. If that part has died, its message is redelivered.
            if not counter or (counter.count == 0 and not _came_back(request)):
                return
            if counter.count > 1:
                # Checking all results each time would take a quadratic number of queries.
                counter.count -= 1
            elif counter.group_result(app=self.app).ready():
                counter.count = 0
            counter.save(update_fields=["count"])
        if counter.count == 0:
            body = maybe_signature(request.chord, app=self.app)
            trigger_callback(app=self.app, callback=body, group_result=counter.group_result(app=self.app))
            counter.delete()


def _came_back(request: Context) -> bool:
    return was_redelivered(request) or bool(request.get("lost_workers"))

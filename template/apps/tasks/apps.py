from importlib.metadata import entry_points
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.http import HttpRequest

from .broker import broker_kind


class TasksConfig(AppConfig):
    """Background tasks by Celery: the schedule in the database, and a look at the queue on the home page."""

    name = "apps.tasks"
    verbose_name = "Background tasks"
    home_panel = "tasks/panel.html"

    def ready(self) -> None:
        """Register the checks, tasks and signals of modules that nothing else needs to import."""
        from . import checks, outbox, queue_checks, unattended  # noqa: F401

    def switched_on(self) -> list[str]:
        """Return what the home page lists: Celery with its broker, and the packages that add a command to Celery."""
        broker = "no broker" if settings.CELERY_TASK_ALWAYS_EAGER else broker_kind(settings.CELERY_BROKER_URL)
        return [f"Celery with {broker}", *(command.name.title() for command in entry_points(group="celery.commands"))]

    def home_panel_context(self, request: HttpRequest) -> dict[str, Any] | None:
        """Return what the panel shows; None, and so no panel, for those who may not see it."""
        # Views import models, which are not loaded yet when this module is.
        from .views import may_see_tasks, panel_context

        return panel_context() if may_see_tasks(request) else None

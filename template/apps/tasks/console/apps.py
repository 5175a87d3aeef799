from typing import Any

from django.apps import AppConfig
from django.http import HttpRequest


class ConsoleConfig(AppConfig):
    """What people see of the tasks: a look at the queue on the home page, the admin, checks and commands."""

    name = "apps.tasks.console"
    label = "tasks_console"
    verbose_name = "Background tasks"
    home_panel = "tasks/panel.html"

    def ready(self) -> None:
        """Register the checks."""
        from . import checks, queue_checks  # noqa: F401

    def home_panel_context(self, request: HttpRequest) -> dict[str, Any] | None:
        """Return what the panel shows; None, and so no panel, for those who may not see it."""
        # Views import models, which are not loaded yet when this module is.
        from .views import may_see_tasks, panel_context

        return panel_context() if may_see_tasks(request) else None

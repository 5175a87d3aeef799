from typing import Any

from django.apps import AppConfig
from django.http import HttpRequest


class ConsoleConfig(AppConfig):
    """What people see of the tasks: a panel on the home page, the admin, the checks and the commands."""

    name = "apps.tasks.console"
    label = "tasks_console"
    verbose_name = "Background tasks"
    home_panel = "tasks/panel.html"

    def ready(self) -> None:
        """Register the checks."""
        from . import checks, queue_checks  # noqa: F401

    def home_panel_context(self, request: HttpRequest) -> dict[str, Any] | None:
        """Return the context of the panel, or None if this visitor may not see it."""
        # Views import models, and models are not loaded yet when this module is imported.
        from .views import may_see_tasks, panel_context

        return panel_context() if may_see_tasks(request) else None

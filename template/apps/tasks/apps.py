from importlib.metadata import entry_points

from django.apps import AppConfig
from django.conf import settings

from .broker import broker_kind


class TasksConfig(AppConfig):
    """Background tasks with Celery: the code that sends, runs, schedules and remembers them."""

    name = "apps.tasks"
    verbose_name = "Background tasks"

    def ready(self) -> None:
        """Register the tasks and signals of modules that nothing else imports."""
        from .sending import outbox, unattended  # noqa: F401
        from .worker import logs, traces  # noqa: F401

    def switched_on(self) -> list[str]:
        """Return what the home page lists: Celery with its broker, and the packages that add a command to Celery."""
        broker = "no broker" if settings.CELERY_TASK_ALWAYS_EAGER else broker_kind(settings.CELERY_BROKER_URL)
        return [f"Celery with {broker}", *(command.name.title() for command in entry_points(group="celery.commands"))]

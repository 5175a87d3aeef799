from django.apps import AppConfig


class MetricsConfig(AppConfig):
    """Metrics for Prometheus."""

    name = "apps.metrics"
    verbose_name = "Metrics"

    def ready(self) -> None:
        """Let senders stamp their messages, and workers count their tasks."""
        from . import counting, waits  # noqa: F401

    def switched_on(self) -> list[str]:
        """Return what the home page lists."""
        return [self.verbose_name]

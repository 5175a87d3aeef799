"""Sends the last spans of a process of the pool, which ends without doing by itself what others do at their end."""

from threading import Thread
from typing import Any

from celery.signals import worker_process_shutdown

from apps.web.telemetry import has_opentelemetry

# A collector that does not answer must not hold up the stop of a worker.
PATIENCE_SECONDS = 2


@worker_process_shutdown.connect
def flush(**kwargs: Any) -> None:
    """Send the spans and the figures that OpenTelemetry has collected in this process since it last sent some."""
    if has_opentelemetry():
        from opentelemetry import metrics, trace

        for provider in (trace.get_tracer_provider(), metrics.get_meter_provider()):
            # Without OpenTelemetry's own implementation, which a variable can disable, there is nothing to send.
            if force_flush := getattr(provider, "force_flush", None):
                thread = Thread(target=force_flush, daemon=True)
                thread.start()
                thread.join(PATIENCE_SECONDS)

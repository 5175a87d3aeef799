"""Reports errors to Sentry, and traces to a collector of OpenTelemetry, if their variables are set.

Both are optional dependencies: the extras `sentry` and `opentelemetry` in pyproject.toml.
"""

import os
from importlib.util import find_spec

from django.conf import settings
from django.core.checks import CheckMessage, Warning, register


def start() -> None:
    """Start what the settings ask for. Each process calls this once, when its apps are loaded."""
    if settings.SENTRY_DSN:
        start_sentry()
    if has_opentelemetry():
        start_opentelemetry()


def has_opentelemetry() -> bool:
    """Return whether traces have somewhere to go, and something makes them."""
    # The package `opentelemetry` alone comes with other libraries, too, and traces nothing.
    return settings.OPENTELEMETRY and bool(find_spec("opentelemetry") and find_spec("opentelemetry.distro"))


def start_sentry() -> None:
    """Report errors and, for the share of requests and tasks in the settings, how long each of their steps took."""
    import sentry_sdk

    # Zero would still trace each request whose sender asks for it. Without a rate, nothing is traced.
    sentry_sdk.init(dsn=settings.SENTRY_DSN, traces_sample_rate=settings.SENTRY_TRACES_SAMPLE_RATE or None)


def start_opentelemetry() -> None:
    """Trace every library for which an instrumentation is installed. Variables of OpenTelemetry set the rest."""
    from opentelemetry import trace
    from opentelemetry.instrumentation.auto_instrumentation import initialize

    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        # An operator in the cluster has already done this.
        return
    # The extra contains the exporter for this protocol alone.
    os.environ.setdefault("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    # Before `answer_up`, it would refuse probes, which ask by an address that is no allowed host.
    os.environ.setdefault("OTEL_PYTHON_DJANGO_MIDDLEWARE_POSITION", "1")
    # The name of the service has precedence over the attributes.
    if "service.name=" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        os.environ.setdefault("OTEL_SERVICE_NAME", settings.ROOT_URLCONF.partition(".")[0])
    initialize()


@register()
def check_opentelemetry(**kwargs: object) -> list[CheckMessage]:
    """Warn if traces have somewhere to go, but nothing makes them. A platform may have set the variable by itself."""
    if not settings.OPENTELEMETRY or has_opentelemetry():
        return []
    text = "OTEL_EXPORTER_OTLP_ENDPOINT is set, but OpenTelemetry is not installed, so nothing is traced."
    return [Warning(text, hint='Install the extra "opentelemetry", or unset the variable.', id="web.W001")]

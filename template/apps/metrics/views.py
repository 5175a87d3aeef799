from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from apps.web.views import health_token_required

from .collector import StateCollector

# Prometheus' own registry would add what is true of only one of the server's processes.
registry = CollectorRegistry()
registry.register(StateCollector())


@login_not_required
@never_cache
@require_safe
@health_token_required
def metrics(request: HttpRequest) -> HttpResponse:
    """Show the state of the queues, the outbox and beat in the form that Prometheus reads."""
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)

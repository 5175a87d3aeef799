"""The pages that belong to no other app."""

import secrets
from collections.abc import Callable
from functools import wraps

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from .health import is_fine, run_checks
from .home import commands, facts, panels, superuser_exists, switched_on


@login_not_required
@require_safe
def home(request: HttpRequest) -> HttpResponse:
    """Welcome the visitor. Show developers how the project runs and, in development, what to do next."""
    context = {"panels": panels(request)}
    if settings.DEBUG or request.user.is_staff:
        context |= {"facts": facts(request), "switched_on": switched_on()}
    if settings.DEBUG:
        context |= {"guide": True, "commands": commands(), "superuser_exists": superuser_exists()}
    return render(request, "web/home.html", context)


def health_token_required(view: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Show a page with internals only to callers that send the HEALTH_TOKEN as a bearer token, except in development.

    If none is set, there is no such page.
    """

    @wraps(view)
    def protected(request: HttpRequest) -> HttpResponse:
        if not settings.DEBUG:
            if not settings.HEALTH_TOKEN:
                raise Http404("HEALTH_TOKEN is not set.")
            if not _has_bearer_token(request, settings.HEALTH_TOKEN):
                return HttpResponse("A token is needed.\n", status=401, headers={"WWW-Authenticate": "Bearer"})
        return view(request)

    return protected


@login_not_required
@never_cache
@require_safe
@health_token_required
def health(request: HttpRequest) -> HttpResponse:
    """Answer with the result of every health check as JSON: 200 if all are fine, else 503."""
    results = run_checks()
    return JsonResponse(results, status=200 if all(map(is_fine, results.values())) else 503)


def _has_bearer_token(request: HttpRequest, token: str) -> bool:
    # As bytes, because compare_digest refuses text that is not ASCII.
    return secrets.compare_digest(request.headers.get("Authorization", "").encode(), f"Bearer {token}".encode())

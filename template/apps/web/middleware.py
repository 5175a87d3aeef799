"""The middleware of this project."""

from contextlib import suppress

from allauth.account.adapter import get_adapter
from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import resolve_url
from django.utils.cache import add_never_cache_headers, has_vary_header
from django.utils.decorators import sync_and_async_middleware
from django_htmx.http import HttpResponseClientRefresh

from .logs import REQUEST_ID, fields, request_id


@sync_and_async_middleware
def answer_up(get_response):
    """Answer /up with "ok" before anything else runs, without database or session, and for every Host header.

    Load balancers probe containers by IP address, which ALLOWED_HOSTS refuses. A constant answer gives nothing away.
    """
    if iscoroutinefunction(get_response):

        async def middleware(request: HttpRequest) -> HttpResponse:
            return _up() if request.path_info == "/up" else await get_response(request)

    else:

        def middleware(request: HttpRequest) -> HttpResponse:
            return _up() if request.path_info == "/up" else get_response(request)

    return middleware


@sync_and_async_middleware
def find_visitor(get_response):
    """Make REMOTE_ADDR the address of the visitor instead of the nearest proxy, also in the server's access log."""
    if iscoroutinefunction(get_response):

        async def middleware(request: HttpRequest) -> HttpResponse:
            _find_visitor(request)
            return await get_response(request)

    else:

        def middleware(request: HttpRequest) -> HttpResponse:
            _find_visitor(request)
            return get_response(request)

    return middleware


@sync_and_async_middleware
def identify_request(get_response):
    """Give each request an id, which its log lines and its answer have. The id of a proxy is taken over."""
    if iscoroutinefunction(get_response):

        async def middleware(request: HttpRequest) -> HttpResponse:
            token = fields.set(_identity(request))
            try:
                return _identified(request, await get_response(request))
            finally:
                fields.reset(token)

    else:

        def middleware(request: HttpRequest) -> HttpResponse:
            token = fields.set(_identity(request))
            try:
                return _identified(request, get_response(request))
            finally:
                fields.reset(token)

    return middleware


@sync_and_async_middleware
def reload_for_login(get_response):
    """Make htmx reload the whole page when its user is signed out, so that the login page does not appear inside it."""
    if iscoroutinefunction(get_response):

        async def middleware(request: HttpRequest) -> HttpResponse:
            return _reloaded_for_login(request, await get_response(request))

    else:

        def middleware(request: HttpRequest) -> HttpResponse:
            return _reloaded_for_login(request, get_response(request))

    return middleware


@sync_and_async_middleware
def send_policy(get_response):
    """Send SECURE_CSP to the browser, as Django does by itself from 6.0 on."""
    if iscoroutinefunction(get_response):

        async def middleware(request: HttpRequest) -> HttpResponse:
            return _with_policy(await get_response(request))

    else:

        def middleware(request: HttpRequest) -> HttpResponse:
            return _with_policy(get_response(request))

    return middleware


@sync_and_async_middleware
def keep_private(get_response):
    """Let no cache keep a page that depends on who asks for it, unless its view says something else."""
    if iscoroutinefunction(get_response):

        async def middleware(request: HttpRequest) -> HttpResponse:
            return _kept_private(await get_response(request))

    else:

        def middleware(request: HttpRequest) -> HttpResponse:
            return _kept_private(get_response(request))

    return middleware


def _up() -> HttpResponse:
    return HttpResponse("ok", content_type="text/plain", headers={"Cache-Control": "no-store"})


def _find_visitor(request: HttpRequest) -> None:
    # Without an address, or with fewer than there are proxies, the request has not come through them.
    with suppress(ImproperlyConfigured, PermissionDenied):
        request.META["REMOTE_ADDR"] = get_adapter().get_client_ip(request)
        if scope := getattr(request, "scope", None):
            scope["client"] = (request.META["REMOTE_ADDR"], 0)


def _identity(request: HttpRequest) -> dict[str, str]:
    request.request_id = request_id(request.headers.get(REQUEST_ID))
    return {"request_id": request.request_id}


def _identified(request: HttpRequest, response: HttpResponse) -> HttpResponse:
    response.headers[REQUEST_ID] = request.request_id
    return response


def _with_policy(response: HttpResponse) -> HttpResponse:
    # Django's own pages for developers need what the policy forbids.
    if not (settings.DEBUG and response.status_code in (404, 500)):
        policy = "; ".join(" ".join([name, *sources]) for name, sources in settings.SECURE_CSP.items())
        response.headers.setdefault("Content-Security-Policy", policy)
    return response


def _kept_private(response: HttpResponse) -> HttpResponse:
    if has_vary_header(response, "Cookie") and "Cache-Control" not in response.headers:
        add_never_cache_headers(response)
    return response


def _reloaded_for_login(request: HttpRequest, response: HttpResponse) -> HttpResponse:
    to_login = response.headers.get("Location", "").startswith(f"{resolve_url(settings.LOGIN_URL)}?")
    return HttpResponseClientRefresh() if to_login and request.htmx else response

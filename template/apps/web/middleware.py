"""The middleware of this project."""

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import resolve_url
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


def _up() -> HttpResponse:
    return HttpResponse("ok", content_type="text/plain", headers={"Cache-Control": "no-store"})


def _identity(request: HttpRequest) -> dict[str, str]:
    request.request_id = request_id(request.headers.get(REQUEST_ID))
    return {"request_id": request.request_id}


def _identified(request: HttpRequest, response: HttpResponse) -> HttpResponse:
    response.headers[REQUEST_ID] = request.request_id
    return response


def _reloaded_for_login(request: HttpRequest, response: HttpResponse) -> HttpResponse:
    to_login = response.headers.get("Location", "").startswith(f"{resolve_url(settings.LOGIN_URL)}?")
    return HttpResponseClientRefresh() if to_login and request.htmx else response

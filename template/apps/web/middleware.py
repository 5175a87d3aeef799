"""Middleware of this project."""

from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import sync_and_async_middleware


@sync_and_async_middleware
def answer_up(get_response):
    """Answer /up with "ok" before anything else runs: no database, no session, and whatever the Host header.

    Load balancers probe containers by IP address, which ALLOWED_HOSTS refuses; a constant gives nothing away.
    """
    if iscoroutinefunction(get_response):

        async def middleware(request: HttpRequest) -> HttpResponse:
            return _up() if request.path_info == "/up" else await get_response(request)

    else:

        def middleware(request: HttpRequest) -> HttpResponse:
            return _up() if request.path_info == "/up" else get_response(request)

    return middleware


def _up() -> HttpResponse:
    return HttpResponse("ok", content_type="text/plain", headers={"Cache-Control": "no-store"})

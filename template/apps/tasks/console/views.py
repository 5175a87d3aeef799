"""The panel on the home page, which runs the example task and shows how a view starts a task and follows it."""

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from celery import Task, current_app
from celery.result import AsyncResult
from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.core import signing
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.module_loading import import_string
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST, require_safe
from kombu.exceptions import OperationalError

from apps.tasks.broker.options import describe_broker

from .forms import AddForm

# After this many seconds without a result, the page says that no worker takes the task, and later it stops asking.
LATE_SECONDS = 10
GIVE_UP_SECONDS = 600
TICKET_SALT = "apps.tasks.ticket"

View = Callable[..., HttpResponse]


def may_see_tasks(request: HttpRequest) -> bool:
    """Return whether this visitor may see the panel: everybody in development, else staff."""
    return settings.DEBUG or (request.user.is_active and request.user.is_staff)


def panel_context() -> dict[str, Any]:
    """Return what the panel on the home page shows."""
    return {"broker": _broker(), "form": AddForm() if _example_task() else None}


def _tasks_view(view: View) -> View:
    """Decorate a view that answers 404 to visitors who may not see the panel."""

    @login_not_required
    @never_cache
    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if not may_see_tasks(request):
            raise Http404
        return view(request, *args, **kwargs)

    return guarded


@_tasks_view
@require_POST
def add(request: HttpRequest) -> HttpResponse:
    """Start the example task with two numbers, and answer with its state."""
    task = _example_task()
    if task is None:
        raise Http404("The example task was removed.")
    form = AddForm(request.POST)
    if not form.is_valid():
        return _show(request, {"state": "invalid", "form": form}, status=422)
    try:
        started = task.delay(form.cleaned_data["x"], form.cleaned_data["y"])
    except OperationalError:
        return _show(request, {"state": "unsent", "broker": _broker()}, status=503)
    if started.ready():
        return _show(request, _outcome(started))
    ticket = signing.dumps({"task_id": started.id, "sent_at": time.time()}, salt=TICKET_SALT)
    if not request.htmx:
        return redirect("tasks:result", ticket)
    return _show(request, _waiting(ticket, late=False))


@_tasks_view
@require_safe
def result(request: HttpRequest, ticket: str) -> HttpResponse:
    """Answer with the state of the ticket's task. The page asks every second until the task is done.

    A ticket is signed, because Celery reports "pending" for a task that never existed, and a page would ask about it
    forever.
    """
    try:
        sent = signing.loads(ticket, salt=TICKET_SALT)
    except signing.BadSignature as error:
        raise Http404("No such task.") from error
    task_result = AsyncResult(sent["task_id"])
    if task_result.ready():
        return _show(request, _outcome(task_result))
    age_seconds = time.time() - sent["sent_at"]
    if age_seconds > GIVE_UP_SECONDS:
        return _show(request, {"state": "given_up"})
    late = age_seconds > LATE_SECONDS
    if request.htmx and late == ("late" in request.GET):
        # Nothing is new, so htmx leaves the text alone, and screen readers do not repeat it every second.
        return HttpResponse(status=204)
    return _show(request, _waiting(ticket, late))


def _example_task() -> Task | None:
    """Return the task `add` of the project's own package, or None if it was removed."""
    try:
        return import_string(f"{current_app.main}.tasks.add")
    except ImportError:
        return None


def _broker() -> str:
    return describe_broker(settings.CELERY_BROKER_URL)


def _waiting(ticket: str, late: bool) -> dict[str, Any]:
    poll_url = reverse("tasks:result", args=[ticket]) + ("?late" if late else "")
    return {"state": "waiting", "late": late, "poll_url": poll_url, "celery_app": current_app.main}


def _outcome(task_result: AsyncResult) -> dict[str, Any]:
    if task_result.successful():
        return {"state": "done", "value": task_result.result}
    return {"state": "failed"}


def _show(request: HttpRequest, context: dict[str, Any], status: int = 200) -> HttpResponse:
    """Answer with the fragment for htmx, or with a whole page for a browser without JavaScript."""
    if request.htmx:
        return render(request, "tasks/result.html", context, status=status)
    response = render(request, "tasks/result_page.html", context, status=status)
    if context["state"] == "waiting":
        response["Refresh"] = "1"
    return response

"""A page that enqueues a task, and the page of its result."""

from django.contrib.auth.decorators import login_not_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render

from apps.background import TaskResultDoesNotExist

from .tasks import write


@login_not_required
def index(request: HttpRequest) -> HttpResponse:
    """Show the form, or enqueue what was sent with it."""
    if request.method == "POST":
        return redirect("shop:result", write.enqueue(request.POST["text"]).id)
    return render(request, "shop/index.html")


@login_not_required
def result(request: HttpRequest, task_id: str) -> HttpResponse:
    """Show what has become of a task."""
    try:
        found = write.get_result(task_id)
    except TaskResultDoesNotExist as error:
        raise Http404 from error
    value = found.return_value if found.status == "SUCCESSFUL" else ""
    return render(request, "shop/result.html", {"status": found.status, "value": value})

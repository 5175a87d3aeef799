"""Replies by polling: a task writes the row, and the page asks repeatedly how far it is."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.urls import path
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from apps.tasks.sending import send

from . import replies
from .models import Message
from .tasks import write_reply

# Shows a reply that is not complete, and asks for it again.
TEMPLATE = "chat/polled_reply.html"
SCRIPTS: list[str] = []


def begin(reply: Message) -> None:
    """Let a worker write the reply."""
    error = "The reply cannot be written: the queue of tasks cannot be reached. Try again a little later."
    send(write_reply, reply.pk, on_failure=lambda: replies.fail(reply, error))


@never_cache
@require_safe
def poll(request: HttpRequest, reply_id: int) -> HttpResponse:
    """Answer with the reply as it is now, or with 204 if nothing is new."""
    replies.close_silent(pk=reply_id)
    reply = get_object_or_404(Message, pk=reply_id, chat__owner=request.user, role=Message.Role.REPLY)
    if reply.is_active and request.GET.get("seen") == reply.look:
        return HttpResponse(status=204)
    return render(request, "chat/reply.html", {"message": reply, "live_template": TEMPLATE})


urlpatterns = [path("replies/<id:reply_id>/", poll, name="poll")]

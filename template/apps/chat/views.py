"""The pages of chats. Other people's chats answer 404, as if they did not exist."""

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.paginator import Paginator
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST, require_safe
from django_htmx.http import HttpResponseClientRedirect, reswap, retarget

from . import ai, live, replies
from .forms import AskForm, NameForm
from .models import Chat, Message
from .tasks import name_chat

# A first message of one line and no more characters than this is the name of its chat.
OWN_NAME_CHARACTERS = 40
# If no task has named a chat after this time, it is named here: the task is lost, or no worker runs.
LONGEST_NAMELESS = timedelta(minutes=1)
# How many chats the list beside a chat shows, and how many the page of all chats shows at once.
RECENT_CHATS = 20
SHOWN_CHATS = 40
# How many messages the page of a chat shows. A link fetches as many again.
SHOWN_MESSAGES = 40


# Chats ----------------------------------------------------------------------


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def index(request: HttpRequest) -> HttpResponse:
    """List the chats of the user. With a question, start a new one."""
    form = AskForm(request.POST or None)
    if form.is_valid():
        try:
            return redirect("chat:chat", start_chat(request, form.cleaned_data["text"]).pk)
        except replies.Refused as refusal:
            form.add_error("text", str(refusal))
    chats = Paginator(request.user.chats.all(), SHOWN_CHATS).get_page(request.GET.get("page"))
    context = {"chats": chats, "form": form, "model": settings.DEFAULT_AI_MODEL}
    return render(request, "chat/index.html", context, status=422 if form.is_bound else 200)


@transaction.atomic
def start_chat(request: HttpRequest, text: str) -> Chat:
    """Return a new chat with its first question asked. Raises Refused."""
    chat = Chat.objects.create(owner=request.user, name=own_name(text))
    _, reply = replies.ask(chat, text)
    live.begin(reply)
    if not chat.name:
        name_chat.enqueue(str(chat.pk))
    return chat


def own_name(text: str) -> str:
    """Return a first message if it is short enough to be the name of its chat, else an empty text."""
    return text if len(text) <= OWN_NAME_CHARACTERS and "\n" not in text else ""


@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def chat(request: HttpRequest, chat_id: str, before: int | None = None) -> HttpResponse:
    """Show a chat, or what was said before a message. With a question, ask it and answer with what is new."""
    shown = own_chat(request, chat_id)
    form = AskForm(request.POST or None)
    if form.is_valid():
        try:
            asked = replies.ask(shown, form.cleaned_data["text"])
        except replies.Refused as refusal:
            form.add_error("text", str(refusal))
        else:
            live.begin(asked[1])
            return show_asked(request, shown, asked)
    if request.htmx and form.is_bound:
        response = render(request, "chat/ask_form.html", {"chat": shown, "form": form}, status=422)
        return reswap(retarget(response, "#ask"), "outerHTML")
    return show_chat(request, shown, form, before)


def own_chat(request: HttpRequest, chat_id: str) -> Chat:
    """Return the chat if it is the user's own, else raise Http404."""
    return get_object_or_404(Chat, pk=chat_id, owner=request.user)


def show_asked(request: HttpRequest, shown: Chat, asked: tuple[Message, Message]) -> HttpResponse:
    """Answer with the question, its reply and an empty form or, without htmx, with the page."""
    if not request.htmx:
        return redirect("chat:chat", shown.pk)
    context = {"chat": shown, "chat_messages": asked, "form": AskForm(), "live_template": live.TEMPLATE}
    return render(request, "chat/asked.html", context)


def show_chat(request: HttpRequest, shown: Chat, form: AskForm, before: int | None) -> HttpResponse:
    """Answer with the page of a chat, which shows the latest messages, or the latest before one of them."""
    replies.close_silent(chat=shown)
    messages = shown.messages.filter(pk__lt=before) if before else shown.messages.all()
    latest = list(messages.order_by("-pk")[: SHOWN_MESSAGES + 1])
    context = {
        "before": before,
        "chat": shown,
        "chat_messages": latest[:SHOWN_MESSAGES][::-1],
        "has_earlier": len(latest) > SHOWN_MESSAGES,
        "chats": request.user.chats.all()[:RECENT_CHATS],
        "form": form,
        "live_scripts": live.SCRIPTS,
        "live_template": live.TEMPLATE,
        "name_form": NameForm(instance=shown),
    }
    return render(request, "chat/chat.html", context, status=422 if form.is_bound else 200)


@never_cache
@require_safe
def name(request: HttpRequest, chat_id: str) -> HttpResponse:
    """Answer with the name of a chat. The page asks until there is one."""
    named = own_chat(request, chat_id)
    if not named.name and timezone.now() - named.asked_at > LONGEST_NAMELESS:
        named.name = ai.first_words(named.messages.first().text)
        named.save(update_fields=["name"])
    return render(request, "chat/named.html", {"chat": named}) if named.name else HttpResponse(status=204)


@require_POST
def rename(request: HttpRequest, chat_id: str) -> HttpResponse:
    """Give a chat another name."""
    form = NameForm(request.POST, instance=own_chat(request, chat_id))
    if form.is_valid():
        form.save()
    return redirect("chat:chat", chat_id)


@require_POST
def delete(request: HttpRequest, chat_id: str) -> HttpResponse:
    """Delete a chat. A reply that is being written for it ends by itself."""
    own_chat(request, chat_id).delete()
    return HttpResponseClientRedirect(reverse("chat:index")) if request.htmx else redirect("chat:index")


# Replies --------------------------------------------------------------------


@require_POST
def stop(request: HttpRequest, reply_id: int) -> HttpResponse:
    """Stop a reply. The text that it has so far stays."""
    reply = own_reply(request, reply_id)
    replies.stop(reply)
    return show_reply(request, reply)


@require_POST
def retry(request: HttpRequest, reply_id: int) -> HttpResponse:
    """Ask again for a reply that was stopped or has failed."""
    reply = own_reply(request, reply_id)
    try:
        replies.ask_again(reply)
    except replies.Refused as refusal:
        return show_reply(request, reply, refusal=str(refusal))
    live.begin(reply)
    return show_reply(request, reply)


def own_reply(request: HttpRequest, reply_id: int) -> Message:
    """Return the reply if it is in one of the user's own chats, else raise Http404."""
    own = Message.objects.select_related("chat")
    return get_object_or_404(own, pk=reply_id, role=Message.Role.REPLY, chat__owner=request.user)


def show_reply(request: HttpRequest, reply: Message, **context: Any) -> HttpResponse:
    """Answer with the reply as it is now or, without htmx, with the page of its chat."""
    if not request.htmx:
        return redirect("chat:chat", reply.chat_id)
    reply.refresh_from_db()
    return render(request, "chat/reply.html", {"message": reply, "live_template": live.TEMPLATE} | context)

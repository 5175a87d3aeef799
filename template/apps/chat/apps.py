from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.http import HttpRequest


class ChatConfig(AppConfig):
    """Chats with a language model."""

    name = "apps.chat"
    verbose_name = "AI chat"
    menu = [("Chats", "chat:index")]
    home_panel = "chat/panel.html"

    def home_panel_context(self, request: HttpRequest) -> dict[str, Any] | None:
        """Return the context of the panel for users who are signed in and, in development, for everybody."""
        if not (settings.DEBUG or request.user.is_authenticated):
            return None
        return {"model": settings.DEFAULT_AI_MODEL}

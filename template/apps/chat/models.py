"""Chats, what is said in them, and how much a person may still ask."""

import uuid

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone

from apps.web.allowance import HourlyAllowance


class Chat(models.Model):
    """A conversation of one person with the model."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="chats")
    name = models.CharField(max_length=80, blank=True, help_text="Empty until a task has found one.")
    asked_at = models.DateTimeField(default=timezone.now, help_text="When the last question was asked.")

    class Meta:
        ordering = ["-asked_at"]
        indexes = [models.Index(fields=["owner", "-asked_at"], name="chat_of_owner")]

    def __str__(self) -> str:
        return self.name or "New chat"


class Message(models.Model):
    """A question, or the reply to the one before it.

    A reply waits until a process claims it by entering itself in `writer`. Every change of `updated_at` shows that the
    process is still working. Only the process that is named there may change the text.
    """

    class Role(models.TextChoices):
        QUESTION = "question"
        REPLY = "reply"

    class State(models.TextChoices):
        WAITING = "waiting"
        WRITING = "writing"
        DONE = "done"
        STOPPED = "stopped"
        FAILED = "failed"

    ACTIVE = [State.WAITING, State.WRITING]

    chat = models.ForeignKey(Chat, on_delete=models.CASCADE, related_name="messages")
    role = models.CharField(max_length=10, choices=Role.choices)
    state = models.CharField(max_length=10, choices=State.choices, default=State.DONE)
    text = models.TextField(blank=True)
    error = models.CharField(max_length=200, blank=True, help_text="What hindered the reply, in a sentence.")
    detail = models.TextField(blank=True, help_text="What the model's provider said about it, for staff.")
    writer = models.UUIDField(null=True, help_text="The process that has claimed the reply.")
    updated_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(
                fields=["chat"],
                condition=Q(state__in=["waiting", "writing"]),
                name="chat_writes_one_reply",
            )
        ]

    def __str__(self) -> str:
        return f"{self.role} {self.pk}, {self.state}"

    @property
    def is_active(self) -> bool:
        """Whether more text is to come."""
        return self.state in self.ACTIVE

    @property
    def look(self) -> str:
        """A value that changes when the reply looks different. A page that already has it needs no new one."""
        return f"{self.state}-{len(self.text)}-{self.is_late}"

    @property
    def is_late(self) -> bool:
        """Whether the reply has waited so long that something seems wrong."""
        return self.state == self.State.WAITING and (timezone.now() - self.updated_at).total_seconds() > 10


class Allowance(HourlyAllowance):
    """How many replies a person has asked for in the current hour.

    It outlives the chats, so deleting them gains nothing.
    """

    counted = "replies"

    owner = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, primary_key=True)
    replies = models.PositiveIntegerField(default=0)

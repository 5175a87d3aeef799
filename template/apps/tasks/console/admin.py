from collections.abc import Callable

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.text import Truncator
from django_celery_beat.admin import PeriodicTaskAdmin
from django_celery_beat.models import PeriodicTask
from kombu.exceptions import OperationalError

from apps.tasks.models import FailedTask, OutgoingTask
from apps.tasks.sending.outbox import send_now
from apps.tasks.worker.replay import send_again


@admin.register(FailedTask)
class FailedTaskAdmin(admin.ModelAdmin):
    """What has failed for good, to be read, sent again or deleted."""

    actions = ["send_again"]
    date_hierarchy = "last_failed_at"
    exclude = ["traceback"]
    list_display = ["name", "args", "kwargs", "short_exception", "tries", "last_failed_at"]
    list_filter = ["name", "worker"]
    readonly_fields = ["shown_traceback"]
    search_fields = ["name", "task_id", "args", "kwargs", "exception"]

    @admin.action(description="Send again", permissions=["send_again"])
    def send_again(self, request: HttpRequest, chosen: QuerySet[FailedTask]) -> None:
        """Put the chosen tasks back into their queues, the oldest first, until the broker is away; say how many."""
        sent = 0
        try:
            for task_id in chosen.order_by("last_failed_at").values_list("pk", flat=True):
                sent += send_again(task_id)
        except OperationalError as error:
            messages.error(request, f"The broker does not answer, so the other tasks are still here: {error}")
        messages.info(request, f"Sent again: {sent}.")

    def get_queryset(self, request: HttpRequest) -> QuerySet[FailedTask]:
        """Leave out what may be long, and is not in the list."""
        return super().get_queryset(request).defer("message", "traceback")

    @admin.display(description="exception")
    def short_exception(self, failed: FailedTask) -> str:
        """Return how the exception begins."""
        return Truncator(failed.exception).chars(120)

    @admin.display(description="traceback")
    def shown_traceback(self, failed: FailedTask) -> str:
        """Return the traceback with its lines as they are."""
        return format_html("<pre>{}</pre>", failed.traceback)

    def has_send_again_permission(self, request: HttpRequest) -> bool:
        """Allow it to those who may change failed tasks, although nobody edits them."""
        return super().has_change_permission(request)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Refuse: only workers add to the list."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: FailedTask | None = None) -> bool:
        """Refuse: a message is sent again as it was."""
        return False


@admin.register(OutgoingTask)
class OutgoingTaskAdmin(admin.ModelAdmin):
    """What is still to be sent, or has not ended: to be read, sent at once, or taken back by deleting it."""

    actions = ["send_now"]
    date_hierarchy = "send_at"
    list_display = ["name", "task_id", "reason", "send_at", "attempts", "created_at"]
    list_filter = ["durable", "name"]
    search_fields = ["name", "task_id", "message", "error"]

    @admin.action(description="Send now", permissions=["send_now"])
    def send_now(self, request: HttpRequest, chosen: QuerySet[OutgoingTask]) -> None:
        """Send the chosen tasks, however long they are to wait, and say how many; stop if the broker is away."""
        sent = 0
        for row in chosen:
            if not send_now(row):
                messages.error(request, "The broker does not answer, so the other tasks still wait.")
                break
            sent += 1
        messages.info(request, f"Sent: {sent}.")

    def has_send_now_permission(self, request: HttpRequest) -> bool:
        """Allow it to those who may change outgoing tasks, although nobody edits them."""
        return super().has_change_permission(request)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Refuse: a task is sent by code."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: OutgoingTask | None = None) -> bool:
        """Refuse: a message is sent as it was."""
        return False


admin.site.unregister(PeriodicTask)


@admin.register(PeriodicTask)
class GuardedPeriodicTaskAdmin(PeriodicTaskAdmin):
    """Periodic tasks, whose actions django-celery-beat offers to those as well who may only look."""

    def get_actions(self, request: HttpRequest) -> dict[str, tuple[Callable, str, str]]:
        """Return the actions for this person: without the right to change tasks none, or deletion alone."""
        actions = super().get_actions(request)
        if self.has_change_permission(request):
            return actions
        return {name: action for name, action in actions.items() if name == "delete_selected"}

from collections.abc import Callable

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.text import Truncator
from django_celery_beat.admin import CrontabScheduleAdmin, IntervalScheduleAdmin, PeriodicTaskAdmin
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask
from django_celery_results.admin import TaskResultAdmin
from django_celery_results.models import TaskResult
from kombu.exceptions import OperationalError

from apps.tasks.models import FailedTask, OutgoingTask
from apps.tasks.sending.outbox import send_now
from apps.tasks.worker.replay import send_again

from .schedule_forms import CrontabForm, IntervalForm


@admin.register(FailedTask)
class FailedTaskAdmin(admin.ModelAdmin):
    """The admin page for tasks that have failed for good. They can be read, sent again or deleted."""

    actions = ["send_again"]
    date_hierarchy = "last_failed_at"
    exclude = ["traceback"]
    list_display = ["name", "args", "kwargs", "short_exception", "tries", "last_failed_at"]
    list_filter = ["name", "worker"]
    readonly_fields = ["shown_traceback"]
    search_fields = ["name", "task_id", "args", "kwargs", "exception"]

    @admin.action(description="Send again", permissions=["send_again"])
    def send_again(self, request: HttpRequest, chosen: QuerySet[FailedTask]) -> None:
        """Send the selected tasks again, oldest first, and report how many were sent. Stop if the broker is down."""
        sent = 0
        try:
            for task_id in chosen.order_by("last_failed_at").values_list("pk", flat=True):
                sent += send_again(task_id)
        except OperationalError as error:
            messages.error(request, f"The broker does not answer, so the other tasks are still here: {error}")
        messages.info(request, f"Sent again: {sent}.")

    def get_queryset(self, request: HttpRequest) -> QuerySet[FailedTask]:
        """Do not load long columns that the list does not show."""
        return super().get_queryset(request).defer("message", "traceback")

    @admin.display(description="exception")
    def short_exception(self, failed: FailedTask) -> str:
        """Return the beginning of the exception's text."""
        return Truncator(failed.exception).chars(120)

    @admin.display(description="traceback")
    def shown_traceback(self, failed: FailedTask) -> str:
        """Return the traceback with its line breaks."""
        return format_html("<pre>{}</pre>", failed.traceback)

    def has_send_again_permission(self, request: HttpRequest) -> bool:
        """Allow sending again to users with the change permission. Nobody edits failed tasks otherwise."""
        return super().has_change_permission(request)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Refuse, because only workers add failed tasks."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: FailedTask | None = None) -> bool:
        """Refuse, because a message is always sent again unchanged."""
        return False


@admin.register(OutgoingTask)
class OutgoingTaskAdmin(admin.ModelAdmin):
    """The admin page for tasks that are waiting to be sent or have not ended.

    They can be read, sent at once, or cancelled by deleting them.
    """

    actions = ["send_now"]
    date_hierarchy = "send_at"
    list_display = ["name", "task_id", "reason", "send_at", "attempts", "created_at"]
    list_filter = ["durable", "name"]
    search_fields = ["name", "task_id", "message", "error"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[OutgoingTask]:
        """Do not load the message, which may be long and which the list does not show."""
        return super().get_queryset(request).defer("message")

    @admin.action(description="Send now", permissions=["send_now"])
    def send_now(self, request: HttpRequest, chosen: QuerySet[OutgoingTask]) -> None:
        """Send the selected tasks now, even if they should wait, and report how many. Stop if the broker is down."""
        sent = 0
        for row in chosen:
            if not send_now(row):
                messages.error(request, "The broker does not answer, so the other tasks still wait.")
                break
            sent += 1
        messages.info(request, f"Sent: {sent}.")

    def has_send_now_permission(self, request: HttpRequest) -> bool:
        """Allow sending now to users with the change permission. Nobody edits outgoing tasks otherwise."""
        return super().has_change_permission(request)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Refuse, because only code sends tasks."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: OutgoingTask | None = None) -> bool:
        """Refuse, because a message is always sent unchanged."""
        return False


admin.site.unregister(TaskResult)


@admin.register(TaskResult)
class QuickTaskResultAdmin(TaskResultAdmin):
    """The admin page for results of tasks. django-celery-results loads all of each result for its list."""

    def get_queryset(self, request: HttpRequest) -> QuerySet[TaskResult]:
        """Do not load columns that may be long and that the list does not show."""
        return super().get_queryset(request).defer("task_args", "task_kwargs", "result", "traceback", "meta")


admin.site.unregister([CrontabSchedule, IntervalSchedule, PeriodicTask])


@admin.register(CrontabSchedule)
class CheckedCrontabAdmin(CrontabScheduleAdmin):
    """The admin page for crontabs."""

    form = CrontabForm


@admin.register(IntervalSchedule)
class CheckedIntervalAdmin(IntervalScheduleAdmin):
    """The admin page for intervals."""

    form = IntervalForm


@admin.register(PeriodicTask)
class GuardedPeriodicTaskAdmin(PeriodicTaskAdmin):
    """The admin page for periodic tasks. django-celery-beat offers its actions even to users who may only view them."""

    def get_actions(self, request: HttpRequest) -> dict[str, tuple[Callable, str, str]]:
        """Return the actions for this user. Without the change permission, there are none, or only deletion."""
        actions = super().get_actions(request)
        if self.has_change_permission(request):
            return actions
        return {name: action for name, action in actions.items() if name == "delete_selected"}

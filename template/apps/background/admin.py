from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from .models import EnqueuedTask


@admin.register(EnqueuedTask)
class EnqueuedTaskAdmin(admin.ModelAdmin):
    """The admin page for enqueued tasks. They can be read, and cancelled before they start by deleting them."""

    date_hierarchy = "enqueued_at"
    list_display = ["path", "status", "queue_name", "priority", "enqueued_at", "finished_at"]
    list_filter = ["status", "path"]
    search_fields = ["id", "path"]

    def get_queryset(self, request: HttpRequest) -> QuerySet[EnqueuedTask]:
        """Do not load columns that may be long and that the list does not show."""
        return super().get_queryset(request).defer("args", "kwargs", "errors", "return_value", "worker_ids")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Refuse, because only code enqueues tasks."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: EnqueuedTask | None = None) -> bool:
        """Refuse, because the row is a record."""
        return False

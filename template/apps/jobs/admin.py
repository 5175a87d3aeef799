from django.contrib import admin
from django.http import HttpRequest

from .models import Job


@admin.register(Job)
class JobAdmin(admin.ModelAdmin):
    """Shows everybody's jobs. Only the web pages and the workers write them. Here they can be deleted."""

    date_hierarchy = "created_at"
    list_display = ("id", "owner", "state", "current", "total", "attempt", "created_at", "updated_at")
    list_filter = ("state",)
    list_select_related = ("owner",)
    search_fields = ("id", "owner__email")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Job | None = None) -> bool:
        return False

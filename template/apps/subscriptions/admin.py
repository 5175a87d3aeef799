import stripe
from django.contrib import admin, messages
from django.http import HttpRequest

from .billing import read_price
from .models import Plan, Subscription


@admin.register(Plan)
class PlanAdmin(admin.ModelAdmin):
    """The pricing page. Saving a plan reads what it costs from Stripe."""

    list_display = ["name", "price", "interval", "price_id", "position", "is_public"]
    list_editable = ["position", "is_public"]
    readonly_fields = ["price", "interval"]

    def save_model(self, request: HttpRequest, plan: Plan, form, change: bool) -> None:
        """Save the plan in any case; say so if its price could not be read."""
        if plan.amount is None or "price_id" in form.changed_data:
            plan.amount = None
            try:
                read_price(plan)
            except stripe.StripeError as error:
                reason = error.user_message or "Stripe does not answer, or STRIPE_SECRET_KEY is not set."
                messages.warning(request, f"The price was not read; save the plan again later. {reason}")
        super().save_model(request, plan, form, change)


@admin.register(Subscription)
class SubscriptionAdmin(admin.ModelAdmin):
    """What Stripe said last. Changes are made there, and come back by themselves."""

    list_display = ["team", "status", "quantity", "current_period_end", "stripe_id"]
    list_filter = ["status"]
    search_fields = ["team__name", "stripe_id", "customer_id"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Refuse: subscriptions begin with a checkout."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Subscription | None = None) -> bool:
        """Refuse: Stripe would not learn of it."""
        return False

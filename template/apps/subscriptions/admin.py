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

    def get_readonly_fields(self, request: HttpRequest, obj: Plan | None = None) -> list[str]:
        """Do not change a price that teams pay, because it identifies their plan.

        For another price, hide the plan and add a new one.
        """
        return [*self.readonly_fields, *(["price_id"] if obj and _is_paid(obj) else [])]

    def has_delete_permission(self, request: HttpRequest, obj: Plan | None = None) -> bool:
        """Refuse while teams pay for the plan."""
        return super().has_delete_permission(request, obj) and not (obj and _is_paid(obj))

    def save_model(self, request: HttpRequest, plan: Plan, form, change: bool) -> None:
        """Save the plan in any case, and warn if its price could not be read."""
        if plan.amount is None or "price_id" in form.changed_data:
            plan.amount = None
            try:
                read_price(plan)
            except stripe.StripeError as error:
                reason = error.user_message or "Stripe does not answer, or STRIPE_SECRET_KEY is not set."
                messages.warning(request, f"The price was not read; save the plan again later. {reason}")
            else:
                if not plan.interval:
                    messages.warning(request, "Nobody can subscribe to this price, which is not recurring.")
        super().save_model(request, plan, form, change)


@admin.register(Subscription)
class SubscriptionAdmin(admin.ModelAdmin):
    """What Stripe said last. Make changes at Stripe; they arrive here by themselves."""

    list_display = ["team", "status", "quantity", "current_period_end", "stripe_id", "is_live"]
    list_filter = ["status", "is_live"]
    search_fields = ["team__name", "stripe_id", "team__customer_id"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Refuse, because subscriptions begin with a checkout."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Subscription | None = None) -> bool:
        """Refuse, because Stripe would not learn of the change."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Subscription | None = None) -> bool:
        """Refuse until it has ended, because Stripe would continue to bill a team that no longer exists here."""
        return super().has_delete_permission(request, obj) and obj is not None and obj.has_ended


def _is_paid(plan: Plan) -> bool:
    return Subscription.objects.filter(price_id=plan.price_id).exclude(status__in=Subscription.ENDED_STATUSES).exists()

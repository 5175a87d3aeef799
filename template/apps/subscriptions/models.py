"""The plans on the pricing page, and what each team has subscribed to."""

from django.conf import settings
from django.db import models

from apps.teams.models import Team

# Stripe counts money in the smallest unit, which is a hundredth except in these currencies.
# https://docs.stripe.com/currencies#zero-decimal
UNDIVIDED = ("bif", "clp", "djf", "gnf", "jpy", "kmf", "krw", "mga", "pyg", "rwf", "vnd", "vuv", "xaf", "xof", "xpf")
THOUSANDTHS = ("bhd", "jod", "kwd", "omr", "tnd")


class Plan(models.Model):
    """One card on the pricing page, written in the admin. The amount is read from its price in Stripe."""

    name = models.CharField(max_length=80)
    description = models.CharField(max_length=200, blank=True)
    features = models.TextField(blank=True, help_text="One per line.")
    price_id = models.CharField(
        "Stripe price",
        max_length=255,
        unique=True,
        help_text="A recurring price: price_…",
        error_messages={"unique": "Another plan has this price."},
    )
    position = models.PositiveSmallIntegerField(default=0, help_text="Plans with a low number stand first.")
    is_public = models.BooleanField(default=True, help_text="Hidden plans can be kept, but no longer be chosen.")
    # The lowest price of a unit, counted as Stripe does, which allows fractions. Null until the price was read, and if
    # it has no such amount.
    amount = models.DecimalField(max_digits=24, decimal_places=12, null=True, editable=False)
    currency = models.CharField(max_length=3, editable=False)
    interval = models.CharField(max_length=20, editable=False)

    class Meta:
        ordering = ["position", "pk"]

    def __str__(self) -> str:
        return self.name

    @property
    def price(self) -> str:
        """The price as people write it, such as "USD 12.50". Empty while it is not known."""
        if self.amount is None:
            return ""
        decimals = 0 if self.currency in UNDIVIDED else 3 if self.currency in THOUSANDTHS else 2
        value = (self.amount / 10**decimals).normalize()
        shown = max(decimals, -value.as_tuple().exponent)
        return f"{self.currency.upper()} {value:,.{shown}f}".removesuffix("." + "0" * decimals)


class OfThisMode(models.Manager):
    """The subscriptions in the mode of the key: in live mode, those of test mode do not count, and the reverse.

    Without a key, all of them count.
    """

    def get_queryset(self) -> models.QuerySet["Subscription"]:
        """Return the subscriptions that the key can see at Stripe."""
        found = super().get_queryset()
        return found.filter(is_live=is_live()) if settings.STRIPE_SECRET_KEY else found


def is_live() -> bool:
    """Return whether the key is one of live mode, which charges cards. https://docs.stripe.com/keys#test-live-modes"""
    return "_test_" not in settings.STRIPE_SECRET_KEY


class Subscription(models.Model):
    """What Stripe said last about the subscription of a team. Only `billing.refetch` writes it."""

    class Status(models.TextChoices):
        """https://docs.stripe.com/billing/subscriptions/overview#subscription-statuses"""

        ACTIVE = "active", "Active"
        CANCELED = "canceled", "Ended"
        INCOMPLETE = "incomplete", "Waiting for the first payment"
        INCOMPLETE_EXPIRED = "incomplete_expired", "Never paid"
        PAST_DUE = "past_due", "A payment failed"
        PAUSED = "paused", "Paused"
        TRIALING = "trialing", "On trial"
        UNPAID = "unpaid", "Unpaid"

    # Stripe retries a failed payment for some days. Until Stripe gives up, the team keeps what it has.
    ACTIVE_STATUSES = (Status.ACTIVE, Status.PAST_DUE, Status.TRIALING)
    # A subscription that is neither active nor ended can still be paid or continue at Stripe.
    ENDED_STATUSES = (Status.CANCELED, Status.INCOMPLETE_EXPIRED)

    # A team that pays cannot be deleted, because nobody would be left to end the payments.
    team = models.OneToOneField(Team, models.PROTECT, related_name="subscription")
    stripe_id = models.CharField(max_length=255, unique=True)
    item_id = models.CharField(max_length=255)
    price_id = models.CharField(max_length=255)
    status = models.CharField(max_length=20, choices=Status)
    quantity = models.PositiveIntegerField()
    current_period_end = models.DateTimeField(null=True)
    ends_at_period_end = models.BooleanField(default=False)
    is_live = models.BooleanField("live mode", default=False)
    updated_at = models.DateTimeField(auto_now=True)

    # This one comes first, so the admin lists all of them.
    of_all_modes = models.Manager()
    objects = OfThisMode()

    def __str__(self) -> str:
        return f"{self.stripe_id} of {self.team}"

    @property
    def is_active(self) -> bool:
        """Whether the team may use what it pays for."""
        return self.status in self.ACTIVE_STATUSES and self.is_of_this_mode

    @property
    def has_ended(self) -> bool:
        """Whether it has ended for good, so that the team may subscribe again."""
        return self.status in self.ENDED_STATUSES or not self.is_of_this_mode

    @property
    def is_of_this_mode(self) -> bool:
        """Whether the key can see it at Stripe."""
        return not settings.STRIPE_SECRET_KEY or self.is_live == is_live()

    @property
    def plan(self) -> Plan | None:
        """The plan of this price, or None if the price was chosen in Stripe."""
        return Plan.objects.filter(price_id=self.price_id).first()

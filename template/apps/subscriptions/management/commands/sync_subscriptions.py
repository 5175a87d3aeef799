import stripe
from django.core.management.base import BaseCommand, CommandError, CommandParser

from apps.subscriptions.billing import is_configured
from apps.subscriptions.models import Subscription
from apps.subscriptions.seats import out_of_step, sync


class Command(BaseCommand):
    """Does by hand, and at once, what the scheduled task leaves to a worker."""

    help = "Tell Stripe the number of seats of each team whose subscription has another quantity."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--team", type=int, metavar="ID", help="Only this team.")
        parser.add_argument("--dry-run", action="store_true", help="Show what would be told, and tell nothing.")

    def handle(self, *, team: int | None, dry_run: bool, **options: object) -> None:
        """Sync the subscriptions one by one. One that fails is named, and does not stop the others."""
        if not is_configured() and not dry_run:
            raise CommandError("STRIPE_SECRET_KEY is not set.")
        if team and not Subscription.objects.filter(team=team).exists():
            raise CommandError(f"There is no team {team}, or it has no subscription.")
        found = list(out_of_step().filter(**({"team": team} if team else {})).order_by("team_id"))
        if not found:
            self.stdout.write("All subscriptions have as many seats as their teams.")
        failed = 0
        for subscription in found:
            line = f"{subscription.team_id} {subscription.team}: {subscription.quantity} -> {subscription.seats} seats"
            if not subscription.seats:
                self.stderr.write(self.style.ERROR(f"{line}: nobody is left; cancel {subscription.stripe_id}"))
                continue
            try:
                if not dry_run:
                    sync(subscription.team_id)
            except stripe.StripeError as error:
                failed += 1
                self.stderr.write(self.style.ERROR(f"{line}: {error.user_message or error}"))
            else:
                self.stdout.write(line)
        if failed:
            raise CommandError(f"{failed} of {len(found)} failed; run the command again.")

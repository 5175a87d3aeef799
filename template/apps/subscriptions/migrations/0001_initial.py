import django.db.models.deletion
import django.db.models.manager
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        ("teams", "0001_initial"),
    ]

    operations = [
        migrations.CreateModel(
            name="Plan",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=80)),
                ("description", models.CharField(blank=True, max_length=200)),
                ("features", models.TextField(blank=True, help_text="One per line.")),
                (
                    "price_id",
                    models.CharField(
                        error_messages={"unique": "Another plan has this price."},
                        help_text="A recurring price: price_…",
                        max_length=255,
                        unique=True,
                        verbose_name="Stripe price",
                    ),
                ),
                (
                    "position",
                    models.PositiveSmallIntegerField(default=0, help_text="Plans with a low number stand first."),
                ),
                (
                    "is_public",
                    models.BooleanField(default=True, help_text="Hidden plans can be kept, but no longer be chosen."),
                ),
                ("amount", models.DecimalField(decimal_places=12, editable=False, max_digits=24, null=True)),
                ("currency", models.CharField(editable=False, max_length=3)),
                ("interval", models.CharField(editable=False, max_length=20)),
            ],
            options={
                "ordering": ["position", "pk"],
            },
        ),
        migrations.CreateModel(
            name="Subscription",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("stripe_id", models.CharField(max_length=255, unique=True)),
                ("item_id", models.CharField(max_length=255)),
                ("price_id", models.CharField(max_length=255)),
                (
                    "status",
                    models.CharField(
                        choices=[
                            ("active", "Active"),
                            ("canceled", "Ended"),
                            ("incomplete", "Waiting for the first payment"),
                            ("incomplete_expired", "Never paid"),
                            ("past_due", "A payment failed"),
                            ("paused", "Paused"),
                            ("trialing", "On trial"),
                            ("unpaid", "Unpaid"),
                        ],
                        max_length=20,
                    ),
                ),
                ("quantity", models.PositiveIntegerField()),
                ("current_period_end", models.DateTimeField(null=True)),
                ("ends_at_period_end", models.BooleanField(default=False)),
                ("is_live", models.BooleanField(default=False, verbose_name="live mode")),
                ("updated_at", models.DateTimeField(auto_now=True)),
                (
                    "team",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT, related_name="subscription", to="teams.team"
                    ),
                ),
            ],
            managers=[
                ("of_all_modes", django.db.models.manager.Manager()),
            ],
        ),
    ]

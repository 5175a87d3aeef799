"""What `manage.py check --deploy` says about settings that start, but do not do what visitors need.

To silence a warning: `SILENCED_SYSTEM_CHECKS = ["web.W001"]`.
"""

from collections.abc import Iterator

from django.conf import settings
from django.core.checks import CheckMessage, Tags, Warning, register

SHORTEST_TOKEN = 20
# No other process sees what is in these.
OWN_CACHES = ("django.core.cache.backends.dummy.DummyCache", "django.core.cache.backends.locmem.LocMemCache")


@register(Tags.security, deploy=True)
def check_deployment(**kwargs: object) -> list[CheckMessage]:
    """Warn of e-mails that nobody gets, of hosts that nobody checks, and of secrets and limits that do not hold."""
    return list(_warnings())


def _warnings() -> Iterator[Warning]:
    is_printed = settings.EMAIL_BACKEND == "django.core.mail.backends.console.EmailBackend"
    if is_printed and settings.ACCOUNT_EMAIL_VERIFICATION == "mandatory":
        yield Warning(
            "Nobody can sign up: addresses have to be confirmed, but e-mails are only printed in the log.",
            hint="Set EMAIL_URL to your mail server, or REQUIRE_VERIFIED_EMAIL=0.",
            id="web.W001",
        )
    if not is_printed and settings.DEFAULT_FROM_EMAIL.rstrip(">").endswith("@localhost"):
        yield Warning(
            f"E-mails come from {settings.DEFAULT_FROM_EMAIL}, which mail servers refuse.",
            hint="Set DEFAULT_FROM_EMAIL to an address that your mail server may send from.",
            id="web.W002",
        )
    if "*" in settings.ALLOWED_HOSTS:
        yield Warning(
            "ALLOWED_HOSTS has a *, so a forged request can put any host into the links of e-mails.",
            hint="Name your hosts: ALLOWED_HOSTS=www.example.com",
            id="web.W003",
        )
    if 0 < len(settings.HEALTH_TOKEN) < SHORTEST_TOKEN:
        yield Warning(
            f"HEALTH_TOKEN has only {len(settings.HEALTH_TOKEN)} characters, and can be guessed.",
            hint="Make a long one: openssl rand -hex 32",
            id="web.W004",
        )
    if settings.CACHES["default"]["BACKEND"] in OWN_CACHES:
        yield Warning(
            "The processes share no cache, so each of them grants the whole number of attempts to log in.",
            hint="Leave CACHE_URL unset, which means the database, or let it name a server.",
            id="web.W005",
        )
    knows_visitors = settings.ALLAUTH_TRUSTED_PROXY_COUNT or getattr(settings, "ALLAUTH_TRUSTED_CLIENT_IP_HEADER", "")
    if settings.SECURE_PROXY_SSL_HEADER and not knows_visitors:
        yield Warning(
            "There is a proxy (BEHIND_HTTPS_PROXY), and all visitors have its address, so they share each limit.",
            hint="Set TRUSTED_PROXY_COUNT to the number of proxies that add an address to X-Forwarded-For.",
            id="web.W006",
        )

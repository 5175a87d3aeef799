"""`check --deploy` warns of settings that start, but do not do what visitors need."""

import pytest

from apps.web.checks import check_deployment

GOOD = {
    "ACCOUNT_EMAIL_VERIFICATION": "mandatory",
    "ALLAUTH_TRUSTED_PROXY_COUNT": 1,
    "ALLOWED_HOSTS": ["www.example.com"],
    "CACHES": {"default": {"BACKEND": "django.core.cache.backends.db.DatabaseCache"}},
    "DEFAULT_FROM_EMAIL": "Acme <hello@example.com>",
    "EMAIL_BACKEND": "django.core.mail.backends.smtp.EmailBackend",
    "HEALTH_TOKEN": "3b1f2a9c4d5e6f708192a3b4c5d6e7f8",
    "SECURE_PROXY_SSL_HEADER": ("HTTP_X_FORWARDED_PROTO", "https"),
}
PRINTED = "django.core.mail.backends.console.EmailBackend"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, []),
        ({"HEALTH_TOKEN": ""}, []),
        ({"EMAIL_BACKEND": PRINTED}, ["web.W001"]),
        ({"EMAIL_BACKEND": PRINTED, "ACCOUNT_EMAIL_VERIFICATION": "optional"}, []),
        ({"DEFAULT_FROM_EMAIL": "webmaster@localhost"}, ["web.W002"]),
        ({"DEFAULT_FROM_EMAIL": "Acme <webmaster@localhost>"}, ["web.W002"]),
        ({"ALLOWED_HOSTS": ["www.example.com", "*"]}, ["web.W003"]),
        ({"HEALTH_TOKEN": "secret"}, ["web.W004"]),
        ({"CACHES": {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}}, ["web.W005"]),
        ({"ALLAUTH_TRUSTED_PROXY_COUNT": 0}, ["web.W006"]),
        ({"ALLAUTH_TRUSTED_PROXY_COUNT": 0, "SECURE_PROXY_SSL_HEADER": None}, []),
    ],
)
def test_what_visitors_would_notice_is_a_warning(settings, changed, expected):
    for name, value in (GOOD | changed).items():
        setattr(settings, name, value)
    assert [warning.id for warning in check_deployment()] == expected

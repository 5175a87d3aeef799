"""Flower's options. `celery flower` reads this file from the folder in which it is started.

Each option can also be set by a variable: FLOWER_BASIC_AUTH=user:password, FLOWER_PORT, FLOWER_MAX_TASKS …
https://flower.readthedocs.io/en/latest/config.html
"""

import time
from collections import Counter

from django.conf import settings
from flower.views import BaseHandler
from flower.views.monitor import Metrics
from tornado.options import options
from tornado.web import HTTPError, authenticated

# A variable with an empty value counts as not set.
basic_auth = [credentials for credentials in options.basic_auth or [] if credentials]
# Flower shows every task with its arguments, and can cancel them and stop workers.
if options.address not in ("127.0.0.1", "localhost") and not basic_auth:
    raise SystemExit(
        "Flower listens to other machines, so it needs a password: set FLOWER_BASIC_AUTH=user:password, "
        "or let it listen only to this machine with --address=127.0.0.1."
    )
if not all(user and password for user, _, password in (each.partition(":") for each in basic_auth)):
    raise SystemExit("FLOWER_BASIC_AUTH must be user:password, or several of these with commas between them.")

# How many tasks Flower keeps in memory. Its own default is ten times as many.
max_tasks = 10_000

# What Flower itself leaves open ----------------------------------------------

GUESSES_PER_MINUTE = 10
guesses: Counter[tuple[int, str]] = Counter()
own_headers, own_user = BaseHandler.set_default_headers, BaseHandler.get_current_user


def set_headers(page: BaseHandler) -> None:
    """Forbid other sites to show a page of Flower in a frame, where visitors could be led to click on its buttons."""
    own_headers(page)
    page.set_header("Content-Security-Policy", "frame-ancestors 'none'")
    page.set_header("X-Frame-Options", "DENY")


def get_user(page: BaseHandler) -> object:
    """Return who asks, as Flower does. Whoever has given several wrong passwords has to wait for the next minute."""
    forwarded = page.request.headers.get("X-Forwarded-For", "").split(",")
    proxies = settings.ALLAUTH_TRUSTED_PROXY_COUNT
    visitor = forwarded[-proxies].strip() if 0 < proxies <= len(forwarded) else page.request.remote_ip
    minute = int(time.time() // 60)
    if guesses[minute, visitor] >= GUESSES_PER_MINUTE:
        raise HTTPError(429)
    try:
        return own_user(page)
    except HTTPError:
        if "Authorization" in page.request.headers:
            for earlier in [each for each in guesses if each[0] != minute]:
                del guesses[earlier]
            guesses[minute, visitor] += 1
        raise


if BaseHandler.get_current_user.__module__ != __name__:
    BaseHandler.set_default_headers, BaseHandler.get_current_user = set_headers, get_user
    # The figures name tasks and workers. Whatever reads them needs the password, too, if there is one.
    Metrics.get = authenticated(Metrics.get)

"""Flower's options. `celery flower` reads this file from the folder in which it is started.

Each option can also be set by a variable: FLOWER_BASIC_AUTH=user:password, FLOWER_PORT, FLOWER_MAX_TASKS …
https://flower.readthedocs.io/en/latest/config.html
"""

from tornado.options import options

# A variable with an empty value counts as not set.
basic_auth = [credentials for credentials in options.basic_auth or [] if credentials]
# Flower shows every task with its arguments, and can cancel them and stop workers.
if options.address not in ("127.0.0.1", "localhost") and not basic_auth:
    raise SystemExit(
        "Flower listens to other machines, so it needs a password: set FLOWER_BASIC_AUTH=user:password, "
        "or let it listen only to this machine with --address=127.0.0.1."
    )
if not all(":" in credentials for credentials in basic_auth):
    raise SystemExit("FLOWER_BASIC_AUTH must be user:password, or several of these with commas between them.")

# How many tasks Flower keeps in memory. Its own default is ten times as many.
max_tasks = 10_000

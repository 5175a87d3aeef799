"""Flower's options; `celery flower` reads this file from the folder that it is started in.

Every option is also a variable: FLOWER_BASIC_AUTH=user:password, FLOWER_PORT, FLOWER_MAX_TASKS …
https://flower.readthedocs.io/en/latest/config.html
"""

from tornado.options import options

# A variable without a value is not set.
basic_auth = [credentials for credentials in options.basic_auth or [] if credentials]
# Flower shows every task with its arguments, and can cancel them and stop workers.
if options.address not in ("127.0.0.1", "localhost") and not basic_auth:
    raise SystemExit(
        "Flower listens to other machines, so it needs a password: set FLOWER_BASIC_AUTH=user:password, "
        "or let it listen to this machine alone with --address=127.0.0.1."
    )
if not all(":" in credentials for credentials in basic_auth):
    raise SystemExit("FLOWER_BASIC_AUTH is set, but must be user:password; of several, each, with commas between them.")

# Tasks kept in memory; Flower's own default is ten times as many.
max_tasks = 10_000

"""Health checks of the background tasks. With CELERY_TASK_ALWAYS_EAGER there is nothing to check."""

from celery import current_app
from kombu.exceptions import OperationalError

from apps.web.health import Unhealthy, health_check

from .broker import broker_answers

REPLY_SECONDS = 1.5


@health_check("broker")
def broker_accepts_connections() -> None:
    """Connect to the broker."""
    if not current_app.conf.task_always_eager and not broker_answers():
        raise Unhealthy("does not answer")


@health_check("workers")
def a_worker_replies() -> None:
    """Ask all workers for a sign of life, and be content with the first."""
    if current_app.conf.task_always_eager:
        return
    try:
        # A connection of its own, not one of the pool, which would be tried for long while the broker is away.
        with current_app.connection_for_write(connect_timeout=REPLY_SECONDS) as connection:
            inspect = current_app.control.inspect(timeout=REPLY_SECONDS, limit=1, connection=connection)
            # Not a ping: beat answers that as well.
            replies = inspect.active_queues()
    except OperationalError as error:
        raise Unhealthy("cannot be asked without the broker") from error
    if not replies:
        raise Unhealthy("no worker answers")

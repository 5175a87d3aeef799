"""Health checks of the background tasks. With CELERY_TASK_ALWAYS_EAGER there is nothing to check."""

from celery import current_app
from django_celery_beat.models import PeriodicTask
from kombu.exceptions import OperationalError

from apps.tasks.beat.lease import seconds_since_renewal
from apps.tasks.broker.options import broker_error, is_answer
from apps.tasks.broker.queues import queue_state
from apps.tasks.sending.unattended import REPLY_SECONDS, quick_connection, unattended
from apps.web.health import Unhealthy, health_check

# Longer than beat needs to restart, or another beat to take over.
BEAT_SECONDS = 60.0


@health_check("broker")
def broker_accepts_connections() -> str | None:
    """Connect to the broker, and return how many tasks are waiting there for a worker."""
    if current_app.conf.task_always_eager:
        return None
    if error := broker_error():
        # An answer contains no secrets, but a driver's message about an address may.
        raise Unhealthy(f"takes no tasks: {error}" if is_answer(error) else "does not answer")
    return "waiting: " + ", ".join(f"{name} {length}" for name, length in queue_lengths().items())


def queue_lengths() -> dict[str, int]:
    """Return how many messages wait in each queue of the settings, whichever broker is used."""
    with quick_connection() as connection:
        return {name: queue_state(connection, name)[0] for name in sorted(current_app.amqp.queues)}


@health_check("queues")
def each_queue_has_a_worker() -> None:
    """Look for messages that no worker takes, including in queues that are not in the settings."""
    if current_app.conf.task_always_eager:
        return
    if broker_error():
        raise Unhealthy("cannot be looked at without the broker")
    if found := unattended():
        raise Unhealthy("no worker takes from " + ", ".join(f"{name} ({found[name]} waiting)" for name in found))


@health_check("workers")
def a_worker_replies() -> None:
    """Ask all workers for a sign of life, and return after the first answer."""
    if current_app.conf.task_always_eager:
        return
    try:
        # Uses its own connection, because one from the pool would be retried for a long time while the broker is down.
        with current_app.connection_for_write(connect_timeout=REPLY_SECONDS) as connection:
            inspect = current_app.control.inspect(timeout=REPLY_SECONDS, limit=1, connection=connection)
            # A ping would not do, because beat answers it as well.
            replies = inspect.active_queues()
    except OperationalError as error:
        raise Unhealthy("cannot be asked without the broker") from error
    if not replies:
        raise Unhealthy("no worker answers")


@health_check("beat")
def a_beat_holds_the_lease() -> str | None:
    """Return how long ago a beat renewed its lease. If nothing is scheduled, no beat is needed."""
    if current_app.conf.task_always_eager or not PeriodicTask.objects.filter(enabled=True).exists():
        return None
    seconds = seconds_since_renewal()
    if seconds is None:
        raise Unhealthy("no beat has run yet")
    if seconds > BEAT_SECONDS:
        raise Unhealthy(f"no beat has renewed its lease for {seconds:.0f} s")
    return f"renewed its lease {seconds:.0f} s ago"

"""The rules that settings must follow so that no task is lost or runs twice, each with its remedy."""

from collections.abc import Callable, Mapping
from math import inf
from typing import Any, NamedTuple

from celery import current_app
from django.conf import settings

from apps.tasks.broker.options import is_rabbitmq, is_redis
from apps.web import clock

# RabbitMQ takes a message back that was not acknowledged within this time, unless its `consumer_timeout` is different.
RABBITMQ_CONSUMER_TIMEOUT_SECONDS = 1800
SCHEDULER = "apps.tasks.beat.scheduler:LeaseScheduler"
POOLS_WITHOUT_LIMITS = ("threads", "solo", "gevent", "eventlet")


class Conf:
    """The settings of Celery as the rules below read them. A limit that is not set is infinite."""

    def __init__(self) -> None:
        conf = current_app.conf
        self.conf = conf
        self.url = conf.broker_url or ""
        self.redis, self.rabbitmq = is_redis(self.url), is_rabbitmq(self.url)
        self.options: Mapping[str, Any] = conf.broker_transport_options
        self.soft_limit = conf.task_soft_time_limit or inf
        self.limit = conf.task_time_limit or inf
        self.visibility = self.options.get("visibility_timeout", 3600)
        self.acks_off = [
            name
            for name in ("task_acks_on_failure", "task_acks_on_timeout", "task_acks_on_failure_or_timeout")
            if conf.get(name) is False
        ]


class Rule(NamedTuple):
    """A message for each setting, or combination of settings, that `broken` finds."""

    id: str
    broken: Callable[[Conf], object]
    message: str
    hint: str


RULES = [
    Rule(
        "E001",
        lambda c: c.limit <= c.soft_limit < inf,
        "CELERY_TASK_SOFT_TIME_LIMIT ({0.soft_limit} s) is not below CELERY_TASK_TIME_LIMIT ({0.limit} s): a task is "
        "killed before it may clean up.",
        "Set the soft limit half a minute below the hard one.",
    ),
    Rule(
        "E002",
        lambda c: c.redis and c.visibility <= c.limit,
        "A task may take {0.limit} s, and Redis delivers it again after {0.visibility} s: a long task runs twice.",
        "Set CELERY_TASK_TIME_LIMIT well below the visibility_timeout in CELERY_BROKER_TRANSPORT_OPTIONS.",
    ),
    Rule(
        "E003",
        lambda c: not c.conf.task_acks_late,
        "CELERY_TASK_ACKS_LATE is off: tasks that run or wait in a worker are lost when it dies.",
        "Set it to True, and acks_late=False on a task that must not be repeated.",
    ),
    Rule(
        "E004",
        lambda c: not c.conf.task_reject_on_worker_lost,
        "CELERY_TASK_REJECT_ON_WORKER_LOST is off: a task is lost when its process dies.",
        "Set it to True, and reject_on_worker_lost=False on a task that must not be repeated.",
    ),
    Rule(
        "E005",
        lambda c: c.conf.worker_cancel_long_running_tasks_on_connection_loss,
        "CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS is on: what runs while Redis restarts is lost.",
        "Set it to False.",
    ),
    Rule(
        "E006",
        lambda c: c.conf.worker_prefetch_multiplier == 0,
        "CELERY_WORKER_PREFETCH_MULTIPLIER is 0: one worker takes all that waits, and the rest runs twice or late.",
        "Set it to 1.",
    ),
    Rule(
        "E007",
        lambda c: c.rabbitmq and not c.options.get("confirm_publish"),
        "RabbitMQ is not asked to confirm what is sent to it: tasks are lost without an error when it fails.",
        "Set confirm_publish in CELERY_BROKER_TRANSPORT_OPTIONS, as broker_options() does.",
    ),
    Rule(
        "E008",
        lambda c: str(c.conf.task_default_delivery_mode) in ("1", "transient"),
        "CELERY_TASK_DEFAULT_DELIVERY_MODE is transient: RabbitMQ forgets the tasks when it restarts.",
        'Remove it, or set it to "persistent".',
    ),
    Rule(
        "E009",
        lambda c: c.redis and not c.options.get("ack_emulation", True),
        "ack_emulation is off: tasks that run or wait in a worker are lost when it dies.",
        "Remove it from CELERY_BROKER_TRANSPORT_OPTIONS.",
    ),
    Rule(
        "W001",
        lambda c: c.limit == inf and not c.redis,
        "CELERY_TASK_TIME_LIMIT is not set: a task that hangs keeps its slot in the worker for ever.",
        "Set it to what your longest task takes, and a margin.",
    ),
    Rule(
        "W002",
        lambda c: c.rabbitmq and RABBITMQ_CONSUMER_TIMEOUT_SECONDS <= c.limit < inf,
        "A task may take {0.limit} s, and RabbitMQ delivers it again after 1800 s: a long task runs twice.",
        "Lower CELERY_TASK_TIME_LIMIT; or raise consumer_timeout in RabbitMQ, and silence this check.",
    ),
    Rule(
        "W003",
        lambda c: c.conf.worker_prefetch_multiplier > 1,
        "CELERY_WORKER_PREFETCH_MULTIPLIER is above 1: tasks wait in a busy worker while others are idle, and run "
        "twice if they wait too long.",
        "Set it to 1.",
    ),
    Rule(
        "W004",
        lambda c: c.redis and not c.options.get("socket_timeout"),
        "Redis is waited for without limit: a page that sends a task hangs as long as Redis does.",
        "Set socket_timeout in CELERY_BROKER_TRANSPORT_OPTIONS, as broker_options() does.",
    ),
    Rule(
        "W005",
        lambda c: c.conf.task_publish_retry and c.conf.task_publish_retry_policy.get("max_retries", 3) is None,
        "Sending a task is tried for ever: a page hangs as long as the broker is away.",
        "Set max_retries in CELERY_TASK_PUBLISH_RETRY_POLICY.",
    ),
    Rule(
        "W006",
        lambda c: not c.conf.broker_connection_retry,
        "CELERY_BROKER_CONNECTION_RETRY is off: a worker ends whenever the broker goes away.",
        "Remove it.",
    ),
    Rule(
        "W007",
        lambda c: c.acks_off,
        "{0.acks_off} off: a task that fails goes back into its queue and is started for ever.",
        "Remove these settings; let tasks that may succeed later retry.",
    ),
    Rule(
        "W008",
        lambda c: c.conf.task_always_eager and not settings.DEBUG,
        "CELERY_TASK_ALWAYS_EAGER is on: tasks run inside the page that sends them, and are lost with it.",
        "Unset the variable, and run a worker.",
    ),
    Rule(
        "W009",
        lambda c: c.conf.beat_scheduler != SCHEDULER,
        "CELERY_BEAT_SCHEDULER is {0.conf.beat_scheduler!r}: while two beats run, as in a rolling deploy, each sends "
        "every scheduled task.",
        f'Set it to "{SCHEDULER}", or to a subclass and silence this check.',
    ),
    Rule(
        "W010",
        lambda c: c.conf.worker_pool in POOLS_WITHOUT_LIMITS and min(c.limit, c.soft_limit) < inf,
        "The pool {0.conf.worker_pool!r} does not hold tasks to the time limits as prefork does: one that hangs keeps "
        "its slot, and on Redis one that takes longer than {0.visibility} s runs twice.",
        "Give every call to another system a timeout of its own, then silence this check.",
    ),
    Rule(
        "W011",
        lambda c: c.limit + (c.visibility if c.redis else 0) > settings.DURABLE_TASK_RESEND_SECONDS,
        "A durable task is sent again while its first message may still come back: it runs twice.",
        "Set DURABLE_TASK_RESEND_SECONDS above CELERY_TASK_TIME_LIMIT and the visibility timeout together.",
    ),
    Rule(
        "W012",
        lambda c: not c.conf.task_ignore_result and (c.conf.result_backend or "disabled") != "disabled",
        "CELERY_TASK_IGNORE_RESULT is off: every task writes a result that nobody may read.",
        "Set it to True, and ignore_result=False on tasks whose result is read.",
    ),
    Rule(
        "W013",
        lambda c: not settings.USE_TZ and clock.is_changed(),
        "USE_TZ is off, and in TIME_ZONE an hour comes twice when summer time ends. The database cannot tell its two "
        "passes from each other, so what waits there may be sent up to an hour late on that day.",
        'Set USE_TZ to True, or TIME_ZONE to "UTC".',
    ),
]

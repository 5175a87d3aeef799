"""The internals of Celery and kombu that this folder builds on, and what happens when a release changes one.

Celery makes no promises about its internals. They are therefore listed here under the class or function that needs
them. If one of them does not fit, Celery's own class takes over. It keeps fewer promises, but it runs. With the tested
releases, nothing is checked.
"""

import inspect
import re
from functools import cache
from importlib import import_module
from importlib.metadata import version
from types import FunctionType
from typing import Any

from celery import Celery
from celery.signals import beat_init, worker_init
from celery.utils.log import get_logger
from kombu.transport import TRANSPORT_ALIASES

TESTED = {"celery": "5.7", "kombu": "5.7"}
# Our own classes and functions, each with its fallback and the parts that it needs: methods with their parameters, and
# other names.
PARTS = {
    "apps.tasks.broker.redis_transport:Transport": (
        "kombu.transport.redis:Transport",
        "kombu.transport.redis:QoS.append(message, delivery_tag)",
        "kombu.transport.redis:QoS._remove_from_indices(delivery_tag, pipe)",
        "kombu.transport.redis:QoS.reject(delivery_tag, requeue)",
        "kombu.transport.redis:QoS.restore_by_tag(tag, client)",
        "kombu.transport.redis:QoS.restore_unacked_once(stderr)",
        "kombu.transport.redis:QoS.restore_unacked(client)",
        "kombu.transport.redis:QoS.restore_visible()",
        "kombu.transport.redis:Channel._closing",
        "kombu.transport.redis:Channel._create_client(asynchronous)",
        "kombu.transport.redis:Channel._delete(queue)",
        "kombu.transport.redis:Channel._do_restore_message(payload)",
        "kombu.transport.redis:Channel.Message",
        "kombu.transport.redis:Channel._queue_bind(exchange, routing_key, pattern, queue)",
        "kombu.transport.redis:Channel._put(queue, message)",
        "kombu.transport.redis:Channel._q_for_pri(queue, pri)",
        "kombu.transport.redis:Channel._get_message_priority(message, reverse)",
        "kombu.transport.redis:Channel._basic_cancel(consumer_tag)",
        "kombu.transport.redis:Channel._brpop_start(timeout)",
        "kombu.transport.redis:Channel._brpop_read()",
        "kombu.transport.redis:Channel._brpop_sent_at",
        "kombu.transport.redis:Channel._connparams(asynchronous)",
        "kombu.transport.redis:Channel._expires",
        "kombu.transport.redis:Channel._flush_brpop_reauth()",
        "kombu.transport.redis:Channel._in_poll",
        "kombu.transport.redis:Channel._queue_cycle",
        "kombu.transport.redis:Channel.unacked_key",
        "kombu.transport.redis:Channel.unacked_index_key",
        "kombu.transport.redis:Channel.unacked_restore_interval",
        "kombu.transport.redis:MultiChannelPoller.maybe_restore_messages()",
        "kombu.transport.redis:MultiChannelPoller._channels",
        "kombu.transport.redis:Transport.drain_events(connection, timeout)",
        "kombu.transport.virtual:Transport._avail_channels",
        "kombu.transport.virtual:QoS._delivered",
        "kombu.transport.virtual:QoS._flush()",
        "kombu.transport.virtual:QoS.can_consume()",
        "kombu.transport.virtual:QoS.append(message, delivery_tag)",
    ),
    "apps.tasks.broker.rabbitmq_transport:Transport": (
        "kombu.transport.pyamqp:Transport",
        "celery.worker.loops:_quick_drain(connection, timeout)",
        "kombu.transport.pyamqp:Channel.basic_publish_confirm()",
        "kombu.transport.pyamqp:Connection.Channel",
        "kombu.transport.pyamqp:Connection.drain_events(timeout)",
        "kombu.transport.pyamqp:Transport.Connection",
        "kombu.transport.pyamqp:Transport.drain_events(connection)",
    ),
    "apps.tasks.broker.rabbitmq_transport:SSLTransport": (
        "kombu.transport.pyamqp:SSLTransport",
        "celery.worker.loops:_quick_drain(connection, timeout)",
        "kombu.transport.pyamqp:Channel.basic_publish_confirm()",
        "kombu.transport.pyamqp:Connection.Channel",
        "kombu.transport.pyamqp:Connection.drain_events(timeout)",
        "kombu.transport.pyamqp:SSLTransport.Connection",
        "kombu.transport.pyamqp:SSLTransport.drain_events(connection)",
    ),
    "apps.tasks.broker.queues:ProjectAMQP": (
        "celery.app.amqp:AMQP",
        "celery.app.amqp:AMQP.Connection",
        "celery.app.amqp:AMQP._create_task_sender()",
        "celery.app.amqp:AMQP.queues_cls",
        "celery.app.amqp:AMQP.send_task_message",
        "celery.app.amqp:Queues",
        "kombu.connection:Connection.Pool(limit)",
        "kombu.connection:Connection._extract_failover_opts()",
        "kombu.connection:Connection.alt",
        "kombu.connection:Connection._info(resolve)",
        "kombu.connection:Connection.ensure(obj, fun, errback, max_retries)",
        "kombu.connection:ConnectionPool.connection",
        "kombu.connection:ConnectionPool.new()",
        "kombu.connection:PooledConnection",
        "kombu.transport.native_delayed_delivery:bind_queue_to_native_delayed_delivery_exchange(connection, queue)",
        "kombu.transport.native_delayed_delivery:"
        "declare_native_delayed_delivery_exchanges_and_queues(connection, queue_type)",
    ),
    "apps.tasks.worker.stopping:Patience": (
        "",
        "celery.worker.state:active_requests",
        "celery.worker.state:requests",
        "celery.worker.state:reserved_requests",
        "celery.worker.state:should_terminate",
        "billiard.queues:_SimpleQueue._reader",
        "celery.bootsteps:StartStopStep.close(parent)",
        "celery.concurrency.asynpool:AsynPool._cache",
        "celery.concurrency.asynpool:ResultHandler.check_timeouts",
        "celery.concurrency.asynpool:ResultHandler._flush_outqueue(fd, remove, process_index, on_state_change)",
        "celery.concurrency.prefork:_run_ready_callbacks(hub)",
        "celery.app.control:Control.mailbox",
        "kombu.pidbox:Mailbox.node_cls",
        "kombu.pidbox:Node.reply()",
        "kombu.transport.virtual:QoS._delivered",
        "kombu.transport.virtual:QoS.restore_unacked()",
    ),
    "apps.tasks.worker.conditions:Conditions": ("", "celery.worker.consumer:Consumer.restart_count"),
    "apps.tasks.worker.conditions:Upkeep": (
        "",
        "celery.worker.consumer:Consumer.call_soon(p)",
        "celery.worker.consumer:Consumer.hub",
        "celery.worker.consumer:Consumer.initial_prefetch_count",
        "celery.worker.consumer:Consumer.timer",
    ),
    "apps.tasks.worker.receiving:RecordingConsumer": (
        "celery.worker.consumer:Consumer",
        "billiard.pool:ApplyResult._accepted",
        "billiard.pool:ApplyResult._cache",
        "billiard.pool:ApplyResult._write_to",
        "celery.concurrency.asynpool:AsynPool.outbound_buffer",
        "celery.app.trace:TraceInfo(state, retval)",
        "celery.app.trace:trace_ok_t(retval, info, runtime, retstr)",
        "celery.worker.consumer:Consumer.channel_errors",
        "celery.worker.consumer:Consumer.connection_errors",
        "celery.worker.consumer:Consumer.create_task_handler()",
        "celery.worker.consumer:Consumer.update_strategies()",
        "celery.worker.consumer:Consumer.on_close()",
        "celery.worker.consumer:Consumer.on_connection_error_after_connected(exc)",
        "celery.worker.consumer:Consumer.pool",
        "celery.worker.consumer:Consumer.task_consumer",
        "celery.worker.consumer:Consumer.on_unknown_message(body, message)",
        "celery.worker.consumer:Consumer.on_unknown_task(body, message, exc)",
        "celery.worker.consumer:Consumer.on_invalid_task(body, message, exc)",
        "celery.worker.consumer:Consumer.on_decode_error(message, exc)",
    ),
    "apps.tasks.worker.failures:RecordingRequest": (
        "celery.worker.request:Request",
        "celery.utils.serialization:get_pickled_exception(exc)",
        "celery.worker.request:Request._already_cancelled",
        "celery.worker.request:Request._already_revoked",
        "celery.worker.request:Request._hostname",
        "celery.worker.request:Request._message",
        "celery.worker.request:Request._payload",
        "celery.worker.request:Request._request_dict",
        "celery.worker.request:Request._success_was_stored()",
        "celery.worker.request:Request.on_failure(exc_info, send_failed_event, return_ok)",
        "celery.worker.request:Request.on_timeout(soft, timeout)",
        "celery.worker.state:should_terminate",
        "celery.worker.state:task_ready(request)",
    ),
    "apps.tasks.broker.queues:queue_state": ("", "kombu.transport.virtual:Channel._size(queue)"),
    "apps.tasks.beat.scheduler:LeaseScheduler": (
        "django_celery_beat.schedulers:DatabaseScheduler",
        "celery.beat:Scheduler.apply_async(entry, producer, advance)",
        "celery.beat:Scheduler.setup_schedule()",
        "celery.beat:Scheduler.should_sync()",
        "celery.beat:SchedulingError",
        "celery.schedules:crontab._orig_minute",
    ),
}
PART = re.compile(r"(?P<module>[\w.]+):(?P<names>[\w.]+)(?:\((?P<parameters>[\w, ]*)\))?")

logger = get_logger(__name__)


@cache
def misfits() -> dict[str, str]:
    """Return a sentence for each of our classes and functions that does not fit the installed releases."""
    if all(version(name).startswith(f"{release}.") for name, release in TESTED.items()):
        return {}
    found = {ours: [part for part in parts if not fits(part)] for ours, (_, *parts) in PARTS.items()}
    return {
        ours: f"{ours} does not fit Celery {version('celery')} and kombu {version('kombu')}, which changed "
        f"{', '.join(parts)}. What it promises is not kept; install the tested versions."
        for ours, parts in found.items()
        if parts
    }


def fits(part: str) -> bool:
    """Return whether a part exists and, if it is a method, accepts these parameters."""
    module, names, parameters = PART.fullmatch(part).group("module", "names", "parameters")
    try:
        found: Any = import_module(module)
    except ImportError:
        return False
    for name in names.split("."):
        if not hasattr(found, name):
            # If only instances have this attribute, some method must name it.
            return parameters is None and isinstance(found, type) and _is_named(name, found)
        found = getattr(found, name)
    if parameters is None:
        return True
    taken = inspect.signature(found).parameters
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in taken.values())
    return takes_any or set(filter(None, parameters.split(", "))) <= taken.keys()


def _is_named(name: str, kind: type) -> bool:
    functions = (each for base in kind.__mro__ for each in vars(base).values() if isinstance(each, FunctionType))
    return any(name in function.__code__.co_names for function in functions)


def fitting(ours: str) -> str:
    """Return the path of our own class if it fits, or else the path of its fallback."""
    return PARTS[ours][0] if ours in misfits() else ours


def use_what_fits(app: Celery) -> None:
    """Replace what does not fit by Celery's own. Workers and beats log a warning when they start."""
    if not misfits():
        return
    worker_init.connect(_warn, weak=False)
    beat_init.connect(_warn, weak=False)
    TRANSPORT_ALIASES.update({name: fitting(path) for name, path in TRANSPORT_ALIASES.items() if path in PARTS})
    app.amqp_cls = fitting(app.amqp_cls)
    for steps in app.steps.values():
        steps.difference_update(misfits())

    @app.on_after_configure.connect(weak=False)
    def configure(sender: Celery, **kwargs: object) -> None:
        for name in ("beat_scheduler", "worker_consumer"):
            if sender.conf[name] in PARTS:
                sender.conf[name] = fitting(sender.conf[name])


def _warn(**kwargs: object) -> None:
    for sentence in misfits().values():
        logger.warning(sentence)

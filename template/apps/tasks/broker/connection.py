"""Validates the URLs of brokers and result backends, and passes the options in them to the client.

Celery notices a bad URL only when it connects, and its error does not name the URL. The settings report it in one
sentence.
"""

import re
import ssl
from collections.abc import Callable
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlencode

import kombu.connection
from celery.app.backends import BACKEND_ALIASES
from kombu.exceptions import OperationalError
from kombu.transport import TRANSPORT_ALIASES
from kombu.utils.imports import symbol_by_name

from apps.web.environment import ALIASES, RULES, Unusable, checked_url, number, one_of, whole_number, yes_or_no

from .options import is_redis

# Valkey speaks the protocol of Redis, but neither Celery nor the Redis client knows its schemes.
ALIASES.update(valkey="redis", valkeys="rediss")

Options = dict[str, Callable[[str], Any]]


def certificates_file(value: str) -> str:
    """Return the path of a file if it contains certificates, else raise Unusable."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(value)
    except OSError as error:
        reason = error.strerror if error.errno and not isinstance(error, ssl.SSLError) else "it holds none"
        raise Unusable(f"where no certificate can be read ({reason})") from None
    return value


# Options --------------------------------------------------------------------

# Options of the drivers. Celery accepts them only as transport options.
TRANSPORT_OPTIONS: dict[str, Options] = {
    "redis": {
        "client_name": str,
        "health_check_interval": whole_number,
        "max_connections": whole_number,
        "retry_on_timeout": yes_or_no,
        "socket_connect_timeout": number,
        "socket_keepalive": yes_or_no,
        "socket_timeout": number,
    },
    "amqp": {"connect_timeout": number, "read_timeout": number, "write_timeout": number},
}
# Options that Celery and the Redis client read from the URL by themselves.
AMQP_OPTIONS: Options = {"heartbeat": number, "login_method": str}
URL_OPTIONS: dict[str, Options] = {
    "amqp": AMQP_OPTIONS,
    "amqps": AMQP_OPTIONS,
    "pyamqp": AMQP_OPTIONS,
    "redis": {"db": whole_number},
    "rediss": {
        "db": whole_number,
        "ssl_ca_certs": certificates_file,
        "ssl_cert_reqs": one_of("required", "optional", "none", "CERT_REQUIRED", "CERT_OPTIONAL", "CERT_NONE"),
        "ssl_certfile": str,
        "ssl_check_hostname": one_of("true", "false", "True", "False"),
        "ssl_keyfile": str,
    },
    "redis+socket": {"virtual_host": whole_number},
    "sentinel": {"db": whole_number},
}


def _driver_options(scheme: str) -> Options:
    return TRANSPORT_OPTIONS["amqp" if "amqp" in scheme else "redis"]


def _check(parts: SplitResult) -> None:
    """Raise Unusable if a Redis or RabbitMQ URL has an unknown option, a value of the wrong type, or a bad database."""
    known = _driver_options(parts.scheme) | URL_OPTIONS[parts.scheme]
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known:
            # A text that is not an option name may be part of a password.
            shown = f"the option {name}" if name.isidentifier() else "an option"
            raise Unusable(f"which has {shown}, but can have only {', '.join(sorted(known))}")
        try:
            known[name](value)
        except Unusable as error:
            raise Unusable(f"whose option {name} is {value!r}, {error}") from None
    if parts.scheme == "redis+socket":
        if not parts.path.strip("/"):
            raise Unusable("which names no socket: write redis+socket:///path/to/redis.sock")
    elif "amqp" not in parts.scheme and not re.fullmatch(r"/{0,2}|//?\d+", parts.path):
        raise Unusable("whose database is not a number: write redis://127.0.0.1:6379/0")


RULES.update(dict.fromkeys(URL_OPTIONS, _check))


class Patient(kombu.Connection):
    """A connection that is established or used again only once after an error, unless the caller sets another limit.

    Celery sets none for a worker's heartbeats, for remote commands and for their answers. While the broker refuses
    clients, kombu would try again forever. The worker would wait for that before it connects again, and log nothing.
    """

    @property
    def _limit(self) -> int:
        # Each address of the broker has its turn.
        return len(self.alt) or 1

    def _extract_failover_opts(self) -> dict[str, Any]:
        return {"max_retries": self._limit} | super()._extract_failover_opts()

    def ensure(
        self, obj: Any, fun: Callable[..., Any], errback: Any = None, max_retries: int | None = None, **options: Any
    ) -> Callable[..., Any]:
        """Return the function with repetitions for the case that the connection is lost."""
        if errback or max_retries is not None:
            return super().ensure(obj, fun, errback, max_retries, **options)
        repeated = super().ensure(obj, fun, max_retries=self._limit, **options)

        def bounded(*args: Any, **kwargs: Any) -> Any:
            try:
                return repeated(*args, **kwargs)
            except OperationalError as error:
                # After the driver's own error, a worker connects again. This one would end it.
                raise error.__cause__ or error from None

        return bounded


class PooledConnection(Patient, kombu.connection.PooledConnection):
    """A connection of the pool from which tasks, remote commands and their answers are sent."""


class ConnectionPool(kombu.connection.ConnectionPool):
    """A pool of such connections."""

    def new(self) -> PooledConnection:
        """Return a connection like the one that the pool was made for."""
        return PooledConnection(self, **dict(self.connection._info(resolve=False)))


class Connection(Patient):
    """A connection that takes driver options from the URL. They override the options in the settings."""

    def __init__(
        self,
        hostname: Any = "localhost",
        *args: Any,
        transport_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        options = dict(transport_options or {})
        # This is only a name, or None, if the connection is a copy of another one.
        if isinstance(hostname, str) and "?" in hostname:
            hostname = ";".join(_without_options(url, options) for url in hostname.split(";"))
        super().__init__(hostname, *args, transport_options=options, **kwargs)

    def Pool(self, limit: int | None = None, **kwargs: Any) -> ConnectionPool:
        """Return a pool of connections like this one."""
        return ConnectionPool(self, limit, **kwargs)


def _without_options(url: str, options: dict[str, Any]) -> str:
    """Move the driver options from the URL into the transport options, and return the rest of the URL."""
    head, _, query = url.partition("?")
    scheme, _, address = head.partition("://")
    if scheme not in URL_OPTIONS:
        return url
    known = _driver_options(scheme)
    left = []
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name in known:
            options[name] = known[name](value)
        elif name == "db":
            head = f"{scheme}://{address.partition('/')[0]}/{value}"
        else:
            left.append((name, value))
    return head + (f"?{urlencode(left)}" if left else "")


# Forms of variables ---------------------------------------------------------


def broker_url(value: str) -> str:
    """Return the broker's URL, or several URLs separated by semicolons, or raise Unusable if one cannot work.

    This does not connect, so the broker may still be down.
    """
    first, *others = value.split(";")
    # After the first URL, a bare host stands for the same URL with another host.
    for url in (first, *(other for other in others if "://" in other)):
        checked_url(url)
        _need_driver(url)
        scheme = url.partition("://")[0]
        if scheme in URL_OPTIONS:
            continue
        if scheme.startswith("redis") or scheme.partition("+")[0] not in TRANSPORT_ALIASES:
            raise Unusable(
                "whose scheme names no broker. Write redis://, rediss://, redis+socket:///path/to/redis.sock, "
                "sentinel://, amqp:// or amqps://"
            )
        try:
            kombu.Connection(url)
        except Exception as error:
            raise Unusable(f"by which no broker can be reached ({error})") from None
    return value


def result_backend(value: str) -> str:
    """Return the name or the URL of a result backend if that backend exists, else raise Unusable."""
    name, is_url, _ = value.partition("://")
    for url in filter(None, value.split(";") if is_url else ()):
        checked_url(url)
    name = name.partition("+")[0] if is_url else name
    _need_driver(value)
    if name in ("redis", "rediss", "sentinel"):
        return value
    if name in BACKEND_ALIASES:
        try:
            symbol_by_name(BACKEND_ALIASES[name])
        except Exception as error:
            raise Unusable(f"where no result can be written ({error})") from None
    elif name not in entry_points(group="celery.result_backends").names and (is_url or not _is_there(name)):
        raise Unusable("where no result can be written. Write django-db, redis://host:6379/2 or module:Class")
    return value


def _need_driver(url: str) -> None:
    if is_redis(url) and find_spec("redis") is None:
        raise Unusable("which needs the package redis. Install celery[redis]")


def _is_there(name: str) -> bool:
    """Return whether the module of `module:Class` or `module.Class` can be found."""
    module = name.partition(":")[0] if ":" in name else name.rpartition(".")[0]
    try:
        return bool(module) and find_spec(module) is not None
    except ImportError:
        return False

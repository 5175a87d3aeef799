"""What may stand in the URL of a broker or of a place for results, and connections that take the options there.

Celery notices a URL that cannot work when it connects, by an error that does not name it; the settings by a sentence.
"""

import re
import ssl
from collections.abc import Callable
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlencode

import kombu
from celery.app.backends import BACKEND_ALIASES
from kombu.transport import TRANSPORT_ALIASES
from kombu.utils.imports import symbol_by_name

from apps.web.environment import ALIASES, RULES, Unusable, checked_url, number, one_of, whole_number, yes_or_no

from .options import is_redis

# Valkey is Redis by another name, which neither Celery nor the client of Redis knows.
ALIASES.update(valkey="redis", valkeys="rediss")

Options = dict[str, Callable[[str], Any]]


def certificates_file(value: str) -> str:
    """Return the path of a file, if there are certificates in it; else raise Unusable."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(value)
    except OSError as error:
        reason = error.strerror if error.errno and not isinstance(error, ssl.SSLError) else "it holds none"
        raise Unusable(f"where no certificate can be read ({reason})") from None
    return value


# Options --------------------------------------------------------------------

# What the drivers take, which Celery knows among the transport options alone.
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
# What Celery and the client of Redis read in the URL by themselves.
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
    """Raise Unusable if a URL of Redis or RabbitMQ has an unknown option, one of another type, or no such database."""
    known = _driver_options(parts.scheme) | URL_OPTIONS[parts.scheme]
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known:
            # What is no name may be a piece of a password.
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


class Connection(kombu.Connection):
    """A connection that takes the options of a driver from the URL; they have precedence over those of the settings."""

    def __init__(
        self,
        hostname: Any = "localhost",
        *args: Any,
        transport_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        options = dict(transport_options or {})
        # A name alone, or nothing, where a connection is made like another one.
        if isinstance(hostname, str) and "?" in hostname:
            hostname = ";".join(_without_options(url, options) for url in hostname.split(";"))
        super().__init__(hostname, *args, transport_options=options, **kwargs)


def _without_options(url: str, options: dict[str, Any]) -> str:
    """Return the URL without what belongs among the transport options, which is put there."""
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
    """Return the URL of a broker, or URLs of several with semicolons, if tasks can be sent there; else raise Unusable.

    Nobody is asked for it: whether the broker answers is another matter.
    """
    first, *others = value.split(";")
    # A host may stand for the URL of the first with another host.
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
    """Return the name or the URL of a place for results, if there is such a place; else raise Unusable."""
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

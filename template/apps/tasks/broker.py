"""Which message broker carries the tasks: one named by a URL, or a server of this checkout's own for development.

The settings import this module, so at the top it needs nothing but the standard library.
"""

import importlib.util
import os
import re
import shutil
import socket
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

BROKER_VARIABLES = ("CELERY_BROKER_URL", "REDIS_URL")
DATA_DIRECTORY = ".broker"
REMEDIES = "Set CELERY_BROKER_URL to a broker that runs (Docker is one way, WSL2 another), or CELERY_TASK_ALWAYS_EAGER=1."


class BrokerUnavailable(Exception):
    """No broker can be used; the message says why, and what to do about it."""


@dataclass(frozen=True)
class Server:
    """A server program for development: its path, and how to call it in a sentence."""

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


def broker_failure(timeout_seconds: float = 2.0) -> str | None:
    """Try the broker of the settings once; return why tasks cannot be sent, or None if they can."""
    from celery import current_app

    limits = {"socket_connect_timeout": timeout_seconds, "socket_timeout": timeout_seconds}
    try:
        with current_app.connection_for_write(connect_timeout=timeout_seconds, transport_options=limits) as connection:
            # Not connection.connect(), which pauses and tries a second time.
            opened = connection.transport.establish_connection()
            connection.transport.close_connection(opened)
    # Each transport has errors of its own, and all of them mean the same here.
    except Exception as error:
        return str(error) or type(error).__name__
    return None


def broker_answers(timeout_seconds: float = 2.0) -> bool:
    """Return whether the broker of the settings accepts a connection within the time."""
    return broker_failure(timeout_seconds) is None

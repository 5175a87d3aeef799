"""What `manage.py dev` runs: the web server, and whatever the other apps add.

An installed app takes part with a module `dev` that has a function `processes(options) -> list[Process]` and, if
something must be done before they start or after they have exited, `prepare(options)` and `finish(options)`. The
options are those of the command.
"""

import importlib.util
import os
import socket
import sys
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management import CommandError

from .supervisor import Process


def processes(options: dict[str, Any]) -> list[Process]:
    """Return the web server, on the requested port, or else on 8000 or the next free one."""
    port = first_free_port(8000) if options["port"] is None else asked_port(options["port"])
    return [Process(name="web", command=server_command(port), note=f"http://127.0.0.1:{port}/")]


def server_command(port: int) -> tuple[str, ...]:
    """Return the command of a server that reloads changed code: uvicorn if the project has it, else Django's own."""
    if importlib.util.find_spec("uvicorn") is None:
        return (sys.executable, str(settings.BASE_DIR / "manage.py"), "runserver", f"127.0.0.1:{port}")
    application = f"{settings.ROOT_URLCONF.partition('.')[0]}.asgi:application"
    # Only our own folders, because a virtual environment inside the project changes with every package.
    watched = [path for path in settings.BASE_DIR.iterdir() if path.name == "templates" or holds_code(path)]
    return (
        *(sys.executable, "-m", "uvicorn", application, "--host=127.0.0.1", f"--port={port}"),
        *("--reload", "--reload-include=*.html", *(f"--reload-dir={path}" for path in sorted(watched))),
        # Nobody who says X-Forwarded-Proto is believed, as in production.
        "--no-proxy-headers",
        # A streaming page does not delay a reload or the exit.
        "--timeout-graceful-shutdown=2",
    )


def holds_code(path: Path) -> bool:
    """Return whether this is a folder with code of the project, unlike a virtual environment, for example."""
    return path.is_dir() and any(path.glob("*.py"))


# Ports ----------------------------------------------------------------------

# UDP sockets that reserve ports until this process exits. While a server is still starting, nobody listens on its port,
# so the same command in another checkout would choose the same port.
claims: list[socket.socket] = []


def claim_port(port: int) -> bool:
    """Return whether the port is free, and reserve it among these commands. Another program may still take it."""
    try:
        bound_socket(socket.SOCK_STREAM, port).close()
        claims.append(bound_socket(socket.SOCK_DGRAM, port))
    except OSError:
        return False
    return True


def bound_socket(kind: socket.SocketKind, port: int) -> socket.socket:
    """Return a socket that is bound to the port on 127.0.0.1. Raise OSError if the port is taken or not allowed."""
    bound = socket.socket(socket.AF_INET, kind)
    try:
        if kind == socket.SOCK_STREAM and os.name == "posix":
            # Servers do the same. Connections that a server has just closed are no reason to refuse its port.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", port))
    except OSError:
        bound.close()
        raise
    return bound


def first_free_port(first: int) -> int:
    """Return the first free port at or after the given one."""
    ports = range(first, first + 100)
    port = next(filter(claim_port, ports), None)
    if port is None:
        raise CommandError(f"No port is free between {ports[0]} and {ports[-1]}.")
    return port


def asked_port(asked: str) -> int:
    """Return the requested port. Raise CommandError if it is not a port, or is taken."""
    if not asked.isdecimal() or not 0 < int(asked) < 65536:
        raise CommandError(f"{asked!r} is no port: give --port, or PORT, a number from 1 to 65535.")
    if not claim_port(int(asked)):
        raise CommandError(f"Port {asked} is taken: give --port, or PORT, another number, or neither for a free one.")
    return int(asked)

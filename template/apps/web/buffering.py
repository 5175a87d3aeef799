"""A process of gunicorn that waits for slow visitors without holding a thread.

In gunicorn's own process with threads, a thread belongs to a connection from its first byte on, so as many visitors as
there are threads could stop the site by sending slowly. Here, the loop that accepts connections also collects requests,
and a thread gets only those that have arrived completely. Without this file, set `worker_class = "gthread"` in
gunicorn.conf.py.

The parts of gunicorn that this changes are `enqueue_req`, which is called when a connection has something to say, and
`murder_pending`, which is called about once a second.
"""

import re
import selectors
import socket
import time
from contextlib import suppress
from functools import partial
from tempfile import SpooledTemporaryFile

from django.conf import settings
from gunicorn.http.unreader import Unreader
from gunicorn.workers.gthread import TConn, ThreadWorker

# How long an answer has to reach a visitor who is still sending.
CLOSING_SECONDS = 2
HEAD_BYTES = 64 * 1024
# Larger requests are written to the temporary folder.
IN_MEMORY_BYTES = 64 * 1024
READ_BYTES = 64 * 1024

LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n", re.IGNORECASE)
CHUNKED = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)
END_OF_HEAD = b"\r\n\r\n"
END_OF_CHUNKS = b"0\r\n\r\n"


class Arrival(Unreader):
    """A request on its way: what has come of it so far.

    Gunicorn's parser reads from it instead of the socket, and what is missing looks like the end of the connection.
    Therefore it does no harm if this class is wrong about where the request ends: no thread waits for a visitor.
    """

    def __init__(self) -> None:
        super().__init__()
        # It is closed with the connection, when nothing refers to it any more.
        self.file = SpooledTemporaryFile(max_size=IN_MEMORY_BYTES)  # noqa: SIM115
        self.head = bytearray()
        self.head_bytes = self.size = 0
        self.tail = b""
        self.began = time.monotonic()

    def add(self, data: bytes) -> None:
        """Take what has arrived."""
        self.file.write(data)
        self.size += len(data)
        self.tail = (self.tail + data)[-len(END_OF_CHUNKS) :]
        if not self.head_bytes:
            self.head += data
            end = self.head.find(END_OF_HEAD, max(0, self.size - len(data) - len(END_OF_HEAD)))
            self.head_bytes = end + len(END_OF_HEAD) if end >= 0 else 0

    @property
    def expected_bytes(self) -> int | None:
        """How long the request is, or None while nobody can know."""
        if not self.head_bytes or CHUNKED.search(self.head, 0, self.head_bytes):
            return None
        length = LENGTH.search(self.head, 0, self.head_bytes)
        return self.head_bytes + (int(length[1]) if length else 0)

    @property
    def is_complete(self) -> bool:
        """Whether all of the request is there."""
        if self.expected_bytes is None:
            return bool(self.head_bytes) and self.tail == END_OF_CHUNKS
        return self.size >= self.expected_bytes

    @property
    def is_late(self) -> bool:
        """Whether the visitor sends too slowly."""
        allowed_seconds = settings.REQUEST_SECONDS + self.size / settings.REQUEST_BYTES_PER_SECOND
        return time.monotonic() > self.began + allowed_seconds

    @property
    def refusal(self) -> str:
        """The status with which the request is refused, or an empty text."""
        if not self.head_bytes and self.size > HEAD_BYTES:
            return "431 Request Header Fields Too Large"
        if max(self.size, self.expected_bytes or 0) - self.head_bytes > settings.REQUEST_MAX_BYTES:
            return "413 Content Too Large"
        return ""

    def begin_reading(self) -> None:
        """Let the parser read from the beginning."""
        self.file.seek(0)

    def chunk(self, size_hint: int | None = None) -> bytes:
        """Return what comes next. Gunicorn calls this."""
        return self.file.read(size_hint or READ_BYTES)


class BufferingWorker(ThreadWorker):
    """Gunicorn's process with threads, which get a request when all of it has arrived."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)
        self.arriving: dict[TConn, Arrival] = {}
        # Until when each of these connections, which have their answer, may take it in.
        self.closing: dict[TConn, float] = {}

    def enqueue_req(self, conn: TConn) -> None:
        """Collect the request of a connection that is new or has something to say."""
        conn.init()
        conn.sock.setblocking(False)
        # By itself, gunicorn would wait here for the visitor to close the connection, too.
        conn.close = partial(self._close, conn)
        arrival = Arrival()
        # A visitor may send the next request without waiting for the answer to the one before.
        before = conn.parser.unreader
        arrival.add(before.take_buffered() + (before.file.read() if isinstance(before, Arrival) else b""))
        self.arriving[conn] = arrival
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._collect, conn))
        self._hand_over_if_complete(conn)

    def _collect(self, conn: TConn, client: socket.socket) -> None:
        """Read what the visitor has sent. Gunicorn's loop calls this if there is something."""
        if data := _received(client):
            self.arriving[conn].add(data)
            self._hand_over_if_complete(conn)
        else:
            self._drop(conn)

    def _hand_over_if_complete(self, conn: TConn) -> None:
        arrival = self.arriving[conn]
        if arrival.refusal:
            self._drop(conn, arrival.refusal)
        elif arrival.is_complete:
            self.poller.unregister(conn.sock)
            del self.arriving[conn]
            arrival.begin_reading()
            conn.parser.unreader = arrival
            super().enqueue_req(conn)

    def _drop(self, conn: TConn, status: str = "") -> None:
        """Close a connection whose request has not arrived, after an answer with this status, if there is one."""
        self.poller.unregister(conn.sock)
        del self.arriving[conn]
        self.nr_conns -= 1
        if status:
            self.log.info("%s: %s", conn.client[0] if conn.client else "-", status)
            with suppress(OSError):
                conn.sock.send(f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode())
        conn.close(graceful=bool(status))

    def _close(self, conn: TConn, graceful: bool = False) -> None:
        """Close a connection. With `graceful`, a visitor who is still sending reads the answer first."""
        if graceful:
            with suppress(OSError):
                conn.sock.setblocking(False)
                conn.sock.shutdown(socket.SHUT_WR)
                self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._read_on, conn))
                self.closing[conn] = time.monotonic() + CLOSING_SECONDS
                return
        conn.sock.close()

    def _read_on(self, conn: TConn, client: socket.socket) -> None:
        """Read what is not wanted any more, until the visitor closes the connection as well."""
        if not _received(client):
            self._finish_closing(conn)

    def _finish_closing(self, conn: TConn) -> None:
        self.poller.unregister(conn.sock)
        del self.closing[conn]
        conn.sock.close()

    def murder_pending(self) -> None:
        """Close the connections that take too long and, when the process stops, those that have said nothing yet."""
        for conn, arrival in list(self.arriving.items()):
            if arrival.is_late or (not self.alive and not arrival.size):
                self._drop(conn, "408 Request Timeout" if arrival.size else "")
        for conn in [each for each, until in self.closing.items() if time.monotonic() > until]:
            self._finish_closing(conn)


def _received(client: socket.socket) -> bytes:
    """Return what has arrived, or nothing if the visitor has closed the connection."""
    try:
        return client.recv(READ_BYTES)
    except OSError:
        return b""

"""Brokers that can die and come back, and ways to them that can be cut."""

import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.dev_support import wait_until
from tests.processes import Program, environment, freeze, needed, rabbitmq_cluster, wait_for_broker


def bound(port: int = 0) -> socket.socket:
    """Return a socket that keeps a port to itself: connections are refused until somebody listens there.

    A free port alone is soon another's on a machine where many tests run, and so is that of a server which has died.
    """
    kept = socket.socket()
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    kept.bind(("127.0.0.1", port))
    return kept


class Broker:
    """A message broker on this machine."""

    def __init__(self, scheme: str, port: int) -> None:
        self.scheme, self.port = scheme, port

    def url(self, port: int | None = None) -> str:
        """Return its URL, or that of another port that leads to it."""
        account, path = ("guest:guest@", "//") if self.scheme == "amqp" else ("", "/0")
        return f"{self.scheme}://{account}127.0.0.1:{port or self.port}{path}"

    def held(self) -> set[int]:
        """Return the tasks that wait or are not acknowledged, where the broker can be asked."""
        return set()

    def close(self) -> None:
        """End what was started for it."""


class Redis(Broker):
    """A Redis of this run's own, with an append-only file, that can die and come back."""

    successor: "Redis | None" = None

    def __init__(self, folder: Path) -> None:
        # Redis may share it.
        self.kept = bound()
        super().__init__("redis", self.kept.getsockname()[1])
        self.folder = folder
        self.start()

    def start(self) -> None:
        options = {"--port": str(self.port), "--bind": "127.0.0.1", "--dir": str(self.folder), "--save": ""}
        words = (word for option in (options | {"--appendonly": "yes"}).items() for word in option)
        self.server = Program(self.folder, self.folder / "redis.log", needed("redis-server"), *words)
        wait_for_broker(self.server, "redis", self.port)

    def kill(self) -> None:
        self.server.process.kill()
        self.server.process.wait()

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Let it stand still meanwhile. What is sent to it waits in its buffers."""
        freeze(self.server.process.pid)
        try:
            yield
        finally:
            self.server.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        if self.successor:
            self.successor.close()
        self.kill()
        self.kept.close()

    def ask(self, *words: str) -> str:
        command = (needed("redis-cli"), "-p", str(self.port), *words)
        return subprocess.run(command, text=True, capture_output=True, check=True, env=environment()).stdout

    def fail_over(self, way: "Proxy") -> None:
        """Let another server take its place: this one is its replica then, and the way leads new connections there."""
        folder = self.folder / "successor"
        folder.mkdir()
        self.successor = Redis(folder)
        self.successor.ask("REPLICAOF", "127.0.0.1", str(self.port))
        assert wait_until(lambda: "state=online" in self.ask("INFO", "replication"))
        self.ask("FAILOVER", "TO", "127.0.0.1", str(self.successor.port))
        assert wait_until(lambda: "role:slave" in self.ask("INFO", "replication"))
        way.target = self.successor.port

    def held(self) -> set[int]:
        if self.successor:
            return self.successor.held()
        messages = self.ask("HVALS", "unacked")
        # Tasks of Django's framework have a priority, and each level has a list of its own.
        for level in ("", "\x06\x163", "\x06\x166", "\x06\x169"):
            messages += self.ask("LRANGE", f"celery{level}", "0", "-1")
        return {int(identity) for identity in re.findall(r'"argsrepr": "\((\d+),', messages)}


class Cluster(Broker):
    """A RabbitMQ of three nodes; whoever is sent to one of them finds the others when that is gone."""

    scheme = "amqp"

    def __init__(self, folder: Path) -> None:
        (folder / "rabbitmq").mkdir()
        self.stack = ExitStack()
        self.nodes = self.stack.enter_context(rabbitmq_cluster(folder / "rabbitmq", 3))

    def url(self, port: int | None = None) -> str:
        return ";".join(url for _, url in self.nodes)

    def kill_first(self) -> None:
        """Kill the node that everybody is connected to."""
        self.nodes[0][0].kill()

    def close(self) -> None:
        self.stack.close()


class Proxy:
    """A way to a port of this machine that can be cut: connections end, and new ones are refused.

    While `swallows` is true they stay, but nothing comes through.
    """

    def __init__(self, target: int) -> None:
        self.target, self.listener = target, bound()
        self.port = self.listener.getsockname()[1]
        self.sockets: list[socket.socket] = []
        self.lock = threading.Lock()
        self.open()

    def open(self) -> None:
        self.swallows = False
        self.listener.listen()
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def cut(self) -> None:
        with self.lock:
            for each in (self.listener, *self.sockets):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()
            self.sockets.clear()
            self.listener = bound(self.port)

    def close(self) -> None:
        self.cut()
        self.listener.close()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                with self.lock:
                    if self.listener is not listener:
                        # The way was cut meanwhile.
                        client.close()
                        server.close()
                        return
                    self.sockets += (client, server)
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not self.swallows:
                    sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

"""What `manage.py dev` runs: every process of the project, as one command that starts and stops them together.

An installed app takes part with a module `dev` that has a function `processes(options) -> list[Process]` and, where
something must be done first, `prepare(options)`. The options are those of the command.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.core.management import CommandError

COLOURS = (36, 32, 35, 33, 34)
# Kills its process group, which is that of all children, as soon as this process is gone, whatever ended it.
GUARD = "import os, signal, sys; sys.stdin.read(); os.killpg(0, signal.SIGKILL)"
POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process to run, or with an empty command something that runs already and is only announced.

    `note` stands in the first lines that the command prints. Lower stages start first and stop last, and the next
    stage waits until `ready` returns true. After SIGTERM the process has `stop_seconds` to end by itself. `changes`
    yields whenever the process must be started again, until the event that it gets is set.
    """

    name: str
    command: Sequence[str] = ()
    note: str = ""
    stage: int = 1
    stop_seconds: float = 10
    ready: Callable[[], bool] = lambda: True
    changes: Callable[[threading.Event], Iterable[object]] | None = None


def processes(options: dict[str, Any]) -> list[Process]:
    """Return the web server, on the port asked for, or else on 8000 or the next free one."""
    port = first_free_port(8000) if options["port"] is None else asked_port(options["port"])
    command = (sys.executable, str(settings.BASE_DIR / "manage.py"), "runserver", f"127.0.0.1:{port}")
    return [Process(name="web", command=command, note=f"http://127.0.0.1:{port}/")]


# Ports ----------------------------------------------------------------------

# Held until this process ends. They carry nothing: while a server is still starting, nobody listens on its port, and
# another checkout would choose the same one.
claims: list[socket.socket] = []


def claim_port(port: int) -> bool:
    """Return whether the port is free, and keep others of these commands off it; another program may still take it."""
    try:
        claims.append(bound_socket(socket.SOCK_DGRAM, port))
        bound_socket(socket.SOCK_STREAM, port).close()
    except OSError:
        return False
    return True


def bound_socket(kind: socket.SocketKind, port: int) -> socket.socket:
    """Return a socket that is bound to the port on 127.0.0.1; raise OSError if it is taken or not allowed."""
    bound = socket.socket(socket.AF_INET, kind)
    try:
        if kind == socket.SOCK_STREAM and os.name == "posix":
            # As servers do: connections that a server has just closed are no reason to refuse its port.
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
    """Return the port that was asked for; raise CommandError if it is none, or taken."""
    if not asked.isdecimal() or not 0 < int(asked) < 65536:
        raise CommandError(f"{asked!r} is no port: give --port, or PORT, a number from 1 to 65535.")
    if not claim_port(int(asked)):
        raise CommandError(f"Port {asked} is taken: give --port, or PORT, another number, or neither for a free one.")
    return int(asked)


# Supervisor -----------------------------------------------------------------


@dataclass(eq=False)
class Child:
    """A process as it runs. `changed` is set when it must be started again, `kill_at` once it was asked to end."""

    process: Process
    popen: subprocess.Popen[bytes]
    changed: threading.Event
    kill_at: float | None = None
    restarted: bool = False
    reported: bool = False

    @property
    def runs(self) -> bool:
        return self.popen.poll() is None

    def end(self) -> None:
        """Ask the process to end; called again, kill it when its time is over."""
        if self.kill_at is None:
            self.kill_at = time.monotonic() + self.process.stop_seconds
            self.popen.terminate()
        elif time.monotonic() > self.kill_at:
            self.popen.kill()


class Supervisor:
    """Runs processes until a signal comes or one of them ends, then stops them all."""

    def __init__(self, processes: Sequence[Process], *, colour: bool) -> None:
        self.processes = sorted((process for process in processes if process.command), key=lambda each: each.stage)
        self.colour = colour
        self.children: list[Child] = []
        self.threads: list[threading.Thread] = []
        self.guard: subprocess.Popen[bytes] | None = None
        self.output = threading.Lock()
        self.ended = threading.Event()
        # Plain values, because a signal handler that sets an event can block for ever.
        self.stopping = self.forced = False

    def run(self) -> int:
        """Run everything; return 0 after a signal, 130 after a second Ctrl-C, else the code of what ended by itself."""
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            # Windows has no SIGHUP.
            if number := getattr(signal, name, None):
                signal.signal(number, self.receive)
        if os.name == "posix":
            self.guard = subprocess.Popen((sys.executable, "-IS", "-c", GUARD), stdin=subprocess.PIPE, process_group=0)
        try:
            self.start()
            code = self.watch()
            self.stop()
        finally:
            self.kill()
        return 130 if self.forced else code

    def receive(self, number: int, _frame: object) -> None:
        """Take a signal: the first one stops, a Ctrl-C after it forces."""
        self.forced = self.stopping and number == signal.SIGINT
        self.stopping = True

    def start(self) -> None:
        """Start the processes by stage; return early when a signal comes, or when one ends before it is ready."""
        for process in self.processes:
            child = Child(process, self.spawn(process), threading.Event())
            self.children.append(child)
            while not process.ready():
                if self.stopping or not child.runs:
                    return
                time.sleep(POLL_SECONDS)
            if process.changes:
                self.in_background(self.notice_changes, child, process.changes)

    def spawn(self, process: Process) -> subprocess.Popen[bytes]:
        """Start a process in the group of the guard, where the terminal's Ctrl-C does not reach it past us."""
        group = {"process_group": self.guard.pid} if self.guard else {}
        popen = subprocess.Popen(
            process.command,
            cwd=settings.BASE_DIR,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **group,
        )
        self.in_background(self.copy_output, process.name, popen)
        return popen

    def in_background(self, function: Callable[..., None], *arguments: object) -> None:
        """Call the function in a thread."""
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        thread.start()
        self.threads.append(thread)

    def watch(self) -> int:
        """Wait for a signal, or for a process that ends by itself; return the exit code."""
        while not self.stopping:
            for child in self.children:
                if child.changed.is_set():
                    self.reload(child)
                elif not child.runs and not self.waits_for_change(child):
                    code = child.popen.returncode
                    code = 128 - code if code < 0 else code
                    self.say(f"{child.process.name} ended with exit code {code}, so everything stops.")
                    return code
            time.sleep(POLL_SECONDS)
        return 0

    def reload(self, child: Child) -> None:
        """Ask a process whose code has changed to end, and start it again when it has."""
        if child.runs:
            child.end()
            return
        child.changed.clear()
        child.popen, child.kill_at = self.spawn(child.process), None
        child.restarted, child.reported = True, False

    def waits_for_change(self, child: Child) -> bool:
        """Return whether an ended process failed after a change: a mistake just saved stops nothing else."""
        waits = child.restarted and child.popen.returncode > 0
        if waits and not child.reported:
            child.reported = True
            self.say(f"{child.process.name} ended with an error, and starts again when its code changes.")
        return waits

    def stop(self) -> None:
        """End all processes, the highest stage first, and wait until they have ended or a second Ctrl-C comes."""
        self.stopping = True
        self.say("Stopping. What has begun may finish; press Ctrl-C again to stop at once.")
        for stage in sorted({process.stage for process in self.processes}, reverse=True):
            children = [child for child in self.children if child.process.stage == stage]
            while not self.forced and (running := [child for child in children if child.runs]):
                for child in running:
                    child.end()
                time.sleep(POLL_SECONDS)

    def kill(self) -> None:
        """Kill what is left: processes that were not waited for, and processes that they had started."""
        self.ended.set()
        if self.guard:
            os.killpg(self.guard.pid, signal.SIGKILL)
            self.guard.wait()
        for child in self.children:
            child.popen.kill()
            child.popen.wait()
        for thread in self.threads:
            thread.join(timeout=2)

    def notice_changes(self, child: Child, changes: Callable[[threading.Event], Iterable[object]]) -> None:
        """Mark a process to be started again at each change."""
        for _ in changes(self.ended):
            self.say(f"Code has changed: {child.process.name} starts again when what it runs is done.")
            child.changed.set()

    # Output -----------------------------------------------------------------

    def copy_output(self, name: str, popen: subprocess.Popen[bytes]) -> None:
        """Write each line of a process with its name in front."""
        assert popen.stdout is not None
        for line in popen.stdout:
            self.write(name, line)

    def say(self, sentence: str) -> None:
        """Write a line of our own."""
        self.write("dev", f"{sentence}\n".encode())

    def write(self, name: str, line: bytes) -> None:
        """Write a line as bytes, which no encoding of the terminal can refuse."""
        names = [process.name for process in self.processes]
        prefix = f"{name:{max(map(len, names))}} |"
        if self.colour and name in names:
            prefix = f"\033[{COLOURS[names.index(name) % len(COLOURS)]}m{prefix}\033[0m"
        with self.output:
            try:
                sys.stdout.flush()
                sys.stdout.buffer.write(f"{prefix} ".encode() + line.rstrip(b"\r\n") + b"\n")
                sys.stdout.buffer.flush()
            except OSError:
                # The terminal is gone. The children must go on writing, or they would block while they end.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

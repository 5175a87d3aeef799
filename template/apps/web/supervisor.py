"""Runs several processes as one: they start and stop together, and share one output."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from django.conf import settings

COLOURS = (36, 32, 35, 33, 34)
# Kills its process group, which contains all children, as soon as this process is gone for whatever reason.
GUARD = "import os, signal, sys; sys.stdin.read(); os.killpg(0, signal.SIGKILL)"
POLL_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class Process:
    """A process to run. With an empty command, it is something that already runs and is only announced.

    `note` appears in the first lines that the command prints. Lower stages start first and stop last, and the next
    stage waits until `ready` returns true. After SIGTERM, the process has `stop_seconds` to exit by itself. `changes`
    yields whenever the process must be restarted, until the event that it gets is set.
    """

    name: str
    command: Sequence[str] = ()
    note: str = ""
    stage: int = 1
    stop_seconds: float = 10
    ready: Callable[[], bool] = lambda: True
    changes: Callable[[threading.Event], Iterable[object]] | None = None


@dataclass(eq=False)
class Child:
    """A running process. `changed` is set when it must be restarted, and `kill_at` when it was asked to exit."""

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
        """Ask the process to exit. If called again after its time is up, kill it."""
        if self.kill_at is None:
            self.kill_at = time.monotonic() + self.process.stop_seconds
            self.popen.terminate()
        elif time.monotonic() > self.kill_at:
            self.popen.kill()


class Supervisor:
    """Runs processes until a signal arrives or one of them exits, then stops them all."""

    def __init__(self, processes: Sequence[Process], *, colour: bool) -> None:
        self.processes = sorted((process for process in processes if process.command), key=lambda each: each.stage)
        self.colour = colour
        self.children: list[Child] = []
        self.threads: list[threading.Thread] = []
        self.guard: subprocess.Popen[bytes] | None = None
        self.output = threading.Lock()
        self.ended = threading.Event()
        # Plain values, because a signal handler that sets an event can block forever.
        self.stopping = self.forced = False

    def run(self) -> int:
        """Run everything. Return 0 after a signal, 130 after a second Ctrl-C, else the code of what exited itself."""
        signal.signal(signal.SIGINT, self.receive)
        signal.signal(signal.SIGTERM, self.receive)
        # Windows has no SIGHUP, and under nohup it is ignored on purpose.
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self.receive)
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
        """Handle a signal: the first one stops everything, and a Ctrl-C after it forces the stop."""
        self.forced = self.forced or (self.stopping and number == signal.SIGINT)
        self.stopping = True

    def start(self) -> None:
        """Start the processes by stage. Return early if a signal arrives, or if a process exits before it is ready."""
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
        """Start a process in the group of the guard, where the terminal's Ctrl-C does not reach it directly."""
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

    def in_background(self, function: Callable[..., None], *arguments: object) -> threading.Thread:
        """Call the function in a thread."""
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        thread.start()
        self.threads.append(thread)
        return thread

    def watch(self) -> int:
        """Wait for a signal, or for a process that exits by itself. Return the exit code."""
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
        """Ask a process whose code has changed to exit, and start it again when it has exited."""
        if child.runs:
            child.end()
            return
        child.changed.clear()
        child.popen, child.kill_at = self.spawn(child.process), None
        child.restarted, child.reported = True, False

    def waits_for_change(self, child: Child) -> bool:
        """Return whether a process failed after a change of its code. Such a mistake must not stop the others."""
        waits = child.restarted and child.popen.returncode > 0
        if waits and not child.reported:
            child.reported = True
            self.say(f"{child.process.name} ended with an error, and starts again when its code changes.")
        return waits

    def stop(self) -> None:
        """Stop all processes, the highest stage first, and wait until they have exited or a second Ctrl-C arrives."""
        self.stopping = True
        self.say("Stopping. What has begun may finish; press Ctrl-C again to stop at once.")
        for stage in sorted({process.stage for process in self.processes}, reverse=True):
            children = [child for child in self.children if child.process.stage == stage]
            while not self.forced and (running := [child for child in children if child.runs]):
                for child in running:
                    child.end()
                time.sleep(POLL_SECONDS)

    def kill(self) -> None:
        """Kill what is left: processes that did not exit in time, and processes that they had started."""
        self.ended.set()
        if self.guard:
            os.killpg(self.guard.pid, signal.SIGKILL)
            self.guard.wait()
        for child in self.children:
            child.popen.kill()
            child.popen.wait()
        deadline = time.monotonic() + 2
        for thread in self.threads:
            thread.join(timeout=max(0, deadline - time.monotonic()))

    def notice_changes(self, child: Child, changes: Callable[[threading.Event], Iterable[object]]) -> None:
        """Mark a process for a restart at each change."""
        for _ in changes(self.ended):
            self.say(f"Code has changed: {child.process.name} starts again when what it runs is done.")
            child.changed.set()

    # Output -----------------------------------------------------------------

    def copy_output(self, name: str, popen: subprocess.Popen[bytes]) -> None:
        """Write each line of a process, with its name in front."""
        assert popen.stdout is not None
        for line in popen.stdout:
            self.write(name, line)

    def say(self, sentence: str) -> None:
        """Write a line of the supervisor itself, but do not wait long for a reader, as `less` may be: signals count."""
        self.in_background(self.write, "dev", f"{sentence}\n".encode()).join(timeout=1)

    def write(self, name: str, line: bytes) -> None:
        """Write a line as bytes, which no encoding of the terminal can refuse."""
        names = [process.name for process in self.processes]
        prefix = f"{name:{max(map(len, names))}} |"
        if self.colour and name in names:
            prefix = f"\033[{COLOURS[names.index(name) % len(COLOURS)]}m{prefix}\033[0m"
        line = f"{prefix} ".encode() + line.rstrip(b"\r\n") + b"\n"
        with self.output:
            try:
                sys.stdout.flush()
                # Python cannot exit while a thread waits for a reader in the buffer, which may not be there.
                unbuffered = getattr(sys.stdout.buffer, "raw", sys.stdout.buffer)
                while line:
                    line = line[unbuffered.write(line) :]
            except OSError:
                # The terminal is closed. The children must be able to write, or they would block while they exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

"""Runs a command on a terminal of its own, as a person does, and tells which processes it has left."""

import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import psutil

from tests.browser import PATIENCE_SECONDS

# Becomes the command, after it has made the terminal its own, so that Ctrl-C and the end of the window reach it. A
# process that ignores a signal passes this on to all that it starts, so tests under nohup, which ignores SIGHUP, or
# behind the `&` of a script, which ignores SIGINT, would start commands that go on without their window.
ON_TERMINAL = """
import fcntl, os, signal, sys, termios
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    signal.signal(number, signal.SIG_DFL)
fcntl.ioctl(0, termios.TIOCSCTTY)
os.execvp(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A command on a pseudo-terminal, working in a folder. What it prints is in `text`."""

    def __init__(self, folder: Path, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.output = b""
        self.closed = threading.Event()
        self.window, tty = os.openpty()
        self.process = subprocess.Popen(
            (sys.executable, "-c", ON_TERMINAL, *command),
            cwd=folder,
            env=environment,
            stdin=tty,
            stdout=tty,
            stderr=tty,
            start_new_session=True,
        )
        os.close(tty)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        readable = select.poll()
        readable.register(self.window, select.POLLIN)
        # An error, or nothing, means that the last process has closed its side.
        with suppress(OSError):
            while not self.closed.is_set():
                if readable.poll(100):
                    if not (chunk := os.read(self.window, 65536)):
                        return
                    self.output += chunk

    @property
    def text(self) -> str:
        # Decoded as a whole: what is read at once may end within a character, or between the two of a line's end.
        return self.output.decode(errors="replace").replace("\r\n", "\n")

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill what a failed test has left."""
        for pid in psutil.pids():
            with suppress(ProcessLookupError, PermissionError):
                if os.getsid(pid) == self.process.pid:
                    os.kill(pid, signal.SIGKILL)
        self.exit_code()
        self.close_window()

    def shows(self, pattern: str) -> re.Match[str]:
        """Wait until the output matches, and return the match; fail if it does not."""
        wait_until(lambda: re.search(pattern, self.text) or not self.reader.is_alive())
        match = re.search(pattern, self.text)
        assert match, f"{pattern!r} does not come:\n{self.text}"
        return match

    def press_ctrl_c(self) -> None:
        """Type Ctrl-C, which reaches every process in the terminal's foreground."""
        os.write(self.window, b"\x03")

    def close_window(self) -> None:
        """Hang up, as a terminal does when its window is closed."""
        if not self.closed.is_set():
            # A terminal that is being read stays open, and its number may soon be that of another file.
            self.closed.set()
            self.reader.join()
            os.close(self.window)

    def exit_code(self) -> int:
        """Wait for the command to end, and for all it has printed; return its exit code, negative for a signal."""
        ended = wait_until(lambda: self.process.poll() is not None)
        assert ended, f"The command does not end:\n{self.text}"
        self.reader.join(PATIENCE_SECONDS)
        return self.process.returncode


def wait_until(is_true: Callable[[], object]) -> bool:
    """Wait until something is true; return whether it became so."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_true():
        # Looked at once more when the time is over: the look before may have been long ago.
        if time.monotonic() > deadline:
            return bool(is_true())
        time.sleep(0.05)
    return True


def running(folder: Path) -> dict[int, str]:
    """Return the command lines, by process id, of the processes that work in the folder or below."""
    found = {}
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        cwd, words = process.info["cwd"], process.info["cmdline"]
        if cwd and Path(cwd).is_relative_to(folder) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found[process.pid] = " ".join(words or [])
    return found


def first_of(folder: Path, words: str) -> int:
    """Return the id of the process in the folder whose command line has these words, and not of its children."""
    found = {pid for pid, command in running(folder).items() if words in command}
    [first] = [pid for pid in found if psutil.Process(pid).ppid() not in found]
    return first


def left_in(folder: Path) -> dict[int, str]:
    """Give the processes in the folder time to end; return those that do not."""
    wait_until(lambda: not running(folder))
    return running(folder)

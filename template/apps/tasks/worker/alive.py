"""Signs of life: beat and a worker touch a file every few seconds, and a probe looks how old it is.

`python -m apps.tasks.worker.alive beat` ends with 0 if beat was alive in the last 30 seconds, else with 1 and a
sentence. It loads neither Django nor Celery and asks nobody, so it may run every few seconds.
"""

import os
import sys
import time
import zlib

STALE_SECONDS = 30.0
# A folder of its own for each of several workers on one machine, where one must not hide the end of another. What
# `manage.py dev` starts has that of the checkout.
DIRECTORY_VARIABLE = "ALIVE_DIRECTORY"


def path(name: str) -> str:
    """Return the file that the process of this name touches; other checkouts on this machine have others."""
    # What `tempfile` finds, whose import alone would double the cost of a probe.
    temporary = os.environ.get("TMPDIR") or os.environ.get("TEMP") or "/tmp"
    checkout = zlib.crc32(os.fsencode(os.path.realpath(__file__)))
    return os.path.join(os.environ.get(DIRECTORY_VARIABLE) or temporary, f"alive-{checkout:08x}-{name}")


def touch(name: str) -> None:
    """Say that the process of this name is alive; where that cannot be written, the probe says so."""
    try:
        with open(path(name), "ab"):
            os.utime(path(name))
    except OSError:
        pass


def forget(name: str) -> None:
    """Remove the sign of life of a process that has ended."""
    if os.path.exists(path(name)):
        os.remove(path(name))


def problem(name: str) -> str | None:
    """Return a sentence if the process of this name has not been alive of late, else None."""
    try:
        age_seconds = time.time() - os.stat(path(name)).st_mtime
    except OSError as error:
        return f"{name}: there is no sign of life at {path(name)} ({error.strerror}); it must run, and may write there."
    # A time to come was written before the clock was set back.
    if abs(age_seconds) > STALE_SECONDS:
        return f"{name}: the last sign of life, {path(name)}, is {age_seconds:.0f} seconds old; start it again."
    return None


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Give one name: python -m apps.tasks.worker.alive beat")
    sys.exit(problem(sys.argv[1]))

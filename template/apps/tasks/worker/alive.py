"""Signs of life: beat and each worker touch a file every few seconds, and a probe checks the age of that file.

`python -m apps.tasks.worker.alive beat` exits with 0 if beat has shown a sign of life in the last 30 seconds. Otherwise
it prints a sentence and exits with 1. It loads neither Django nor Celery and contacts no server, so it can run every
few seconds.
"""

import os
import sys
import time
import zlib

STALE_SECONDS = 30.0
# If several workers run on one machine, each needs its own folder, so that one does not hide the death of another. The
# processes of `manage.py dev` use a folder of the checkout.
DIRECTORY_VARIABLE = "ALIVE_DIRECTORY"


def path(name: str) -> str:
    """Return the file that the process of this name touches. Each checkout on this machine has its own."""
    # This is the folder that `tempfile` would find. Importing `tempfile` alone would double the cost of a probe.
    temporary = os.environ.get("TMPDIR") or os.environ.get("TEMP") or "/tmp"
    checkout = zlib.crc32(os.fsencode(os.path.realpath(__file__)))
    return os.path.join(os.environ.get(DIRECTORY_VARIABLE) or temporary, f"alive-{checkout:08x}-{name}")


def touch(name: str) -> None:
    """Record that the process of this name is alive. If the file cannot be written, the probe reports it."""
    try:
        with open(path(name), "ab"):
            os.utime(path(name))
    except OSError:
        pass


def forget(name: str) -> None:
    """Remove the sign of life of a process that has exited."""
    if os.path.exists(path(name)):
        os.remove(path(name))


def problem(name: str) -> str | None:
    """Return a sentence if the process of this name has shown no recent sign of life, else None."""
    try:
        age_seconds = time.time() - os.stat(path(name)).st_mtime
    except OSError as error:
        return f"{name}: there is no sign of life at {path(name)} ({error.strerror}); it must run, and may write there."
    # A time in the future was written before the clock was set back.
    if abs(age_seconds) > STALE_SECONDS:
        return f"{name}: the last sign of life, {path(name)}, is {age_seconds:.0f} seconds old; start it again."
    return None


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Give one name: python -m apps.tasks.worker.alive beat")
    sys.exit(problem(sys.argv[1]))

"""The folder in which the processes of a worker count, and those that killed workers have left.

A worker locks its folder, and its processes inherit the lock. The kernel releases it when the last of them has ended,
whatever ended them. A number of a process would say less: containers that share a folder, or that start again, give the
same numbers to other processes.
"""

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:
    # Windows
    fcntl = None

PREFIX = "worker-metrics-"


def make() -> tempfile.TemporaryDirectory[str]:
    """Make a folder that stays locked as long as a process of this worker runs.

    Where nothing can be locked, the folder has a name that `remove_abandoned` overlooks.
    """
    while True:
        folder = tempfile.TemporaryDirectory(prefix=PREFIX)
        try:
            _lock(folder.name, wait=True)
        except FileNotFoundError:
            # Another worker has just removed it.
            folder.cleanup()
            continue
        except OSError:
            folder.cleanup()
            return tempfile.TemporaryDirectory(prefix=f"unlocked-{PREFIX}")
        # Another worker may have removed it between opening and locking.
        if os.path.exists(folder.name):
            return folder
        folder.cleanup()


def remove_abandoned() -> None:
    """Remove the folders of this user that no running process has locked."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        # It is locked, belongs to somebody else, or has just been removed.
        with suppress(OSError):
            lock = _lock(path, wait=False)
            try:
                shutil.rmtree(path)
            finally:
                os.close(lock)


def _lock(path: str | Path, wait: bool) -> int:
    """Lock a folder of this user until the number that this returns is closed. Raises OSError if that is impossible."""
    if fcntl:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            if os.fstat(descriptor).st_uid != os.getuid():
                raise PermissionError(f"{path} belongs to another user.")
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            os.close(descriptor)
            raise
        return descriptor
    raise OSError("This system has no locks for folders.")

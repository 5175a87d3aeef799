"""What a killed worker leaves behind is removed, and nothing else."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

pytest.importorskip("celery")

from apps.metrics import counting, folders

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no locks for folders.")

# A worker that is killed, with a process of its pool that lives on until its input ends.
KILLED = """
import os, signal, sys
from apps.metrics import folders
folder = folders.make()
print(folder.name, flush=True)
if os.fork():
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.read()
os._exit(0)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path, monkeypatch) -> Path:
    """Return the temporary folder, which here is one of its own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_without_a_lock_is_removed_with_its_files(temporary):
    abandoned = temporary / "worker-metrics-abc"
    abandoned.mkdir()
    (abandoned / "counter_1.db").touch()
    folders.remove_abandoned()
    assert not abandoned.exists()


def test_the_folder_of_a_running_worker_stays(temporary):
    with folders.make() as name:
        folders.remove_abandoned()
        assert Path(name).parent == temporary and Path(name).exists()


def test_a_folder_goes_when_the_last_process_of_its_worker_has_ended(temporary):
    command = [sys.executable, "-c", KILLED]
    environment = os.environ | {"TMPDIR": str(temporary)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as worker:
        name = Path(worker.stdout.readline().decode().strip())
        assert worker.wait() < 0
        folders.remove_abandoned()
        assert name.exists()
        worker.stdin.close()
        deadline = time.monotonic() + 60
        while name.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
            folders.remove_abandoned()
    assert not name.exists()


def test_other_folders_and_what_links_lead_to_stay(temporary):
    others = [temporary / "worker", temporary / "unlocked-worker-metrics-abc"]
    for each in others:
        each.mkdir()
    (temporary / "worker-metrics-link").symlink_to(others[0])
    (temporary / "worker-metrics-file").touch()
    folders.remove_abandoned()
    assert sorted(each.name for each in temporary.iterdir()) == [
        "unlocked-worker-metrics-abc",
        "worker",
        "worker-metrics-file",
        "worker-metrics-link",
    ]


def test_the_folder_of_another_user_stays(temporary, monkeypatch):
    (temporary / "worker-metrics-abc").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: os.stat(temporary).st_uid + 1)
    folders.remove_abandoned()
    assert (temporary / "worker-metrics-abc").exists()


@pytest.mark.parametrize("is_open", [False, True])
def test_a_folder_that_was_removed_before_it_was_locked_is_made_again(temporary, monkeypatch, is_open):
    lock, made = folders._lock, []

    def too_late(path, wait):
        made.append(path)
        if made == [path] and not is_open:
            shutil.rmtree(path)
        descriptor = lock(path, wait)
        if made == [path] and is_open:
            shutil.rmtree(path)
        return descriptor

    monkeypatch.setattr(folders, "_lock", too_late)
    with folders.make() as name:
        assert made[1:] == [name] and Path(name).exists()


def test_where_nothing_can_be_locked_nothing_is_removed(temporary, monkeypatch):
    monkeypatch.setattr(folders, "fcntl", None)
    (temporary / "worker-metrics-abc").mkdir()
    with folders.make() as name:
        assert Path(name).name.startswith("unlocked-")
        folders.remove_abandoned()
        assert Path(name).exists() and (temporary / "worker-metrics-abc").exists()


def test_a_worker_removes_them_when_it_starts(temporary, settings, monkeypatch):
    (temporary / "worker-metrics-abc").mkdir()
    settings.WORKER_METRICS_PORT = "9808"
    monkeypatch.setattr(counting, "Counting", str)
    monkeypatch.setattr(counting.Worker, "counting", None)
    counting.begin()
    assert not list(temporary.iterdir())

"""`manage.py dev`: processes start in order and stop together, and what cannot start is told in a sentence."""

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from textwrap import dedent

import pytest
from django.core.management import CommandError, call_command

from apps.web import dev
from apps.web.management.commands.dev import only_one_here
from apps.web.supervisor import Process, Supervisor

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no such signals.")

# What the processes of these tests can do.
ABILITIES = """
    import os, signal, sys, time

    def forever():
        time.sleep(60)

    def press_ctrl_c():
        os.kill(os.getppid(), signal.SIGINT)

    def close_window():
        os.kill(os.getppid(), signal.SIGHUP)

    def when_asked_to_end(*actions):
        signal.signal(signal.SIGTERM, lambda *_: [action() for action in actions])
"""


@pytest.fixture
def signals():
    """The signals are those of the process that runs the tests: put back what happens to them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def supervise(capfd, signals):
    """`supervise(*processes)` runs them; returns the exit code and the lines that were printed, all of them."""

    def supervise(*processes, colour=False):
        supervisor = Supervisor(processes, colour=colour)
        code = supervisor.run()
        # It waits for what copies the lines, but not for long.
        for thread in supervisor.threads:
            thread.join(timeout=60)
        return code, capfd.readouterr().out.splitlines()

    return supervise


@pytest.fixture
def unread():
    """A pipe without room for another byte, whose reader does not read: both of its ends."""
    reading, writing = os.pipe()
    with open(reading, "rb") as reader, open(writing, "w") as writer:
        os.set_blocking(writing, False)
        with suppress(BlockingIOError):
            while True:
                os.write(writing, b"x")
        os.set_blocking(writing, True)
        yield reader, writer


@pytest.fixture
def taken_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def python(name, code, stop_seconds=60, **options):
    command = (sys.executable, "-uIS", "-c", dedent(ABILITIES) + code)
    return Process(name=name, command=command, stop_seconds=stop_seconds, **options)


def change_after(path):
    """Tell one change of code, as soon as a process has made the file."""

    def changes(ended):
        while not path.exists():
            ended.wait(0.05)
        yield path
        ended.wait()

    return changes


# Processes ------------------------------------------------------------------


def test_each_line_tells_which_process_wrote_it(supervise):
    _, lines = supervise(python("a", "print('one'); print('two', end='')"), python("long", "forever()"))
    assert {"a    | one", "a    | two"} <= set(lines)


def test_names_have_colours_where_there_is_a_terminal(supervise):
    _, lines = supervise(python("a", "print('one')"), colour=True)
    assert "\033[36ma |\033[0m one" in lines


@pytest.mark.parametrize(("ending", "code"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), signal.SIGKILL)", 137)])
def test_when_one_ends_all_stop_with_its_exit_code(supervise, ending, code):
    returned, lines = supervise(python("long", "forever()"), python("short", ending))
    assert returned == code
    assert f"dev   | short ended with exit code {code}, so everything stops." in lines


def test_ctrl_c_lets_what_has_begun_finish_and_is_no_failure(supervise):
    finish = "when_asked_to_end(lambda: time.sleep(0.5), lambda: print('done'), sys.exit)"
    code, lines = supervise(python("task", f"{finish}; press_ctrl_c(); forever()"))
    assert code == 0
    assert "task | done" in lines


def test_a_second_ctrl_c_waits_for_nothing(supervise):
    code, _ = supervise(python("deaf", "when_asked_to_end(press_ctrl_c); press_ctrl_c(); forever(); forever()"))
    assert code == 130


@pytest.mark.parametrize(("handler", "then", "code"), [("SIG_DFL", "forever()", 0), ("SIG_IGN", "sys.exit(3)", 3)])
def test_all_end_with_their_window_except_under_nohup(supervise, handler, then, code):
    signal.signal(signal.SIGHUP, getattr(signal, handler))
    returned, _ = supervise(python("task", f"close_window(); {then}"))
    assert returned == code


def test_all_end_even_if_nobody_reads_what_they_print(signals, unread, monkeypatch):
    reader, writer = unread
    monkeypatch.setattr(sys, "stdout", writer)
    supervisor = Supervisor([python("task", "press_ctrl_c(); forever()")], colour=False)
    # A test that fails must end, too.
    patience = threading.Timer(60, reader.close)
    patience.start()
    code = supervisor.run()
    patience.cancel()
    assert code == 0
    assert not reader.closed
    reader.close()
    for thread in supervisor.threads:
        thread.join()


def test_what_does_not_end_in_its_time_is_killed(supervise):
    deaf = "when_asked_to_end(); press_ctrl_c(); forever(); print('ends')"
    code, lines = supervise(python("deaf", deaf, stop_seconds=0.2))
    assert code == 0
    assert "deaf | ends" not in lines


def test_a_stage_starts_when_the_one_before_is_ready_and_stops_before_it(supervise, tmp_path):
    ready, diary = tmp_path / "ready", tmp_path / "diary"

    def life(name):
        # Not printed: lines of two processes may pass each other on their way.
        write = f"write = lambda what: open({str(diary)!r}, 'a').write(f'{name} {{what}}\\n')"
        return f"{write}; when_asked_to_end(lambda: write('ends'), sys.exit); write('starts')"

    base = python("base", f"{life('base')}; open({str(ready)!r}, 'w'); forever()", stage=0, ready=ready.exists)
    supervise(python("user", f"{life('user')}; press_ctrl_c(); forever()"), base)
    assert diary.read_text().splitlines() == ["base starts", "user starts", "user ends", "base ends"]


def test_ctrl_c_ends_the_wait_for_a_stage_that_is_not_ready(supervise):
    base = python("base", "press_ctrl_c(); forever()", stage=0, ready=lambda: False)
    code, lines = supervise(base, python("user", "print('starts'); sys.exit(3)"))
    assert code == 0 and "user | starts" not in lines


def test_a_process_starts_again_when_its_code_changes(supervise, tmp_path):
    ran = tmp_path / "ran"
    code = f"print('run'); os.path.exists({str(ran)!r}) and press_ctrl_c(); open({str(ran)!r}, 'w'); forever()"
    _, lines = supervise(python("task", code, changes=change_after(ran)))
    assert lines.count("task | run") == 2


def test_a_mistake_in_changed_code_stops_nothing(supervise, tmp_path, monkeypatch):
    ran, told, said = tmp_path / "ran", tmp_path / "told", []

    def say(supervisor, sentence):
        said.append(sentence)
        if "ended with an error" in sentence:
            told.touch()

    monkeypatch.setattr(Supervisor, "say", say)
    task = f"os.path.exists({str(ran)!r}) and sys.exit(1); open({str(ran)!r}, 'w'); forever()"
    other = f"while not os.path.exists({str(told)!r}): time.sleep(0.05)\npress_ctrl_c(); forever()"
    code, _ = supervise(python("task", task, changes=change_after(ran)), python("other", other))
    assert code == 0
    assert "task ended with an error, and starts again when its code changes." in said


# Ports ----------------------------------------------------------------------


def test_the_port_asked_for_must_be_free(taken_port):
    with pytest.raises(CommandError, match=f"Port {taken_port} is taken"):
        dev.processes({"port": str(taken_port)})


@pytest.mark.parametrize("port", ["", "0", "65536", "http", "-1"])
def test_what_is_no_port_is_refused(port):
    with pytest.raises(CommandError, match="is no port"):
        dev.processes({"port": port})


def test_without_a_wish_the_next_free_port_is_used(taken_port):
    assert dev.first_free_port(taken_port) > taken_port


def test_a_port_is_given_only_once_even_before_anybody_listens(taken_port):
    assert dev.first_free_port(taken_port) != dev.first_free_port(taken_port)


# The web server -------------------------------------------------------------


@pytest.mark.parametrize(("installed", "server"), [(None, "runserver"), (object(), "uvicorn")])
def test_the_server_is_uvicorn_where_it_is_installed(monkeypatch, installed, server):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: installed)
    command = dev.server_command(8000)
    assert server in command and any("8000" in word for word in command)


def test_only_folders_with_code_are_those_of_the_project(tmp_path):
    for file in ("shop/models.py", "environment/lib/module.py", "manage.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert [*filter(dev.holds_code, tmp_path.iterdir())] == [tmp_path / "shop"]


# The command ----------------------------------------------------------------


def test_in_production_the_command_refuses(settings):
    settings.DEBUG = False
    with pytest.raises(CommandError, match="set DEBUG=1"):
        call_command("dev")


def test_the_command_runs_once_in_a_folder(settings):
    settings.DEBUG = True
    with only_one_here(), pytest.raises(CommandError, match="runs in this folder already"):
        call_command("dev")


@pytest.mark.parametrize("first", ["allauth.account.stages", "allauth.account.utils"])
def test_under_the_reloader_the_pages_of_accounts_can_be_imported_from_either_end(first):
    """One thread of it imports the URLs while another one imports the template tags."""
    command = [sys.executable, "-c", f"import django; django.setup(); import {first}"]
    done = subprocess.run(command, env=os.environ | {"RUN_MAIN": "true"}, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr

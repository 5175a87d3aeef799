"""A broker with TLS has to prove who it is, unless somebody says in so many words that it need not."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.browser import free_port
from tests.dev_support import wait_until
from tests.processes import installed, needed, run, started

pytestmark = pytest.mark.run

# Both ways to the broker: that of a page that sends a task, and that of the health check and `manage.py dev`.
SEND = """
import django; django.setup()
from acme.tasks import say_good_morning
from apps.tasks.broker.options import broker_failure
from kombu.exceptions import OperationalError

try:
    say_good_morning.delay()
    print("delay: sent")
except OperationalError as error:
    print("delay:", error)
print("health:", broker_failure() or "sent")
"""


class Authority(NamedTuple):
    """A certificate authority in a folder."""

    folder: Path

    @property
    def file(self) -> str:
        return str(self.folder / "ca.pem")

    def certify(self, name: str) -> tuple[str, str]:
        """Return the files of a certificate for a host, and of its key."""
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        kind = "IP" if name[0].isdigit() else "DNS"
        extensions.write_text(f"subjectAltName={kind}:{name}\nauthorityKeyIdentifier=keyid\n")
        key, certificate = str(self.folder / f"{name}.key"), str(self.folder / f"{name}.pem")
        new = ("-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        run(self.folder, needed("openssl"), "req", *new)
        signer = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1", "-extfile", extensions)
        run(self.folder, needed("openssl"), "x509", "-req", "-in", request, "-out", certificate, *signer)
        return certificate, key


def authority(folder: Path) -> Authority:
    """Make a certificate authority."""
    folder.mkdir()
    key = ("-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem")
    # Python 3.13 asks an authority to say what its key is for.
    use = ("-addext", "keyUsage=critical,keyCertSign")
    run(folder, needed("openssl"), "req", "-x509", *key, "-days", "1", "-subj", f"/CN={folder.name}", *use)
    return Authority(folder)


@pytest.fixture(scope="module")
def ours(tmp_path_factory) -> Authority:
    return authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def another(tmp_path_factory) -> Authority:
    return authority(tmp_path_factory.mktemp("tls") / "another")


@pytest.fixture(scope="module")
def send(template_repo, tmp_path_factory):
    """`send(url, **variables)` sends a task in a project, and returns what comes of it by both ways."""
    project, programs = installed(template_repo, tmp_path_factory.mktemp("project"), "3.13")

    def send(url: str, **variables: str) -> str:
        given = variables | {"CELERY_BROKER_URL": url, "DEBUG": "1", "DJANGO_SETTINGS_MODULE": "acme.settings"}
        return run(project, programs / "python", "-c", SEND, **given)

    return send


def refused(printed: str) -> bool:
    return printed.count("certificate verify failed") == 2 and "sent" not in printed


def sent(printed: str) -> bool:
    return "delay: sent" in printed and "health: sent" in printed


# Redis ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def redis_url(ours, tmp_path_factory) -> Iterator[str]:
    """A Redis that speaks TLS only, with a certificate for 127.0.0.1."""
    folder, port = tmp_path_factory.mktemp("redis"), free_port()
    certificate, key = ours.certify("127.0.0.1")
    tls = ("--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", ours.file)
    command = (needed("redis-server"), "--port", "0", "--tls-port", str(port), "--tls-auth-clients", "no", *tls)
    with started(folder, folder / "redis.log", *command, "--bind", "127.0.0.1", "--save", "") as server:
        server.says("Ready to accept connections")
        yield f"rediss://127.0.0.1:{port}/0"


def test_redis_is_used_if_its_authority_is_known(send, redis_url, ours):
    printed = send(redis_url, CELERY_BROKER_CA_FILE=ours.file)
    assert sent(printed), printed


def test_redis_is_refused_if_its_authority_is_not_known(send, redis_url, another):
    for variables in ({}, {"CELERY_BROKER_CA_FILE": another.file}):
        printed = send(redis_url, **variables)
        assert refused(printed), printed


def test_redis_is_refused_if_it_goes_by_another_name(send, redis_url, ours):
    printed = send(redis_url.replace("127.0.0.1", "localhost"), CELERY_BROKER_CA_FILE=ours.file)
    assert refused(printed), printed


@pytest.mark.parametrize(
    ("query", "variables"),
    [("", {"CELERY_BROKER_INSECURE_SKIP_TLS_VERIFICATION": "1"}), ("?ssl_cert_reqs=none", {})],
    ids=["variable", "url"],
)
def test_verification_is_skipped_only_on_request(send, redis_url, query, variables):
    printed = send(redis_url + query, **variables)
    assert sent(printed), printed


def test_the_authority_may_stand_in_the_url(send, redis_url, ours):
    printed = send(f"{redis_url}?ssl_ca_certs={ours.file}")
    assert sent(printed), printed


def test_redis_may_be_reached_by_a_socket(send, tmp_path):
    path = tmp_path / "redis.sock"
    command = (needed("redis-server"), "--port", "0", "--unixsocket", path, "--save", "")
    with started(tmp_path, tmp_path / "redis.log", *command) as server:
        server.says("ready to accept connections")
        printed = send(f"redis+socket://{path}")
    assert sent(printed), printed


# RabbitMQ -------------------------------------------------------------------


@contextmanager
def handshakes(certificate: str, key: str) -> Iterator[tuple[str, list[str]]]:
    """A server that ends each connection after its handshake; yields its address, and the names of what happened."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    happened: list[str] = []

    def serve(server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                try:
                    with context.wrap_socket(connection, server_side=True) as secured:
                        # With TLS 1.3 a client that refuses says so only after the handshake.
                        secured.recv(8)
                    happened.append("accepted")
                except OSError as error:
                    happened.append(type(error).__name__)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}", happened


def test_rabbitmq_has_to_prove_who_it_is(send, ours, another):
    with handshakes(*ours.certify("127.0.0.1")) as (address, happened):
        for variables in ({}, {"CELERY_BROKER_CA_FILE": another.file}):
            printed = send(f"amqps://guest:guest@{address}//", **variables)
            assert refused(printed), printed
        assert "accepted" not in happened
        for variables in (
            {"CELERY_BROKER_CA_FILE": ours.file},
            {"CELERY_BROKER_INSECURE_SKIP_TLS_VERIFICATION": "1"},
        ):
            happened.clear()
            send(f"amqps://guest:guest@{address}//", **variables)
            # The server may be behind.
            assert wait_until(lambda: happened[-2:] == ["accepted", "accepted"]), happened


def test_rabbitmq_is_refused_if_it_goes_by_another_name(send, ours):
    with handshakes(*ours.certify("queue.example")) as (address, happened):
        printed = send(f"amqps://guest:guest@{address}//", CELERY_BROKER_CA_FILE=ours.file)
        assert refused(printed) and "accepted" not in happened, printed

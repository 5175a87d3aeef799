"""Variables of tasks: a broker that cannot be reached by its URL is told in a sentence, before anything starts."""

import pytest

pytest.importorskip("celery")

import os
import ssl
from unittest import mock

import kombu
from celery import current_app
from celery.app.backends import BACKEND_ALIASES

from apps.tasks.broker.connection import Connection, broker_url
from apps.tasks.worker import alive
from apps.web.environment import Env
from tests.environment import SECRET, Table, assert_told, load_settings, refusal, rows
from tests.web.test_environment import WHOLE_NUMBER, YES_OR_NO

BROKER_URL = [
    ("127.0.0.1:6379", "but must be a URL"),
    (f"app:{SECRET}@127.0.0.1", "but must be a URL"),
    (f"redis://app:p@ss:/{SECRET}@127.0.0.1/0", "whose user and password cannot be told from the host. Percent-encode"),
    (f"redis://app:p@ss:w/{SECRET}@127.0.0.1/0", "Percent-encode"),
    (f"redis://app:1/{SECRET}@127.0.0.1/0", "Percent-encode"),
    (f"amqp://app:{SECRET}#1@127.0.0.1//", "Percent-encode"),
    (f"amqp://app:{SECRET}[@127.0.0.1//", "Percent-encode"),
    (f"redis://app:{SECRET} @127.0.0.1", "which contains a space"),
    (f"redis://app:{SECRET};@127.0.0.1", "whose port is not a number"),
    ("redis://127.0.0.1:port/0", "whose port is not a number from 1 to 65535"),
    ("amqp://127.0.0.1:65536//", "whose port is not a number from 1 to 65535"),
    ("redis://127.0.0.1:0/0", "whose port is not a number from 1 to 65535"),
    ("redis://127.0.0.1/first", "whose database is not a number"),
    ("redis://127.0.0.1/0/1", "whose database is not a number"),
    ("valkeys://127.0.0.1/first", "whose database is not a number"),
    ("unix:///run/redis.sock", "redis+socket:///path/to/redis.sock"),
    ("redis+socket://", "which names no socket"),
    ("http://127.0.0.1", "whose scheme names no broker"),
    ("REDIS://127.0.0.1", "whose scheme names no broker"),
    ("pyamqps://127.0.0.1", "whose scheme names no broker"),
    ("redis+tls://127.0.0.1", "whose scheme names no broker"),
    (f"redis://app:p@ss?{SECRET}@127.0.0.1/0", "which has an option, but can have only"),
    (f"redis://app:p@ss#{SECRET}@127.0.0.1/0", "Percent-encode"),
    ("memory://?fast=1", "by which no broker can be reached"),
    ("sentinel://127.0.0.1:1/0;sentinel://127.0.0.1:x/0", "whose port is not a number"),
    ("redis://127.0.0.1?healthcheck=10", "which has the option healthcheck, but can have only client_name, "),
    ("redis://127.0.0.1?socket_timeout=soon", "whose option socket_timeout is 'soon', but must be a number"),
    ("redis://127.0.0.1?socket_keepalive=maybe", "but must be yes or no"),
    ("redis://127.0.0.1?db=first", "but must be a whole number"),
    ("redis://127.0.0.1?ssl_cert_reqs=none", "which has the option ssl_cert_reqs, but can have only"),
    ("rediss://127.0.0.1?ssl_cert_reqs=maybe", "but must be one of required, "),
    ("rediss://127.0.0.1?ssl_ca_certs=/not/there.pem", "where no certificate can be read"),
    ("redis+socket:///run/redis.sock?virtual_host=first", "but must be a whole number"),
    ("amqp://127.0.0.1?connection_attempts=3", "which has the option connection_attempts, but can have only"),
    ("amqps://127.0.0.1?ssl_cert_reqs=none", "which has the option ssl_cert_reqs, but can have only"),
    ("amqp://127.0.0.1?heartbeat=often", "but must be a number"),
    ('"redis://127.0.0.1/0"', "Write it without the quotes."),
    ("redis://127.0.0.1/0 # ours", "A comment needs a line of its own."),
]
NONSENSE: Table = {
    # Told by the probe, below.
    "ALIVE_DIRECTORY": [],
    "CELERY_BROKER_CA_FILE": [
        ("/not/there.pem", "where no certificate can be read (No such file or directory)"),
        ("/", "where no certificate can be read (Is a directory)"),
        (os.devnull, "where no certificate can be read (it holds none)"),
        (__file__, "where no certificate can be read (it holds none)"),
    ],
    "CELERY_BROKER_INSECURE_SKIP_TLS_VERIFICATION": YES_OR_NO,
    "CELERY_BROKER_URL": BROKER_URL,
    "CELERY_RESULT_BACKEND": [
        ("nowhere", "where no result can be written. Write django-db, "),
        ("http://127.0.0.1", "where no result can be written"),
        ("apps.tasks.nothing:Backend", "where no result can be written"),
        ("nothing.results.Backend", "where no result can be written"),
        (f"redis://app:{SECRET}/1@127.0.0.1/0", "Percent-encode"),
        ("redis://127.0.0.1:port/0", "whose port is not a number"),
        ("redis://127.0.0.1/first", "whose database is not a number"),
        ("redis://127.0.0.1?healthcheck=10", "which has the option healthcheck, but can have only"),
        ("rediss://127.0.0.1?ssl_cert_reqs=maybe", "but must be one of required, "),
        ('"django-db"', "Write it without the quotes."),
    ],
    "CELERY_TASK_ALWAYS_EAGER": YES_OR_NO,
    "REDIS_URL": BROKER_URL,
    "WORKER_STOP_SECONDS": [("soon", "but must be a whole number, 0 or more"), *WHOLE_NUMBER],
}
# A cache in Redis; the others are in the table of the web.
CACHE_URL: Table = {
    "CACHE_URL": [
        ("redis://", "which names no place"),
        ("redis://127.0.0.1/first", "whose database is not a number"),
        ("rediss://127.0.0.1?healthcheck=10", "which has the option healthcheck, but can have only"),
        ("valkey://127.0.0.1:port", "whose port is not a number"),
        (f"valkey://app:{SECRET}/1@127.0.0.1", "Percent-encode"),
    ]
}


@pytest.mark.parametrize(("name", "value", "words"), rows(NONSENSE) + rows(CACHE_URL))
def test_a_value_that_cannot_be_used_is_told_in_a_sentence(tmp_path, name, value, words):
    assert_told(tmp_path, name, value, words)


def test_a_driver_that_is_not_installed_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(BACKEND_ALIASES, "nowhere", "no_such_package:Backend")
    assert "(No module named 'no_such_package')" in refusal(tmp_path, CELERY_RESULT_BACKEND="nowhere://")
    monkeypatch.setattr("apps.tasks.broker.connection.find_spec", lambda name: None)
    monkeypatch.setattr("apps.web.environment.find_spec", lambda name: None)
    for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "CACHE_URL"):
        assert "which needs the package redis. Install" in refusal(tmp_path, **{name: "redis://127.0.0.1/0"})


def test_a_folder_for_signs_of_life_that_is_not_there_is_told_by_the_probe(monkeypatch):
    monkeypatch.setenv("ALIVE_DIRECTORY", "/not/there")
    alive.touch("worker")
    assert "/not/there/alive-" in alive.problem("worker") and "may write there" in alive.problem("worker")


# What works -----------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "redis://",
        "redis://:p%40ss%2Fw$rd%3A@127.0.0.1:6380/3?health_check_interval=7",
        "redis://app:p@ss@127.0.0.1//1",
        "redis+socket:///run/redis.sock?virtual_host=1",
        "rediss://user:%24ecret@redis.example.com:6379/0?ssl_cert_reqs=required&ssl_check_hostname=false",
        "sentinel://127.0.0.1:26379/0;sentinel://127.0.0.1:26380/0",
        "amqps://user:p%25ss@rabbit.example.com:5671/%2Fa%20host?heartbeat=30",
        "amqp://guest:guest@one.example.com//;two.example.com",
        "memory://",
    ],
)
def test_the_url_of_a_broker_is_used_as_it_is(tmp_path, url):
    assert load_settings(tmp_path, CELERY_BROKER_URL=url)["CELERY_BROKER_URL"] == url


@pytest.mark.parametrize("backend", ["django-db", "disabled", "rpc://", "rediss://:p@ss@127.0.0.1/2?socket_timeout=5"])
def test_results_may_be_in_any_place_that_celery_knows(tmp_path, backend):
    assert load_settings(tmp_path, CELERY_RESULT_BACKEND=backend)["CELERY_RESULT_BACKEND"] == backend


def test_valkey_is_redis_wherever_it_is_named(tmp_path):
    names = ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "CACHE_URL")
    with mock.patch.dict(os.environ):
        loaded = load_settings(tmp_path, **dict.fromkeys(names, "valkeys://app:x@127.0.0.1:6390/1"))
    assert loaded["CELERY_BROKER_URL"] == loaded["CELERY_RESULT_BACKEND"] == "rediss://app:x@127.0.0.1:6390/1"
    assert loaded["CACHES"]["default"]["LOCATION"] == "rediss://app:x@127.0.0.1:6390/1"
    for name in ("CELERY_BROKER_USE_SSL", "CELERY_REDIS_BACKEND_USE_SSL"):
        assert loaded[name]["ssl_cert_reqs"] == ssl.CERT_REQUIRED
    assert loaded["CELERY_BROKER_TRANSPORT_OPTIONS"]["visibility_timeout"] == 600


def test_celery_sees_the_variables_that_it_reads_by_itself_as_the_settings_do(tmp_path):
    url = "valkey://127.0.0.1:1/0;valkey://127.0.0.1:2/0"
    with mock.patch.dict(os.environ, {"CELERY_BROKER_URL": f" {url}\n"}):
        read = Env(tmp_path / ".env").text("CELERY_BROKER_URL", "", broker_url)
        assert read == current_app.conf.broker_url == url.replace("valkey", "redis")


# Options in the URL ---------------------------------------------------------


def connection(url):
    """The connection that Celery would make by the URL; nothing connects."""
    with mock.patch.dict(os.environ, {"CELERY_BROKER_URL": url}):
        return current_app.connection_for_write()


def test_options_of_redis_in_the_url_reach_its_client_as_what_they_are():
    made = connection(
        "redis://127.0.0.1:1?health_check_interval=7&socket_timeout=3&retry_on_timeout=true&client_name=me"
    )
    wanted = {"health_check_interval": 7, "socket_timeout": 3.0, "retry_on_timeout": True, "client_name": "me"}
    assert made.transport_options.items() >= wanted.items()


@pytest.mark.parametrize("url", ["redis://app:x@127.0.0.1:1?db=4", "sentinel://app:x@127.0.0.1:1/0?db=4"])
def test_the_database_of_redis_may_stand_among_the_options(url):
    made = connection(url)
    assert (made.hostname, made.port, made.virtual_host, made.password) == ("127.0.0.1", 1, "4", "x")


def test_options_of_rabbitmq_in_the_url_reach_its_client_as_what_they_are():
    made = connection("amqp://127.0.0.1:1//?connect_timeout=3&read_timeout=4&heartbeat=30&login_method=PLAIN")
    assert made.transport_options.items() >= {"connect_timeout": 3.0, "read_timeout": 4.0}.items()
    assert (made.heartbeat, made.login_method) == (30.0, "PLAIN")


def test_options_stay_when_a_connection_is_made_like_another_or_changes_to_the_next_url():
    made = connection("redis://127.0.0.1:1?socket_timeout=3;redis://127.0.0.1:2/1?client_name=me").clone()
    made.maybe_switch_next()
    assert (made.port, made.virtual_host) == (2, "1")
    assert made.transport_options.items() >= {"socket_timeout": 3.0, "client_name": "me"}.items()


@pytest.mark.parametrize(
    "url", ["redis://app:x@127.0.0.1:1/2", "redis+socket:///s.sock", "amqp://app:x@127.0.0.1//v?heartbeat=3"]
)
def test_a_url_without_options_of_a_driver_makes_the_connection_that_celery_makes(url):
    ours, theirs = connection(url), kombu.Connection(url)
    assert type(ours) is Connection
    assert ours.as_uri(include_password=True) == theirs.as_uri(include_password=True)
    assert (ours.heartbeat or 0) == theirs.heartbeat

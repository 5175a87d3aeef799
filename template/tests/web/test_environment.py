"""Variables: what cannot be used is told in a sentence, and what looks unusual but is not is taken as it is meant."""

import os
from pathlib import Path
from unittest import mock

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command

from apps.web.environment import Env, masked
from tests.environment import SECRET, Table, assert_told, load_settings, refusal, rows

YES_OR_NO = [
    ("maybe", "but must be yes or no"),
    ("2", "but must be yes or no"),
    ("True # in development", "A comment needs a line of its own."),
    ("'1'", "Write it without the quotes."),
]
WHOLE_NUMBER = [
    ("many", "but must be a whole number, 0 or more"),
    ("-1", "0 or more"),
    ("60s", "whole number"),
    ("1.5", "whole number"),
    ("60 # a minute", "A comment needs a line of its own."),
    ('"60"', "Write it without the quotes."),
]
# Variables of other apps are in tables like this one in their tests.
NONSENSE: Table = {
    "ALLOWED_HOSTS": [
        ("https://www.example.com", "without scheme, port and path"),
        ("www.example.com:8000", "'www.example.com:8000' is no host name"),
        ("www.example.com/", "is no host name"),
        ("example.com,*.example.com", "'*.example.com' is no host name: write www.example.com, or .example.com"),
        ("a.example.com b.example.com", "is no host name"),
        ("::1", "is no host name"),
        ("bücher.example", "is no host name"),
        ('"www.example.com"', "Write it without the quotes."),
    ],
    "BEHIND_HTTPS_PROXY": YES_OR_NO,
    "CACHE_URL": [
        ("cache_table", "but must be a URL, which begins with a scheme such as dbcache://"),
        ("dbcache://", "which names no place"),
        ("http://127.0.0.1", "whose scheme is not one of"),
        ("memcache://127.0.0.1:11211", "which cannot be used"),
        ("pymemcache://127.0.0.1:11211x", "whose port is not a number"),
        (f"pymemcache://app:{SECRET}/x@127.0.0.1", "Percent-encode"),
        ("dbcache://a b", "which contains a space"),
        ("'dbcache://cache_table'", "Write it without the quotes."),
    ],
    "CSRF_TRUSTED_ORIGINS": [
        ("www.example.com", "'www.example.com' is no origin: write https://www.example.com"),
        ("https://www.example.com/", "is no origin"),
        ("https://www.example.com/path", "is no origin"),
        ("https://a.example.com https://b.example.com", "is no origin"),
        ("https://www.example.com,b.example.com", "'b.example.com' is no origin"),
    ],
    "DATABASE_CONN_MAX_AGE": WHOLE_NUMBER,
    "DATABASE_URL": [
        ("127.0.0.1:5432/acme", "but must be a URL"),
        (f"app:{SECRET}@127.0.0.1/acme", "but must be a URL"),
        (f"postgresq://app:{SECRET}@127.0.0.1/acme", "whose scheme is not one of postgres, "),
        (f"postgres://app:p/{SECRET}@127.0.0.1/acme", "Percent-encode"),
        (f"postgres://app:{SECRET}/1@127.0.0.1/acme", "Percent-encode"),
        (f"postgres://app:1/{SECRET}@127.0.0.1/acme", "Percent-encode"),
        (f"postgres://app:{SECRET}#1@127.0.0.1/acme", "Percent-encode"),
        (f"postgres://app:{SECRET}?1@127.0.0.1/acme", "Percent-encode"),
        (f"postgres://app:[{SECRET}@127.0.0.1/acme", "Percent-encode"),
        (f"postgres://app:{SECRET} @127.0.0.1/acme", "which contains a space"),
        (f"postgres://app:{SECRET}", "whose port is not a number"),
        (f"postgres://app:{SECRET}@127.0.0.1:port/acme", "whose port is not a number"),
        (f"postgres://app:{SECRET}@127.0.0.1:65536/acme", "whose port is not a number from 1 to 65535"),
        (f"postgres://app:{SECRET}@127.0.0.1", "which names no database"),
        ("sqlite://db.sqlite3", "three slashes stand before a relative path"),
        ("sqlite:////is/not/there/db.sqlite3", "whose folder '/is/not/there' is not there"),
        ('"sqlite:///db.sqlite3"', "Write it without the quotes."),
        ("sqlite:////C#/db.sqlite3", "which contains a #. Write it as %23"),
        ("sqlite:///db.sqlite3?timeout=long", "whose option timeout is 'long', but must be a number"),
        ("sqlite:///db.sqlite3?transaction_mode=LATER", "option transaction_mode is 'LATER', but must be one of "),
        ("sqlite:///db.sqlite3?mode=ro", "which has the option mode, but the database has no such option"),
        ("sqlite:///what?/db.sqlite3", "which has an option, but the database has no such option"),
        ("postgres:///acme#1", "which contains a #. Write it as %23"),
        ("postgres:///acme?atomic_requests=maybe", "whose option atomic_requests is 'maybe', but must be yes or no"),
        ("postgres:///acme?conn_max_age=-1", "whose option conn_max_age is '-1', but must be a whole number, 0"),
        ("postgres:///acme?conn_max_age=", "whose option conn_max_age is '', but must be a whole number"),
        ("postgres:///acme?sllmode=require", "which has the option sllmode, but the database has no such option"),
        (f"postgres:///acme?{SECRET}/1@127.0.0.1", "which has an option, but"),
    ],
    "DEBUG": YES_OR_NO,
    "DEFAULT_FROM_EMAIL": [
        ("Acme", "but must be an address: hello@example.com"),
        ("hello@", "but must be an address"),
        ("Acme <hello>", "but must be an address"),
    ],
    "EMAIL_URL": [
        ("smtp.example.com", "but must be a URL"),
        ("smtps+tls://smtp.example.com", "whose scheme is not one of smtp, "),
        (f"smtp://app:{SECRET}/1@smtp.example.com", "Percent-encode"),
        (f"smtp://app:{SECRET}@smtp.example.com:port", "whose port is not a number"),
        ("smtp+tls://", "which names no host"),
        ("filemail://", "which names no folder"),
        ("smtp://smtp.example.com?tls=1", "whose option TLS is not known"),
        ("smtp://smtp.example.com?email_use_tls=maybe", "but must be yes or no"),
    ],
    "HEALTH_TOKEN": [
        (f"{SECRET} # of the probe", "A comment needs a line of its own."),
        (f"{SECRET} two", "but must be one word of ASCII"),
        (f"{SECRET}ü", "but must be one word of ASCII"),
    ],
    "LOG_FORMAT": [("xml", "but must be one of json, plain")],
    "LOG_LEVEL": [
        ("loud", "but must be one of "),
        ("10", "but must be one of "),
        ("INFO # or DEBUG", "A comment needs a line of its own."),
    ],
    # A platform may set it by itself, in every form that OpenTelemetry's exporters understand.
    "OTEL_EXPORTER_OTLP_ENDPOINT": [],
    # Told by the command `dev`, below.
    "PORT": [],
    "REQUEST_MAX_MB": WHOLE_NUMBER,
    "REQUIRE_VERIFIED_EMAIL": YES_OR_NO,
    # Any text is a key.
    "SECRET_KEY": [],
    "SECRET_KEY_FALLBACKS": [],
    "SECURE_HSTS_SECONDS": WHOLE_NUMBER,
    "SECURE_HSTS_SUBDOMAINS": YES_OR_NO,
    "SECURE_SSL_REDIRECT": YES_OR_NO,
    "STORAGE_URL": [
        ("/srv/media", "but must be a URL"),
        ("https://bucket.s3.example.com", "whose scheme is not one of s3"),
        (f"s3://key:{SECRET}@?region_name=eu-central-1", "which names no bucket"),
        (f"s3://key:a/{SECRET}@bucket", "Percent-encode"),
    ],
    "SENTRY_DSN": [
        ("o1.ingest.sentry.io/1", "but must be a URL"),
        ("https://o1.ingest.sentry.io/1", "but must be what Sentry shows as the DSN of a project"),
        (f"https://{SECRET}@o1.ingest.sentry.io", "https://key@host/number"),
        (f"https://{SECRET}@o1.ingest.sentry.io/acme", "https://key@host/number"),
    ],
    "SENTRY_TRACES_SAMPLE_RATE": [
        ("many", "but must be a number, such as 2.5"),
        ("10", "but must be a number from 0 to 1"),
        ("-0.1", "but must be a number from 0 to 1"),
        ("nan", "but must be a number from 0 to 1"),
    ],
    "TRUSTED_PROXY_COUNT": WHOLE_NUMBER,
}


@pytest.mark.parametrize(("name", "value", "words"), rows(NONSENSE))
def test_a_value_that_cannot_be_used_is_told_in_a_sentence(tmp_path, name, value, words):
    assert_told(tmp_path, name, value, words)


@pytest.mark.parametrize("name", ["DATABASE_URL", "EMAIL_URL", "SENTRY_DSN"])
def test_a_word_in_the_place_of_a_url_is_not_shown(tmp_path, name):
    assert SECRET not in refusal(tmp_path, **{name: SECRET})


def test_a_driver_that_is_not_installed_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(Env.DB_SCHEMES, "nowhere", "no_such_package")
    sentence = refusal(tmp_path, DATABASE_URL="nowhere://127.0.0.1/acme")
    assert "whose driver is not installed (No module named 'no_such_package')." in sentence


def test_a_port_that_is_none_is_told_in_a_sentence(settings, monkeypatch):
    settings.DEBUG = True
    monkeypatch.setenv("PORT", "abc")
    with pytest.raises(CommandError, match="'abc' is no port: give --port, or PORT, a number"):
        call_command("dev")


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    told = refusal(tmp_path, LOG_LEVEL="loud", SECURE_HSTS_SECONDS="abc", DEBUG="maybe").splitlines()
    assert [line.partition(" ")[0] for line in told] == ["DEBUG", "SECURE_HSTS_SECONDS", "LOG_LEVEL"]


def test_what_is_read_after_the_settings_is_told_too(tmp_path):
    env = load_settings(tmp_path)["env"]
    with mock.patch.dict(os.environ, {"MY_LIMIT": "few"}), pytest.raises(ImproperlyConfigured, match="MY_LIMIT is"):
        env.int("MY_LIMIT", 5)


def test_what_django_environ_reads_can_be_read_still(tmp_path):
    env = load_settings(tmp_path)["env"]
    variables = {
        "RATE": "2.5",
        "MAP": "a=1,b=2",
        "JSON": '{"a": [1]}',
        "PAIR": "(1,2)",
        "PAGE": "https://a/b",
        "N": "-1",
    }
    with mock.patch.dict(os.environ, variables):
        assert (env.float("RATE"), env.dict("MAP"), env.json("JSON")) == (2.5, {"a": "1", "b": "2"}, {"a": [1]})
        assert (env.tuple("PAIR"), env.url("PAGE").path) == (("1", "2"), "/b")
        assert (env("N", int), env("N", default=5)) == (-1, -1)
        assert (env.int("NONE", None), env.list("NONE", default=["a"]), env("NONE", default="b")) == (None, ["a"], "b")
    with pytest.raises(ImproperlyConfigured, match="Set NONE in the environment"):
        env.str("NONE")


# What is meant by it --------------------------------------------------------


LISTS = {
    "ALLOWED_HOSTS": (" a.example.com, .b.example.com ,,[::1],*", ["a.example.com", ".b.example.com", "[::1]", "*"]),
    "CSRF_TRUSTED_ORIGINS": ("https://a.example.com, http://*.b:8000", ["https://a.example.com", "http://*.b:8000"]),
}


@pytest.mark.parametrize("name", LISTS)
def test_spaces_around_commas_do_not_count(tmp_path, name):
    value, meant = LISTS[name]
    assert load_settings(tmp_path, **{name: value})[name] == meant


@pytest.mark.parametrize(
    ("name", "value", "meant"),
    [
        ("DEBUG", " Yes ", True),
        ("DEFAULT_FROM_EMAIL", "Acme <hello@example.com>", "Acme <hello@example.com>"),
        ("HEALTH_TOKEN", "$token", "$token"),
        ("SECRET_KEY", "$abc$def", "$abc$def"),
        ("SECRET_KEY", '"a" # b=c', '"a" # b=c'),
        ("SECURE_HSTS_SECONDS", " 60\n", 60),
        ("SECURE_HSTS_SECONDS", "  ", 0),
    ],
)
def test_what_is_unusual_is_taken_as_it_is_meant(tmp_path, name, value, meant):
    assert load_settings(tmp_path, **{name: value})[name] == meant


def test_uploaded_files_lie_in_a_folder_or_in_the_bucket_of_the_url(tmp_path, monkeypatch):
    monkeypatch.setattr("apps.web.environment.find_spec", lambda name: name)
    assert load_settings(tmp_path)["STORAGES"]["default"]["BACKEND"].endswith(".FileSystemStorage")
    url = "s3://key:se%2Fcret@bucket/acme/?verify=false"
    assert load_settings(tmp_path, STORAGE_URL=url)["STORAGES"]["default"] == {
        "BACKEND": "storages.backends.s3.S3Storage",
        "OPTIONS": {
            "access_key": "key",
            "bucket_name": "bucket",
            "file_overwrite": False,
            "location": "acme",
            "secret_key": "se/cret",
            "verify": False,
        },
    }


def test_a_bucket_without_its_package_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("apps.web.environment.find_spec", lambda name: None)
    assert_told(tmp_path, "STORAGE_URL", "s3://bucket", 'Install the extra "s3"')


def test_the_level_of_the_log_may_be_in_small_letters(tmp_path):
    assert load_settings(tmp_path, LOG_LEVEL="warning")["LOGGING"]["root"]["level"] == "WARNING"


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("postgres://us%40er:$p%2Fss@[::1]:5433/acme?sslmode=require", ("us@er", "$p/ss", "::1", 5433, "acme")),
        ("postgres://app:p@ss@one:5432,two:5433/acme", ("app", "p@ss", "one,two", "5432,5433", "acme")),
        ("postgres:///acme", ("", "", "", "", "acme")),
        ("sqlite://:memory:", (None, None, None, None, ":memory:")),
        ("postgres://a+b:p+w@%2Fsrv%2FSql%2Frun:5433/c+d", ("a+b", "p+w", "/srv/Sql/run", 5433, "c+d")),
        ("postgres://%2Fsrv%2Fsql/acme", ("", "", "/srv/sql", "", "acme")),
        ("sqlite:///db.sqlite3", ("", "", "", "", "db.sqlite3")),
        ("sqlite:///a+b%23%25%3F c", ("", "", "", "", "a+b#%? c")),
    ],
)
def test_the_database_is_that_of_the_url(tmp_path, url, parts):
    database = load_settings(tmp_path, DATABASE_URL=url)["DATABASES"]["default"]
    assert tuple(database.get(name) for name in ("USER", "PASSWORD", "HOST", "PORT", "NAME")) == parts


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgres:///acme?conn_max_age=0&atomic_requests=false", {"CONN_MAX_AGE": 0, "ATOMIC_REQUESTS": False}),
        ("postgres:///acme?conn_max_age=None", {"CONN_MAX_AGE": None}),
        ("postgres:///acme?conn_health_checks=0", {"CONN_HEALTH_CHECKS": False}),
        ("sqlite:///db.sqlite3?ATOMIC_REQUESTS=on", {"ATOMIC_REQUESTS": True}),
        ("postgres:///acme?sslmode=require&connect_timeout=1", {"sslmode": "require", "connect_timeout": "1"}),
        ("postgres:///acme?options=-c%20search_path%3Da", {"options": "-c search_path=a", "connect_timeout": 5}),
        ("postgres:///acme?server_side_binding=no", {"server_side_binding": False}),
        ("postgres:///acme?isolation_level=4", {"isolation_level": 4}),
        ("postgres:///acme?pool=false", {"pool": False}),
        ("sqlite:///db.sqlite3?timeout=60", {"timeout": 60, "transaction_mode": "IMMEDIATE"}),
        ("sqlite:///db.sqlite3?transaction_mode=DEFERRED", {"timeout": 20, "transaction_mode": "DEFERRED"}),
    ],
)
def test_an_option_of_the_database_arrives(tmp_path, url, expected):
    database = load_settings(tmp_path, DATABASE_URL=url, DATABASE_CONN_MAX_AGE="7")["DATABASES"]["default"]
    assert database | database["OPTIONS"] | expected == database | database["OPTIONS"]


def test_connections_are_pooled_where_the_package_for_it_is_installed(tmp_path, monkeypatch):
    url = "postgres:///acme?pool=true"
    monkeypatch.setattr("apps.web.environment.find_spec", lambda name: None)
    assert "Install psycopg[pool]." in refusal(tmp_path, DATABASE_URL=url)
    monkeypatch.setattr("apps.web.environment.find_spec", lambda name: name)
    database = load_settings(tmp_path, DATABASE_URL=url, DATABASE_CONN_MAX_AGE="7")["DATABASES"]["default"]
    assert (database["CONN_MAX_AGE"], database["OPTIONS"]["pool"]) == (0, True)
    assert "whose option conn_max_age must be 0" in refusal(tmp_path, DATABASE_URL=f"{url}&conn_max_age=1")


FOLDERS = ["C#", "c++", "100%25", "it's mine", "Проект", "a&b=c;d"]
# Windows does not allow these.
FOLDERS += ["what?", '"mine"', "sqlite:"] if os.name == "posix" else []


@pytest.mark.parametrize("name", FOLDERS)
def test_a_project_may_lie_in_a_folder_of_any_name(tmp_path, name):
    folder = tmp_path / name / "acme"
    folder.mkdir(parents=True)
    loaded = load_settings(folder)
    assert Path(loaded["DATABASES"]["default"]["NAME"]) == folder / "db.sqlite3"


def test_the_mail_server_is_that_of_the_url(tmp_path):
    loaded = load_settings(tmp_path, EMAIL_URL="smtp+tls://app:$p%40ss@smtp.example.com:587")
    assert (loaded["EMAIL_HOST"], loaded["EMAIL_PORT"], loaded["EMAIL_USE_TLS"]) == ("smtp.example.com", 587, True)
    assert (loaded["EMAIL_HOST_USER"], loaded["EMAIL_HOST_PASSWORD"]) == ("app", "$p@ss")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("postgres://user:secret@host:5432/name", "postgres://***@host:5432/name"),
        ("postgres://user:se@cr/et@host/name", "postgres://***@host/name"),
        ("postgres://user:secret", "postgres://user:***"),
        ("postgres://user:se?c=ret@host/name", "postgres://***?…"),
        ("postgres://host/name?password=se@cret", "postgres://***?…"),
        ("user:secret@host/name", "***@host/name"),
        ("a://u:secret@one;a://u:secret@two", "a://***@one;a://***@two"),
        ("plain", "plain"),
    ],
)
def test_of_a_url_no_secret_is_shown(value, shown):
    assert masked(value) == shown


# The file -------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"\xef\xbb\xbfLOG_LEVEL=ERROR",
        b"LOG_LEVEL=ERROR\r\nSECURE_HSTS_SECONDS=1\r\n",
        b"export LOG_LEVEL=ERROR",
        b"  export   LOG_LEVEL=ERROR  ",
        b'LOG_LEVEL="ERROR"',
        b"LOG_LEVEL='ERROR'",
        b"# LOG_LEVEL=loud\n   # and so on\n\nLOG_LEVEL=ERROR",
    ],
)
def test_the_file_may_be_written_in_many_ways(tmp_path, line):
    assert load_settings(tmp_path, line)["LOGGING"]["root"]["level"] == "ERROR"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"hunter2", "line 2 is neither NAME=value"),
        (b"SECRET_KEY = hunter2", "line 2 is neither NAME=value, without spaces around the ="),
        (b"SECRET KEY=hunter2", "line 2 is neither NAME=value"),
        (b'SECRET_KEY="hunter2', "on line 2 a quote is not closed"),
        (b'SECRET_KEY="hunter2" # mine', "on line 2 a quote is not closed, or something follows it"),
        (b"SECRET_KEY=hunter2\xe4", "line 2 is not UTF-8"),
        (b"SECRET_KEY=hunter2\0", "line 2 is neither NAME=value"),
    ],
)
def test_a_line_that_cannot_be_read_is_told_with_its_number(tmp_path, line, words):
    sentence = refusal(tmp_path, b"LOG_LEVEL=ERROR\n" + line)
    assert sentence.startswith(f"{tmp_path / '.env'} cannot be read: ") and words in sentence
    assert SECRET not in sentence


@pytest.mark.parametrize(("value", "given"), [("ab$cd#e", "ab#e"), ("${ab}cd", "cd"), ("$ab", "")])
def test_a_value_that_compose_has_changed_is_told(tmp_path, value, given):
    words = "on line 1 Compose takes what follows the $ for a variable"
    assert words in refusal(tmp_path, f"SECRET_KEY={value}", SECRET_KEY=given)


@pytest.mark.parametrize(
    ("line", "given"), [("ab$cd#e", None), ("'ab$cd#e'", "ab$cd#e"), ("ab$cd#e", "another"), ("ab$", "ab$")]
)
def test_a_dollar_that_compose_has_not_changed_is_taken_as_it_is(tmp_path, line, given):
    variables = {"SECRET_KEY": given} if given else {}
    assert load_settings(tmp_path, f"SECRET_KEY={line}", **variables)["SECRET_KEY"] == (given or line)


def test_a_file_in_another_encoding_is_told(tmp_path):
    assert "line 1 is not UTF-8" in refusal(tmp_path, "LOG_LEVEL=ERROR".encode("utf-16"))


def test_the_environment_has_precedence_over_the_file(tmp_path):
    loaded = load_settings(tmp_path, "LOG_LEVEL=ERROR", LOG_LEVEL="WARNING")
    assert loaded["LOGGING"]["root"]["level"] == "WARNING"


def test_a_value_of_the_file_is_looked_at_like_any_other(tmp_path):
    assert "A comment needs a line of its own." in refusal(tmp_path, "LOG_LEVEL=ERROR # or DEBUG")

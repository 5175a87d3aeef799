"""Reads the settings' variables from the environment. Converts each one, or says in a sentence what is wrong with it.

The sentences name the variable and the remedy. They show values, but no password and no key. All of them are reported
at once: `finish()` raises them at the end of the settings.
"""

import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import parseaddr
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import environ
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

NOTSET = environ.Env.NOTSET
SECRET_NAME = re.compile(r"AUTH|KEY|PASSWORD|SECRET|TOKEN")
# Longer values are cut in messages.
SHOWN_CHARACTERS = 100
# A valid line of .env: empty, a comment, or a variable.
LINE = re.compile(r"(?:#.*|(?:export\s+)?(?P<name>[A-Za-z_]\w*)=(?P<value>.*))?")
# What Compose replaces in a value of .env that is not in single quotes, by nothing if no such variable is set.
COMPOSE_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})")
YES = ("1", "on", "true", "y", "yes")
NO = ("0", "false", "n", "no", "off")
ENCODE = "Percent-encode the signs : / ? # [ ] @ % in user names, passwords and names: write @ as %40, for example"

# Other apps register their URLs here: schemes that stand for another one, and rules of a scheme, which raise Unusable.
ALIASES: dict[str, str] = {}
RULES: dict[str, Callable[[SplitResult], None]] = {}


class Unusable(ValueError):
    """A value that cannot be used. The message ends a sentence that begins with the variable and its value."""


class Env(environ.Env):
    """The environment, and a file with more variables. A variable without a value is not set.

    Works like django-environ, but reports unusable values instead of guessing, and takes a value that begins with "$"
    literally. Spaces around a value do not count.
    """

    def __init__(self, file: Path) -> None:
        """Read the file if it exists. The environment has precedence over it."""
        super().__init__()
        self.problems: dict[str, str] = {}
        self.is_finished = False
        try:
            self.read_env(io.StringIO(_readable(file)))
        except ValueError as error:
            self.problems[file.name] = f"{file} cannot be read: {error}."

    def get_value(self, var: str, cast: Any = None, default: Any = NOTSET, parse_default: bool = False) -> Any:
        """Return the value of the variable, or the default if it is not set. Remember what is wrong with it."""
        given = os.environ.get(var, "")
        if not given.strip():
            if default is NOTSET:
                raise ImproperlyConfigured(f"Set {var} in the environment.")
            return self.parse_value(default, cast) if parse_default else default
        value = _by_its_own_name(given.strip())
        if value != given:
            # Libraries read some variables by themselves.
            os.environ[var] = value
        if cast is None and default is not NOTSET and default is not None:
            cast = type(default)
        try:
            return self.parse_value(value, cast)
        except (ArithmeticError, ImportError, LookupError, TypeError, ValueError) as error:
            self._refuse(var, value, error)
        return self.parse_value(default, cast) if parse_default else default

    def _refuse(self, var: str, value: str, error: Exception) -> None:
        hint = "."
        if value[0] in "\"'":
            hint = ". Write it without the quotes."
        elif " #" in value:
            hint = ". A comment needs a line of its own."
        # A word where a URL should be may be the password alone.
        is_secret = SECRET_NAME.search(var) or (var.endswith(("_DSN", "_URL")) and "://" not in value)
        reason = str(error) if isinstance(error, Unusable) else "which cannot be read"
        if not (is_secret or isinstance(error, Unusable)):
            reason += f" ({error})"
        self.problems[var] = f"{var} is {'set' if is_secret else repr(masked(value))}, {reason.rstrip('.')}{hint}"
        if self.is_finished:
            self.finish()

    @classmethod
    def parse_value(cls, value: Any, cast: Any) -> Any:
        """Return the converted value. Raise ValueError with the rest of a sentence if it cannot be converted."""
        if not isinstance(value, str):
            return value
        if cast in (list, tuple) or isinstance(cast, list | tuple):
            of, kind = (cast, str) if isinstance(cast, type) else (type(cast), cast[0])
            items = (value.strip("()") if of is tuple else value).split(",")
            return of(cls.parse_value(item.strip(), kind) for item in items if item.strip())
        return super().parse_value(value, {bool: yes_or_no, float: number, int: whole_number}.get(cast, cast))

    def finish(self, required: Mapping[str, object] | None = None) -> None:
        """Raise ImproperlyConfigured if a variable cannot be used, or one of the required settings has no value.

        Problems with variables that are read later, in other settings, are raised at once.
        """
        self.is_finished = True
        if self.problems:
            raise ImproperlyConfigured("\n".join(self.problems.values()))
        if missing := sorted(name for name, value in (required or {}).items() if not value):
            raise ImproperlyConfigured(
                f"Set {', '.join(missing)} in the environment, or DEBUG=1 for development (cp .env.example .env)."
            )

    # Readers ----------------------------------------------------------------

    def int(self, var: str, default: Any = NOTSET, minimum: int | None = 0) -> int:
        """Return a whole number, not below the minimum."""
        return self.get_value(var, cast=partial(whole_number, minimum=minimum), default=default)

    def text(self, var: str, default: Any = NOTSET, form: Callable[[str], str] = str) -> str:
        """Return a text in this form, which is one of the functions below or your own."""
        return self.get_value(var, cast=form, default=default)

    def db_url(self, var: str = "DATABASE_URL", default: Any = NOTSET, engine: str | None = None) -> dict[str, Any]:
        """Return the database at the URL, for DATABASES."""
        return self.get_value(var, partial(database, engine=engine), default, parse_default=True)

    def cache_url(self, var: str = "CACHE_URL", default: Any = NOTSET, backend: str | None = None) -> dict[str, Any]:
        """Return the cache at the URL, for CACHES."""
        return self.get_value(var, partial(cache, backend=backend), default, parse_default=True)

    def email_url(self, var: str = "EMAIL_URL", default: Any = NOTSET, backend: str | None = None) -> dict[str, Any]:
        """Return the settings that send e-mail by the URL."""
        return self.get_value(var, partial(mail, backend=backend), default, parse_default=True)

    db, cache, email = db_url, cache_url, email_url


@contextmanager
def problems_told(status: int = 1) -> Iterator[None]:
    """If the settings cannot be loaded, exit with the sentences and this status, without a traceback."""
    try:
        yield
    except ImproperlyConfigured as error:
        # Later, the cause is in some code, which a traceback shows.
        if settings.configured:
            raise
        print(error, file=sys.stderr, flush=True)
        sys.exit(status)


# The file -------------------------------------------------------------------


def _readable(file: Path) -> str:
    """Return the lines of the file as django-environ understands them. Raise ValueError for an invalid line."""
    if not file.is_file():
        return ""
    try:
        lines = file.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise ValueError(error.strerror) from None
    return "\n".join(_readable_line(number, line) for number, line in enumerate(lines, start=1))


def _readable_line(number: int, line: bytes) -> str:
    # Nothing of the line is shown, because it may contain a secret.
    try:
        found = LINE.fullmatch(line.decode().strip())
    except UnicodeDecodeError:
        raise ValueError(f"line {number} is not UTF-8. Save the file in this encoding") from None
    if found is None or b"\0" in line:
        raise ValueError(f"line {number} is neither NAME=value, without spaces around the =, nor a comment")
    if not (name := found["name"]):
        return ""
    value = found["value"]
    if value[:1] in ('"', "'") and (len(value) == 1 or value[-1] != value[0]):
        raise ValueError(f"on line {number} a quote is not closed, or something follows it")
    if os.environ.get(name) == COMPOSE_VARIABLE.sub("", value) != value:
        raise ValueError(
            f"on line {number} Compose takes what follows the $ for a variable. Put the value in single quotes"
        )
    return f"{name}={value}"


# Forms ----------------------------------------------------------------------
# What a value has to be. Each form raises Unusable.


def yes_or_no(value: str) -> bool:
    """Return whether the value says yes."""
    if value.lower() not in YES + NO:
        raise Unusable("but must be yes or no: 1 or 0, true or false, on or off")
    return value.lower() in YES


def whole_number(value: str, minimum: int | None = None) -> int:
    """Return the number if it is not below the minimum."""
    if re.fullmatch(r"[+-]?\d+", value) and (minimum is None or int(value) >= minimum):
        return int(value)
    raise Unusable("but must be a whole number" + ("" if minimum is None else f", {minimum} or more"))


def number(value: str) -> float:
    """Return the number, with or without decimal places."""
    try:
        return float(value)
    except ValueError:
        raise Unusable("but must be a number, such as 2.5") from None


def share(value: str) -> float:
    """Return the number if it is a share of a whole."""
    if not 0 <= (found := number(value)) <= 1:
        raise Unusable("but must be a number from 0 to 1: 0.1 is a tenth")
    return found


def one_of(*choices: str) -> Callable[[str], str]:
    """Return a form that accepts these texts."""

    def form(value: str) -> str:
        if value not in choices:
            raise Unusable(f"but must be one of {', '.join(choices)}")
        return value

    return form


def matching(pattern: str, expected: str) -> Callable[[str], str]:
    """Return a form for texts that fully match the regular expression, which `expected` describes in words."""

    def form(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise Unusable(f"but must be {expected}")
        return value

    return form


def log_level(value: str) -> str:
    """Return the name of a log level, in capitals."""
    return one_of(*sorted(logging.getLevelNamesMapping(), key=logging.getLevelNamesMapping().get))(value.upper())


def token(*beginnings: str) -> Callable[[str], str]:
    """Return a form for the value of a request header. It begins with one of these texts, if any are given."""

    def form(value: str) -> str:
        if not re.fullmatch("[!-~]+", value):
            raise Unusable("but must be one word of ASCII letters, digits and signs: it is sent in a header")
        if beginnings and not value.startswith(beginnings):
            raise Unusable(f"but must begin with {' or '.join(beginnings)}")
        return value

    return form


def sender(value: str) -> str:
    """Return the sender's address, with or without a name."""
    address = parseaddr(value)[1]
    if not re.fullmatch(r"[^\s@]+@[^\s@]+", address) or "\n" in value:
        raise Unusable("but must be an address: hello@example.com, or Acme <hello@example.com>")
    return value


def host(value: str) -> str:
    """Return a host name in the form of ALLOWED_HOSTS."""
    if not re.fullmatch(r"\*|\.?[a-z0-9_-]+(\.[a-z0-9_-]+)*|\[[0-9a-f:.]+\]", value, re.IGNORECASE):
        raise Unusable(
            f"where {value!r} is no host name: write www.example.com, or .example.com for all below it, without "
            "scheme, port and path"
        )
    return value


def origin(value: str) -> str:
    """Return an origin in the form of CSRF_TRUSTED_ORIGINS."""
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*://(\*\.)?([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:\d+)?", value, re.IGNORECASE):
        raise Unusable(
            f"where {value!r} is no origin: write https://www.example.com, with its scheme and without a path"
        )
    return value


# URLs -----------------------------------------------------------------------


def masked(value: str) -> str:
    """Return a value without secrets: a URL, well-formed or not, loses its credentials and options."""
    return ";".join(map(_masked_url, value.split(";")))[:SHOWN_CHARACTERS]


def _masked_url(url: str) -> str:
    scheme, rest = re.fullmatch(r"(\w[\w+.-]*://)?(.*)", url, re.DOTALL).groups("")
    rest, question, options = rest.partition("?")
    if "@" in rest + options:
        rest = "***@" + rest.rpartition("@")[2] if "@" in rest else "***"
    elif scheme:
        # If the host was forgotten, a password looks like a port.
        rest = re.sub(r"^([^:/\[]*):(?!\d+(?:[/,]|$)).*", r"\1:***", rest, flags=re.DOTALL)
    return f"{scheme}{rest}?…" if question else scheme + rest


def _by_its_own_name(value: str) -> str:
    """Return the value. In a URL, or in each URL of a list, replace an alias by the scheme that it stands for."""
    schemes = "|".join(map(re.escape, ALIASES))
    return re.sub(rf"(^|;)({schemes})(?=://)", lambda found: found[1] + ALIASES[found[2]], value) if schemes else value


def checked_url(value: str, *schemes: str) -> SplitResult:
    """Return the parts of a URL with one of the schemes, if any are given. Raise Unusable for anything else."""
    if not re.match(r"[A-Za-z][\w+.-]*://", value):
        example = schemes[0] if schemes else "https"
        raise Unusable(f"but must be a URL, which begins with a scheme such as {example}://")
    scheme, _, rest = value.partition("://")
    if schemes and scheme not in schemes:
        raise Unusable(f"whose scheme is not one of {', '.join(schemes)}")
    if re.search(r"\s", value):
        raise Unusable(f"which contains a space. {ENCODE}")
    if _password_hides_host(rest):
        raise Unusable(f"whose user and password cannot be told from the host. {ENCODE}")
    try:
        parts = urlsplit(value)
        port = None if "," in parts.netloc else parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise Unusable(f"whose port is not a number from 1 to 65535. {ENCODE}")
    if rule := RULES.get(scheme):
        rule(parts)
    return parts


def _password_hides_host(rest: str) -> bool:
    """Return whether the apparent host and port are a user and a password that contains a character which ends them."""
    address, sign, path = re.fullmatch(r"([^/?#]*)([/?#]?)(.*)", rest).groups()
    if ":" not in address or "@" not in path:
        return False
    # The options may contain an @ although nothing is wrong.
    if sign == "#":
        return True
    if sign == "/" and "@" in path.partition("?")[0]:
        return True
    _, colon, port = address.rpartition("@")[2].partition(":")
    return bool(colon) and not port.isdecimal()


def web_address(value: str) -> str:
    """Return the http or https URL of a server, without a trailing slash."""
    if not checked_url(value, "https", "http").hostname:
        raise Unusable("which names no host: write https://api.example.com")
    return value.rstrip("/")


def sentry_dsn(value: str) -> str:
    """Return the DSN of a project of Sentry. Checks that Sentry's client is installed."""
    parts = checked_url(value, "https", "http")
    if not (parts.username and parts.hostname and re.search(r"/\d+$", parts.path)):
        raise Unusable("but must be what Sentry shows as the DSN of a project: https://key@host/number")
    if find_spec("sentry_sdk") is None:
        raise Unusable('for which Sentry\'s client is needed. Install the extra "sentry"')
    return value


def database(value: str, engine: str | None = None) -> dict[str, Any]:
    """Return the database at the URL, for DATABASES. Checks that its driver is installed."""
    is_file = value.startswith("sqlite:")
    if not is_file or "://" not in value:
        checked_url(value, *Env.DB_SCHEMES)
    elif not re.match("sqlite://(/|:memory:$|$)", value):
        raise Unusable("whose file is not named: three slashes stand before a relative path, four before another")
    if "#" in value:
        raise Unusable("which contains a #. Write it as %23")
    address, _, query = value.partition("?")
    # django-environ takes a plus sign for a space.
    config = Env.db_url_config(address.replace("+", "%2B"), engine=engine)
    if "%" in config.get("HOST", ""):
        # The folder of a socket, as libpq writes it. Here, it has lost its capital letters.
        config["HOST"] = unquote(urlsplit(address).netloc.rpartition("@")[2].partition(":")[0])
    if is_file and not Path(config["NAME"]).parent.is_dir():
        raise Unusable(f"whose folder {str(Path(config['NAME']).parent)!r} is not there")
    try:
        import_module(f"{config['ENGINE']}.base")
    except (ImportError, ImproperlyConfigured) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise Unusable(f"whose driver is not installed ({reason})") from None
    config |= _database_options(value.partition(":")[0], query)
    if not (config["NAME"] or config.get("OPTIONS", {}).get("service")):
        raise Unusable("which names no database: write postgres://user:password@host:5432/name")
    return config


def _database_options(scheme: str, query: str) -> dict[str, Any]:
    """Return what the options in the URL add to a database in DATABASES."""
    config: dict[str, Any] = {}
    forms = _driver_options(scheme)
    for name, text in parse_qsl(query, keep_blank_values=True):
        is_djangos = name.upper() in DJANGOS_OPTIONS
        form = DJANGOS_OPTIONS[name.upper()] if is_djangos else number_or_text if forms is None else forms.get(name)
        if form is None:
            # A text that is not an option name may be part of a password.
            shown = f"the option {name}" if name.isidentifier() else "an option"
            raise Unusable(f"which has {shown}, but the database has no such option")
        try:
            found = form(text)
        except Unusable as error:
            raise Unusable(f"whose option {name} is {text!r}, {error}") from None
        if is_djangos:
            config[name.upper()] = found
        else:
            config.setdefault("OPTIONS", {})[name] = found
    if config.get("OPTIONS", {}).get("pool") and config.setdefault("CONN_MAX_AGE", 0) != 0:
        raise Unusable("whose option conn_max_age must be 0, because the pool keeps the connections")
    return config


def _driver_options(scheme: str) -> Mapping[str, Callable[[str], Any]] | None:
    """Return the options of a driver, each with its form, or None if any may be right."""
    if scheme == "sqlite":
        modes = one_of("DEFERRED", "EXCLUSIVE", "IMMEDIATE")
        return {"init_command": str, "timeout": number, "transaction_mode": modes}
    if scheme not in Env.POSTGRES_FAMILY:
        return None
    # A project with another database may have removed it.
    from psycopg.pq import Conninfo

    return {option.keyword.decode(): str for option in Conninfo.get_defaults()} | {
        "assume_role": str,
        "isolation_level": whole_number,
        "pool": pool,
        "prepare_threshold": whole_number,
        "server_side_binding": yes_or_no,
    }


def number_or_text(value: str) -> int | str:
    """Return the value of an option that may be of either kind."""
    return int(value) if value.isdecimal() else value


def pool(value: str) -> bool:
    """Return whether to pool connections. Checks that the package for this is installed."""
    if (is_wanted := yes_or_no(value)) and find_spec("psycopg_pool") is None:
        raise Unusable("which needs the package psycopg-pool. Install psycopg[pool]")
    return is_wanted


def seconds_or_none(value: str) -> int | None:
    """Return a number of seconds, or None for "none", which means forever."""
    return None if value.lower() == "none" else whole_number(value, minimum=0)


DJANGOS_OPTIONS: dict[str, Callable[[str], Any]] = {
    "ATOMIC_REQUESTS": yes_or_no,
    "AUTOCOMMIT": yes_or_no,
    "CONN_HEALTH_CHECKS": yes_or_no,
    "CONN_MAX_AGE": seconds_or_none,
    "DISABLE_SERVER_SIDE_CURSORS": yes_or_no,
}


def cache(value: str, backend: str | None = None) -> dict[str, Any]:
    """Return the cache at the URL, for CACHES. Checks that its backend has what it needs."""
    head, question, query = value.partition("?")
    # Django reads these options itself. The others belong to the driver.
    options = [each for each in query.split("&") if each.partition("=")[0].upper() not in Env._CACHE_BASE_OPTIONS]
    parts = checked_url(head + question + "&".join(options), *Env.CACHE_SCHEMES)
    if not (parts.netloc or parts.path) and parts.scheme not in ("dummycache", "locmemcache"):
        raise Unusable("which names no place: write dbcache://cache_table, for example")
    config = Env.cache_url_config(value, backend=backend)
    module = config["BACKEND"].split(".")[-2]
    # If the module has the name of a scheme, the package of the driver has the same name.
    if module in Env.CACHE_SCHEMES and find_spec(module) is None:
        raise Unusable(f"which needs the package {module}. Install it")
    try:
        import_string(config["BACKEND"])(config["LOCATION"], {})
    except ImportError as error:
        raise Unusable(f"which cannot be used ({error})") from None
    return config


def storage(value: str) -> dict[str, Any]:
    """Return the bucket at the URL, for STORAGES. Its options are the settings of django-storages, in small letters.

    https://django-storages.readthedocs.io/en/latest/backends/amazon-S3.html
    """
    parts = checked_url(value, "s3")
    if not parts.hostname:
        raise Unusable("which names no bucket: write s3://key:secret@bucket?region_name=eu-central-1")
    if find_spec("storages") is None:
        raise Unusable('for which django-storages is needed. Install the extra "s3"')
    keys = {"access_key": unquote(parts.username or ""), "secret_key": unquote(parts.password or "")}
    words = {name: {"true": True, "false": False}.get(word, word) for name, word in parse_qsl(parts.query)}
    # By itself, django-storages would let a file replace another one of its name.
    options = {"bucket_name": parts.hostname, "file_overwrite": False, "location": parts.path.strip("/")} | words
    options |= {name: key for name, key in keys.items() if key}
    return {"BACKEND": "storages.backends.s3.S3Storage", "OPTIONS": options}


def mail(value: str, backend: str | None = None) -> dict[str, Any]:
    """Return the settings that send e-mail by the URL."""
    parts = checked_url(value, *Env.EMAIL_SCHEMES)
    if parts.scheme.startswith("smtp") and not parts.hostname:
        raise Unusable("which names no host: write smtp+tls://user:password@smtp.example.com:587")
    if parts.scheme == "filemail" and not parts.path.strip("/"):
        raise Unusable("which names no folder: write filemail:////path/to/folder")
    options = {name.upper(): text for name, text in parse_qsl(parts.query, keep_blank_values=True)}
    if unknown := options.keys() - {"EMAIL_USE_SSL", "EMAIL_USE_TLS"}:
        raise Unusable(f"whose option {min(unknown)} is not known. The scheme says it: smtp+tls:// or smtp+ssl://")
    config = Env.email_url_config(value.partition("?")[0], backend=backend)
    return config | {name: yes_or_no(text) for name, text in options.items()}

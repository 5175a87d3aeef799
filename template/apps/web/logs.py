"""Log lines as JSON, for programs that collect them, and the id that all lines of one request share."""

import json
import logging
import re
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from uuid import uuid4

REQUEST_ID = "X-Request-ID"
# Anybody may send this header, so it is only taken over if it is short and plain.
PLAIN = re.compile(r"[\w.=+/:-]{1,100}", re.ASCII)

# What each line says about the current request, beside what it says by itself.
fields: ContextVar[Mapping[str, str]] = ContextVar("fields", default=MappingProxyType({}))


def request_id(given: str | None) -> str:
    """Return the id that a proxy has given to a request, or a new one."""
    return given if given and PLAIN.fullmatch(given) else uuid4().hex


class JsonFormatter(logging.Formatter):
    """Writes each record as an object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **fields.get(),
            **self.own_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        return json.dumps(line, ensure_ascii=False, default=str)

    def own_fields(self, record: logging.LogRecord) -> dict[str, str]:
        """Return what the record says by itself. Django logs some answers when the request is already over."""
        identity = getattr(getattr(record, "request", None), "request_id", None)
        return {"request_id": identity} if identity else {}

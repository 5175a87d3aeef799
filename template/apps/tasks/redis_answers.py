"""What Redis and Valkey answer when they take nothing now, and what that means to those who ask."""

import re
from typing import Any, NoReturn

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,
    NoPermissionError,
    RedisError,
    ResponseError,
)

from .errors import Refused

# The first words of such answers. All of them pass, or another server takes the place of this one.
MOODS = {
    "BUSY": "it runs a script that does not end",
    "CLUSTERDOWN": "a part of its cluster is down",
    "LOADING": "it is still reading its data",
    "MASTERDOWN": "it is a replica and has lost its master",
    "MISCONF": "it cannot write its data to disk",
    "NOREPLICAS": "it has fewer replicas than it must have",
    "OOM": "its memory is full",
    "READONLY": "it is a replica",
    "TRYAGAIN": "its cluster is moving keys",
    "UNBLOCKED": "it has just become a replica",
}
# A transaction says why it was discarded, and older servers put the answer of a command behind that of its script.
MOOD = re.compile(rf"(?:^|because of: |: -)({'|'.join(MOODS)})\b")
# What a script may not do is no NOPERM before Redis 7.2.
FORBIDDEN = re.compile(r"^NOPERM|executing the script can't|ACL failure in script")


class NotNow(ConnectionError):
    """The server answers, but takes nothing now; as an error of the connection it makes everybody connect anew."""

    def __repr__(self) -> str:
        # A worker logs this, and redis-py leaves out what it is about.
        return str(self)


class FullMemory(NotNow):
    """The server has no memory left. It still gives away messages, and by that gets some back."""


class AttentiveConnection:
    """What a connection of redis-py does before: it tells answers that pass from those that do not.

    After "not now" it is closed. The name of the server is looked up again for the next one, so that a failover that
    changes the address behind the name reaches everybody.
    """

    def read_response(self, *args: Any, **options: Any) -> Any:
        """Return the next answer.

        Raises NotNow for one that passes, Refused if the server does not let us in, and otherwise what redis-py raises.
        """
        try:
            answer = super().read_response(*args, **options)
        except (AuthenticationError, BusyLoadingError, ResponseError) as error:
            self._judge(error)
            raise
        if isinstance(answer, list):
            # Of a transaction.
            for part in answer:
                if isinstance(part, ResponseError):
                    self._judge(part)
        return answer

    def _judge(self, error: RedisError) -> None:
        # Redis-py takes the first word off where it knows it.
        text = " ".join(filter(None, (error.status_code, str(error))))
        if isinstance(error, AuthenticationError):
            remedy = "Correct the user and the password in CELERY_BROKER_URL."
            self._close(Refused(f"Redis does not let this project in ({text}). {remedy}"), error)
        if found := MOOD.search(text):
            kind = FullMemory if found[1] == "OOM" else NotNow
            self._close(kind(f"Redis takes nothing now, because {MOODS[found[1]]} ({text})"), error)
        if FORBIDDEN.search(text) and not isinstance(error, NoPermissionError):
            raise NoPermissionError(text) from error

    def _close(self, verdict: Exception, error: RedisError) -> NoReturn:
        self.disconnect()
        raise verdict from error

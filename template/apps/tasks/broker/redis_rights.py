"""Checks which rights tasks need on Redis and Valkey, and whether the server would accept a task now.

A command that is queued in a transaction is judged at once: whether its user may run it on these keys, and whether the
server accepts it. A replica does not, nor does a server whose memory is full. The transaction is then discarded, so
nothing happens.
"""

import re
from collections.abc import Iterable
from typing import Any

from redis.exceptions import NoPermissionError, OutOfMemoryError, ResponseError

# The keys or the channel of a command in the notation of ACL SETUSER, and the words of the command.
Command = tuple[str, tuple[str, ...]]
# The commands that senders run on each kind of key. `*` stands for its name.
QUEUE_OF_SENDER = "SET * x, LPUSH * x, LLEN *, LTRIM * 0 0, PEXPIRE * 1"
BINDING_OF_SENDER = "SADD * x, SMEMBERS *"
NO_KEY_OF_SENDER = "EVAL x 0"
# The commands that senders, workers and tools together run on each kind of key or channel.
QUEUE = f"{QUEUE_OF_SENDER}, RPUSH * x, RPOP *, BRPOP * 1, EXISTS *, DEL *"
BINDING = f"{BINDING_OF_SENDER}, SREM * x, EXISTS *, DEL *, ZADD * 0 x, ZREM * x, ZRANGEBYSCORE * 0 0"
RECORD = "WATCH *, HSET * x x, HGET * x, HDEL * x"
INDEX = "ZADD * 0 x, ZREM * x, ZRANGE * 0 0"
MUTEX = "SET * x, GET *, DEL *"
TOPIC = "PUBLISH * x, PSUBSCRIBE *, PUNSUBSCRIBE *"
NO_KEY = f"{NO_KEY_OF_SENDER}, PING, SELECT 0, TIME, UNWATCH, EVALSHA x 0, SCRIPT EXISTS x, SCRIPT LOAD x"
# What the server says if the command itself is forbidden, as opposed to its keys or its channel.
FORBIDDEN = re.compile(r"to run the '([^']+)' command")


def examine(channel: Any, queues: Iterable[str], everything: bool) -> OutOfMemoryError | None:
    """Ask whether tasks for these queues can be sent or, with `everything`, whether any right is missing.

    `everything` covers what senders, workers and tools do. Returns the error of a server whose memory is full, else
    None. Raises NoPermissionError with all rights that the user lacks, or what redis-py raises if the server accepts
    nothing now.
    """
    connection = channel.pool.get_connection()
    try:
        # MULTI is sent alone: if it were refused, the other commands would really run.
        lacking, full = _try(connection, [("", ("MULTI",))])
        if not lacking:
            lacking, full = _try(connection, [*_commands(channel, queues, everything), ("", ("DISCARD",))])
    except BaseException:
        connection.disconnect()
        raise
    finally:
        channel.pool.release(connection)
    if lacking and not everything:
        # Whoever has to grant rights wants the complete list.
        return examine(channel, queues, everything=True)
    if lacking:
        raise refusal(connection.username, *lacking)
    return full


def refusal(user: str | None, *rights: str) -> NoPermissionError:
    """Return an error that says how to grant the user these rights."""
    user = user or "default"
    told = f"Redis does not let its user {user} do what tasks need. To allow it: ACL SETUSER {user} {' '.join(rights)}"
    return NoPermissionError(told)


def lacking_right(error: NoPermissionError, keys: str) -> str:
    """Return the missing right in the notation of ACL SETUSER: the command or, if that is allowed, these keys."""
    found = FORBIDDEN.search(str(error))
    return f"+{found[1].lower()}" if found else keys


def _try(connection: Any, commands: list[Command]) -> tuple[dict[str, None], OutOfMemoryError | None]:
    """Send the commands. Return the rights that are missing, and the error if the memory is full."""
    connection.send_packed_command(connection.pack_commands([words for _, words in commands]))
    lacking, full = {}, None
    for keys, _ in commands:
        try:
            connection.read_response()
        except NoPermissionError as error:
            lacking[lacking_right(error, keys)] = None
        except OutOfMemoryError as error:
            full = error
        except ResponseError as error:
            # A transaction refuses WATCH, for example, but only after the server has checked the rights.
            if error.status_code != "ERR":
                raise
    return lacking, full


def _commands(channel: Any, queues: Iterable[str], everything: bool) -> list[Command]:
    prefix, topics = channel.global_keyprefix, channel.keyprefix_fanout
    names = {f"~{prefix}{queue}*": QUEUE_OF_SENDER for queue in queues}
    names |= {f"~{prefix}_kombu.binding*": BINDING_OF_SENDER, "": NO_KEY_OF_SENDER}
    if everything:
        names = {keys: QUEUE for keys in names} | {
            f"~{prefix}*.celery.pidbox*": QUEUE,
            f"~{prefix}celeryev.*": QUEUE,
            f"~{prefix}{channel.unacked_key}": RECORD,
            f"~{prefix}{channel.unacked_index_key}": INDEX,
            f"~{prefix}{channel.unacked_mutex_key}": MUTEX,
            f"~{prefix}_kombu.binding*": BINDING,
            f"&{prefix}{topics}celery.pidbox": TOPIC,
            f"&{prefix}{topics}celeryev/*": TOPIC,
            f"&{prefix}{topics}celeryev/worker.*": TOPIC,
            "": NO_KEY,
        }
    return [
        (keys, tuple(keys[1:] if word == "*" else word for word in command.split(" ")))
        for keys, commands in names.items()
        for command in commands.split(", ")
    ]

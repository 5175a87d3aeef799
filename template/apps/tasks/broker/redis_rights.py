"""Which rights tasks need on Redis and Valkey, and whether the server would take a task now.

A command that is queued in a transaction is judged at once: whether its user may run it on these keys, and whether the
server takes it, which a replica or one without memory does not. The transaction is discarded, so nothing happens.
"""

import re
from collections.abc import Iterable
from typing import Any

from redis.exceptions import NoPermissionError, OutOfMemoryError, ResponseError

# What ACL SETUSER calls the keys or the channel of a command, and the words of the command.
Command = tuple[str, tuple[str, ...]]
# What those who send use each kind of key for, `*` being its name.
QUEUE_OF_SENDER = "LPUSH * x, LLEN *, LTRIM * 0 0, PEXPIRE * 1"
BINDING_OF_SENDER = "SADD * x, SMEMBERS *"
# What all together use each kind of key or channel for.
QUEUE = f"{QUEUE_OF_SENDER}, RPUSH * x, RPOP *, BRPOP * 1, EXISTS *, DEL *"
BINDING = f"{BINDING_OF_SENDER}, SREM * x, EXISTS *, DEL *, ZADD * 0 x, ZREM * x, ZRANGEBYSCORE * 0 0"
RECORD = "WATCH *, HSET * x x, HGET * x, HDEL * x"
INDEX = "ZADD * 0 x, ZREM * x, ZRANGE * 0 0"
MUTEX = "SET * x, GET *, DEL *"
TOPIC = "PUBLISH * x, PSUBSCRIBE *, PUNSUBSCRIBE *"
NO_KEY = "PING, SELECT 0, TIME, UNWATCH, EVAL x 0, EVALSHA x 0, SCRIPT EXISTS x, SCRIPT LOAD x"
# What the server says where the command is forbidden, and not its keys or its channel.
FORBIDDEN = re.compile(r"to run the '([^']+)' command")


def examine(channel: Any, queues: Iterable[str], everything: bool) -> OutOfMemoryError | None:
    """Ask whether tasks for these queues can be sent or, with `everything`, whatever senders, workers and tools do.

    Returns the error of a server whose memory is full. Raises NoPermissionError with all that its user lacks, and what
    redis-py raises where the server takes nothing now.
    """
    connection = channel.pool.get_connection()
    try:
        # Alone: if it were refused, the others would be run.
        lacking, full = _try(connection, [("", ("MULTI",))])
        if not lacking:
            lacking, full = _try(connection, [*_commands(channel, queues, everything), ("", ("DISCARD",))])
    except BaseException:
        connection.disconnect()
        raise
    finally:
        channel.pool.release(connection)
    if lacking and not everything:
        # Whoever has to grant rights wants to hear of all of them.
        return examine(channel, queues, everything=True)
    if lacking:
        raise refusal(connection.username, *lacking)
    return full


def refusal(user: str | None, *rights: str) -> NoPermissionError:
    """Return an error that says how to give the user these rights."""
    user = user or "default"
    told = f"Redis does not let its user {user} do what tasks need. To allow it: ACL SETUSER {user} {' '.join(rights)}"
    return NoPermissionError(told)


def lacking_right(error: NoPermissionError, keys: str) -> str:
    """Return what ACL SETUSER calls the right that was missing: the command or, if not that, these keys."""
    found = FORBIDDEN.search(str(error))
    return f"+{found[1].lower()}" if found else keys


def _try(connection: Any, commands: list[Command]) -> tuple[dict[str, None], OutOfMemoryError | None]:
    """Send the commands; return the rights that are missing, and the error of a full memory."""
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
            # A transaction does not take WATCH, for example; but that is said after the rights were looked at.
            if error.status_code != "ERR":
                raise
    return lacking, full


def _commands(channel: Any, queues: Iterable[str], everything: bool) -> list[Command]:
    prefix, topics = channel.global_keyprefix, channel.keyprefix_fanout
    names = {f"~{prefix}{queue}*": QUEUE_OF_SENDER for queue in queues}
    names[f"~{prefix}_kombu.binding*"] = BINDING_OF_SENDER
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

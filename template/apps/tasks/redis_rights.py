"""Which rights tasks need on Redis and Valkey, and which of them a user lacks.

A command that is queued in a transaction is checked at once, for the right to it and for those on its keys, and when
the transaction is discarded nothing has happened. So the server itself says what its user may do.
"""

import re
from collections.abc import Iterable
from typing import Any

from redis.exceptions import NoPermissionError, ResponseError

# A command with the key or the channel that it is tried on.
Command = tuple[str | int, ...]
# What a list of rights calls the keys or the channel, and the commands that are used on them.
Right = tuple[str, tuple[Command, ...]]

# What Redis says where the command itself is forbidden, and not its keys or its channel.
COMMAND = re.compile(r"to run the '([^']+)' command")


def to_send(queue: str, bell: str) -> Right:
    """Return the right to send tasks to a queue, by the names of its keys."""
    return f"~{queue}*", (("LPUSH", queue, ""), ("LPUSH", bell, ""), ("LTRIM", bell, 0, 0), ("PEXPIRE", bell, 1))


def to_take(queue: str, bell: str) -> Right:
    """Return the right to take tasks from a queue, and to give them back."""
    return f"~{queue}*", (("RPOP", queue), ("BRPOP", bell, 1), ("RPUSH", queue, ""), ("LLEN", queue))


def to_keep_records(prefix: str) -> Right:
    """Return the right to the records of what is not acknowledged."""
    records, index, mutex = f"{prefix}unacked", f"{prefix}unacked_index", f"{prefix}unacked_mutex"
    return f"~{prefix}unacked*", (
        *(("WATCH", records), ("HSET", records, "", ""), ("HGET", records, ""), ("HDEL", records, "")),
        *(("ZADD", index, 0, ""), ("ZREM", index, ""), ("ZRANGE", index, 0, 0)),
        *(("SET", mutex, ""), ("GET", mutex), ("DEL", mutex)),
    )


def to_talk(prefix: str, database: int) -> list[Right]:
    """Return the rights to ask workers, as `celery inspect` does, and to hear of one another."""
    bindings, mailbox, events = f"{prefix}_kombu.binding", f"{prefix}a.celery.pidbox", f"{prefix}celeryev.a"
    topic = f"{prefix}/{database}.celery.pidbox"
    return [
        (
            f"~{prefix}_kombu.*",
            (
                *(("SADD", bindings, ""), ("SREM", bindings, ""), ("SMEMBERS", bindings), ("EXISTS", bindings)),
                *(("ZADD", bindings, 0, ""), ("ZREM", bindings, ""), ("ZRANGEBYSCORE", bindings, 0, 0)),
            ),
        ),
        (f"~{prefix}*.celery.pidbox*", (("LPUSH", mailbox, ""), ("BRPOP", mailbox, 1), ("DEL", mailbox))),
        (f"~{prefix}celeryev*", (("LPUSH", events, ""), ("BRPOP", events, 1), ("DEL", events))),
        (f"&{topic}", (("PUBLISH", topic, ""), ("PSUBSCRIBE", topic), ("PUNSUBSCRIBE", topic))),
    ]


def of_no_key(database: int) -> Right:
    """Return the right to the commands that concern no key, or run a script."""
    scripts = (("EVAL", "return 0", 0), ("EVALSHA", "", 0), ("SCRIPT|EXISTS", ""), ("SCRIPT|LOAD", "return 0"))
    return "", (("PING",), ("SELECT", database), ("TIME",), ("UNWATCH",), ("EXEC",), ("DISCARD",), *scripts)


def acl(rights: Iterable[Right]) -> list[str]:
    """Return the rights as the words of ACL SETUSER."""
    rights = list(rights)
    commands = {f"+{str(command[0]).lower()}" for _, commands in rights for command in commands}
    return [*dict.fromkeys(keys for keys, _ in rights if keys), "+multi", *sorted(commands)]


def missing(connection: Any, rights: Iterable[Right]) -> list[str]:
    """Let the server check the rights; return those that its user lacks, as words of ACL SETUSER.

    Nothing is run. The connection, one of redis-py, is closed afterwards. Raises what it raises where the server is
    away or takes nothing now.
    """
    # Alone: if it were refused, the others would be run.
    tried = [("", ("MULTI",))]
    try:
        lacking = _refusals(connection, tried)
        if not lacking:
            tried = [(keys, command) for keys, commands in rights for command in commands if command != ("EXEC",)]
            lacking = _refusals(connection, tried)
    finally:
        connection.disconnect()
    return list(dict.fromkeys(lacking))


def _refusals(connection: Any, tried: list[tuple[str, Command]]) -> list[str]:
    commands = [(*str(name).split("|"), *arguments) for _, (name, *arguments) in tried]
    connection.send_packed_command(connection.pack_commands(commands))
    refusals = []
    for keys, (name, *_) in tried:
        try:
            connection.read_response()
        except NoPermissionError as error:
            refusals.append(_word(str(error), keys, str(name)))
        except ResponseError:
            # A transaction does not take WATCH, for example; but that is said after the rights were checked.
            pass
    return refusals


def _word(refusal: str, keys: str, name: str) -> str:
    return f"+{name.lower()}" if COMMAND.search(refusal) or not keys else keys

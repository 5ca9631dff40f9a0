"""Send commands over a connection and read their replies, those of a batch within one deadline."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import hiredis
import redis
from redis.exceptions import InvalidResponse

from etl.cache import resp


def ping(connection: Any) -> None:
    """See that the server answers.

    Raises:
        RedisError: it does not, or not with PONG.
    """
    (pong,) = ask(connection, ("PING",))
    if isinstance(pong, redis.ResponseError):
        raise pong
    if pong != b"PONG":
        raise InvalidResponse("PING was answered, but not with PONG")


def try_command(connection: Any, *command: str) -> Any:
    """Send what a server or a proxy may not know, and return its reply or error.

    Where it hangs up on the command, as some do, and still answers a PING, that is an error too.
    """
    hung_up: redis.RedisError | None = None
    for _ in range(2):
        ping(connection)
        try:
            return ask(connection, command)[0]
        except (redis.ConnectionError, redis.TimeoutError) as error:
            hung_up = error
    return hung_up


def ask(connection: Any, *commands: Sequence[str]) -> list[Any]:
    """Send commands in one piece and return their replies, errors among them.

    After an exception of any other kind the connection is closed, since replies may be left.
    """
    try:
        send(connection, *commands)
        return list(replies(connection, len(commands)))
    except BaseException:
        connection.disconnect()
        raise


def send(connection: Any, *commands: Sequence[str]) -> None:
    """Send commands in one piece."""
    send_packed(connection, b"".join(map(hiredis.pack_command, commands)))


def send_packed(connection: Any, packed: bytes) -> None:
    """Send commands as bytes; `connect`, which asks Sentinel, is called by no method that sends."""
    if not connection.is_connected:
        connection.connect()
    connection.send_packed_command([packed])


def replies(connection: Any, count: int) -> Iterator[Any]:
    """Read so many replies within one deadline; what the server refuses is among them."""
    deadline = time.monotonic() + resp.REPLY_SECONDS
    for _ in range(count):
        yield _reply(connection, deadline)


def refusals(connection: Any, count: int) -> Iterator[tuple[int, Any]]:
    """Read so many replies within one deadline; yield number and reply of each that is not OK."""
    deadline = time.monotonic() + resp.REPLY_SECONDS
    parser, done = connection._parser, 0
    try:
        while done < count:
            parser.most_oks = count - done
            reply = _reply(connection, deadline)
            if not isinstance(reply, resp.Oks) and reply != b"OK":
                yield done, reply
            done += reply if isinstance(reply, resp.Oks) else 1
    finally:
        parser.most_oks = 1


def _reply(connection: Any, deadline: float) -> Any:
    if time.monotonic() > deadline:
        raise redis.TimeoutError(f"Timeout: {resp.REPLY_SECONDS:g} s were not enough for an answer")
    try:
        return connection.read_response()
    except redis.ResponseError as error:
        return error

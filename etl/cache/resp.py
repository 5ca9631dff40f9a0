"""Replies of a Redis server, read within a deadline and a size, whatever the server sends.

redis-py by itself waits as long as a byte comes now and then, believes every length it is told,
and hands on what a server says of the arguments it was sent.
"""

from __future__ import annotations

import io
import select
import time
from typing import TYPE_CHECKING, Any

import redis
from redis._parsers.base import BaseParser  # it knows which error is which
from redis.exceptions import InvalidResponse

from etl.cache.refusals import told

if TYPE_CHECKING:
    import socket

# What a reply may take, or all replies to one batch. A server that is silent is given up sooner,
# by the timeout of its socket.
REPLY_SECONDS = 10.0

# What a reply may be, each of its values with what Python needs beside: a thousand values of the
# mart are some 100 kB.
_REPLY_BYTES = 64 << 20
_VALUE_BYTES = 64
_LINE_BYTES = 64 << 10
_DEPTH = 8  # lists in lists

_OK = b"+OK\r\n"
_MANY_OKS = _OK * 16_384  # more than the buffer of a connection holds


class Reader(BaseParser):
    """A parser for redis-py's connections; of RESP2, which every server and proxy speaks."""

    most_oks = 1  # from 2 on, so many OKs in a row may be returned as one `Oks`

    def __init__(self, socket_read_size: int) -> None:
        """Read so many bytes at a time."""
        self._read_size = socket_read_size
        self._source: _Source | None = None

    def on_connect(self, connection: Any, **_: Any) -> None:
        """Read from the socket of a connection."""
        self._source = _Source(connection._sock, connection.socket_timeout)
        self._buffer = io.BufferedReader(self._source, self._read_size)

    def on_disconnect(self) -> None:
        """Forget what is not read."""
        self._source = None

    def can_read(self, timeout: float = 0) -> bool:
        """Whether something came that nobody asked for, or the server hung up."""
        if self._source is None or not self._source.is_ready(timeout):
            return False
        self._source.deadline = time.monotonic() + 0.001
        try:
            self._buffer.peek(1)
        except TimeoutError:  # what came is TLS's own, such as a session ticket
            return False
        return True

    def read_response(self, disable_decoding: bool = False, timeout: object = None) -> Any:
        """Return one reply, which may be a ResponseError.

        Raises:
            InvalidResponse: what came is not RESP2, or is too large.
            ConnectionError: the server hung up, or may not be talked to (yet).
            TimeoutError: it did not say all of it in time.
        """
        if self._source is None:
            raise _hung_up()
        self._source.deadline = None
        if self.most_oks > 1 and (oks := self._read_oks()):
            return oks
        line = self._buffer.readline(_LINE_BYTES)
        if line == _OK:
            return b"OK"
        self._room = _REPLY_BYTES
        reply = self._parsed(line, _DEPTH)
        if isinstance(reply, redis.ConnectionError):
            raise reply
        return reply

    def _read_oks(self) -> Oks:
        """Read the OKs that have come and that nothing else comes before."""
        head = self._buffer.peek(1)
        count = min(len(head) // len(_OK), self.most_oks)
        while count and head[: count * len(_OK)] != _MANY_OKS[: count * len(_OK)]:
            count //= 2
        self._buffer.read(count * len(_OK))
        return Oks(count)

    def _parsed(self, line: bytes, depth: int) -> Any:
        """Return the reply that begins with a line."""
        kind = line[:1]
        self._room -= len(line) + _VALUE_BYTES
        if line[-2:] != b"\r\n":
            raise _malformed() if len(line) == _LINE_BYTES else _hung_up()
        if kind in b"+-" and self._room > 0:
            return line[1:-2] if kind == b"+" else self._error(line[1:-2])
        try:
            number = int(line[1:])
        except ValueError:
            raise _malformed() from None
        if kind == b":":
            return number
        if number < 0:
            return None
        if kind == b"*" and depth and number * _VALUE_BYTES < self._room:
            readline = self._buffer.readline
            return [self._parsed(readline(_LINE_BYTES), depth - 1) for _ in range(number)]
        self._room -= number
        if kind != b"$" or self._room < 0:
            raise _malformed()
        value = self._buffer.read(number + 2)
        if len(value) < number + 2:
            raise _hung_up()
        return value[:-2]

    def _error(self, line: bytes) -> redis.RedisError:
        """Return an error of the kind that redis-py makes of it, in words of ours."""
        text = line.decode(errors="replace")
        parse: Any = self.parse_error
        try:
            error: redis.RedisError = parse(text)
        except ValueError:  # MOVED or ASK without a slot and an address
            error = redis.ResponseError()
        error.args = (told(text),)
        return error


class Oks(int):
    """So many times OK in a row."""


class _Source(io.RawIOBase):
    """The bytes of a socket, up to a deadline that the first wait sets."""

    deadline: float | None = None

    def __init__(self, sock: socket.socket, silence: float) -> None:
        self._socket, self._silence = sock, silence

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        now = time.monotonic()
        self.deadline = self.deadline or now + REPLY_SECONDS
        if now >= self.deadline:
            raise TimeoutError
        self._socket.settimeout(min(self.deadline - now, self._silence))
        try:
            return self._socket.recv_into(buffer)
        finally:
            self._socket.settimeout(self._silence)

    def is_ready(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(seconds * 1000))


def _hung_up() -> redis.RedisError:
    return redis.ConnectionError("Connection closed by server.")


def _malformed() -> redis.RedisError:
    return InvalidResponse("the answer is none of a Redis server, or too long")

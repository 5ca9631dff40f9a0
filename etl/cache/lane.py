"""One pipelined connection to a node, with the batches of keys that it has not confirmed yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

import redis
from redis.exceptions import InvalidResponse

from etl.cache.exchange import refusals, replies, send_packed
from etl.cache.topology import Batch

Refusals: TypeAlias = list[tuple[tuple[str, bytes], Exception]]

_ASKING = b"*1\r\n$6\r\nASKING\r\n"

# How many milliseconds a replica may take to confirm a batch; usual are a few.
_WAIT = b"*3\r\n$4\r\nWAIT\r\n$1\r\n1\r\n$4\r\n1000\r\n"


class NotReplicatedError(redis.RedisError):
    """Whether a replica has what was sent cannot be seen."""


class ReplicaBehindError(NotReplicatedError, redis.ConnectionError):
    """No replica has what was sent: the node is being replaced, or its replicas are behind."""


class Sent(NamedTuple):
    """A batch, and which commands go with its own."""

    batch: Batch
    asking: bool  # ASKING goes before each command
    wait: bool  # WAIT goes after the last one


class Lane:
    """Sends batches with a TTL, and reads what became of them, the oldest first.

    `command` is MSETEX or SET. With `wait` a batch counts when a replica has it too, because a
    failover would lose it otherwise.
    """

    def __init__(self, connection: Any, command: str, ttl: int, *, wait: bool) -> None:
        """Connect at the first need; the connection is this lane's own."""
        self._connection, self._command = connection, command
        self._expiry = _bulk(b"EX") + _bulk(b"%d" % ttl)
        self._wait = wait
        self._queue: deque[Sent] = deque()
        self._sent = 0  # so many of the queue are on their way

    def __len__(self) -> int:
        """Return how many batches are not confirmed."""
        return len(self._queue)

    def add(self, batch: Batch, *, asking: bool) -> None:
        """Queue a batch."""
        self._queue.append(Sent(batch, asking, self._wait))

    def send_all(self) -> None:
        """Send what is queued and not yet on its way."""
        for one in islice(self._queue, self._sent, None):
            send_packed(self._connection, self._pack(one))
            self._sent += 1

    def read_oldest(self) -> tuple[int, Refusals]:
        """Return how many keys of the oldest batch are written, and the others with the error."""
        sent = self._queue[0]
        refused = list(self._refusals(sent))
        if sent.wait:
            self._read_wait()
        self._queue.popleft()
        self._sent -= 1
        return len(sent.batch) - len(refused), refused

    def close(self) -> list[Batch]:
        """Hang up, and return the batches that are not confirmed."""
        self._connection.disconnect()
        return [one.batch for one in self._queue]

    def _pack(self, sent: Sent) -> bytes:
        """Return the commands as bytes, which is twice as fast as to pack them one by one."""
        pairs = [(key.encode(), value) for key, value in sent.batch]
        wait = _WAIT if sent.wait else b""
        if self._command == "MSETEX":
            texts = [b"$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(k), k, len(v), v) for k, v in pairs]
            begin = b"*%d\r\n$6\r\nMSETEX\r\n%b" % (len(pairs) * 2 + 4, _bulk(b"%d" % len(pairs)))
            return b"".join([begin, *texts, self._expiry, wait])
        end, asking = self._expiry, _ASKING if sent.asking else b""
        texts = [
            b"%b*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n%b"
            % (asking, len(k), k, len(v), v, end)
            for k, v in pairs
        ]
        return b"".join([*texts, wait])

    def _refusals(self, sent: Sent) -> Iterator[tuple[tuple[str, bytes], Exception]]:
        """Read the replies to a batch, and yield each key that is not written, with the error."""
        if self._command == "MSETEX":
            (reply,) = replies(self._connection, 1)
            if reply != 1:
                yield from ((pair, self._error(reply)) for pair in sent.batch)
        elif sent.asking:
            found = list(replies(self._connection, 2 * len(sent.batch)))
            for pair, asking, reply in zip(sent.batch, found[::2], found[1::2], strict=True):
                if (asking, reply) != (b"OK", b"OK"):
                    yield pair, self._error(reply if asking == b"OK" else asking)
        else:
            for number, reply in refusals(self._connection, len(sent.batch)):
                yield sent.batch[number], self._error(reply)

    def _error(self, reply: Any) -> Exception:
        if isinstance(reply, redis.ResponseError):
            return reply
        # The reply may be anything, a password as well.
        return InvalidResponse(f"{self._command} was not answered as it is")

    def _read_wait(self) -> None:
        """See that a replica has the batch, and all before it."""
        (reply,) = replies(self._connection, 1)
        if isinstance(reply, redis.ResponseError) and not str(reply).startswith("UNBLOCKED"):
            raise NotReplicatedError("WAIT is refused, allow +wait")
        if not isinstance(reply, int) or not reply:
            raise ReplicaBehindError("no replica confirmed the keys in time")


def _bulk(text: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(text), text)

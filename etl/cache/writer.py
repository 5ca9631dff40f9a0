"""One connection to Redis with batches of keys on their way, sent again when it is lost."""

from __future__ import annotations

from collections import deque
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import hiredis
import redis
from redis.exceptions import InvalidResponse

from etl.cache.errors import passes
from etl.cache.resp import replies, try_command
from etl.plumbing import cancellation
from etl.plumbing.retry import retry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_T = TypeVar("_T")

Batch: TypeAlias = list[tuple[str, bytes]]

# Batches whose replies are not awaited: the server works at them while the next one is built.
_AHEAD = 4


class Pipe:
    """Sets keys, and counts exactly what was written.

    `failure` is the first error with which the server refused a key or a batch; `command` is
    how the keys are set: MSETEX, a batch in one and all of it or nothing, or SET, one by one.
    """

    def __init__(self, client: redis.Redis, ttl: int, retry_seconds: float) -> None:
        """Connect at the first need; `ttl` is in seconds, as is how long to try again."""
        self.written = 0
        self.failure: Exception | None = None
        self.command = "SET"
        self._client: Any = client
        self._ttl, self._retry_seconds = ttl, retry_seconds
        # One that the client knows nothing of, so that it hands nobody a reply left unread.
        self._connection: Any = client.connection_pool.make_connection()
        self._waiting: deque[Batch] = deque()  # for their replies; of these so many are sent:
        self._sent = 0

    def settled(self, batches: Iterable[Batch]) -> Iterator[int]:
        """Send batches until one is refused; yield after each how many keys are written.

        Raises:
            RedisError: the server is lost and did not come back in time.
        """
        self.command = persist(self._fastest, self._retry_seconds)
        for batch in batches:
            self._waiting.append(batch)
            if len(self._waiting) > _AHEAD:
                yield self._settle()
            if self.failure:
                break
        while self._waiting:  # after a failure as well: what is on its way has to be counted
            yield self._settle()

    def close(self) -> None:
        """Hang up, and with it forget the replies that are not read."""
        self._sent = 0
        self._connection.disconnect()

    def _fastest(self) -> str:
        """MSETEX where the server knows it and the user may, which to set no keys tells.

        Asked on another connection, for some proxies hang up on what they do not know. Not in
        a cluster: Valkey's MSETEX sets keys of any slot on any node.
        """
        if self._client.mode != "standalone":
            return "SET"
        connection = self._client.connection_pool.make_connection()
        try:
            refusal = try_command(connection, "MSETEX", "0", "", "")
        finally:
            connection.disconnect()
        return "MSETEX" if "numkeys" in str(refusal) else "SET"

    def _settle(self) -> int:
        written, failure = persist(self._exchange, self._retry_seconds)
        self.written += written
        self.failure = self.failure or failure
        return self.written

    def _exchange(self) -> tuple[int, Exception | None]:
        """Send what is not on its way yet, and read what became of the oldest batch."""
        try:
            for batch in islice(self._waiting, self._sent, None):
                self._connection.send_packed_command([self._packed(batch)])
                self._sent += 1
            outcome = self._outcome(len(self._waiting[0]))
        except BaseException:
            self.close()  # the next attempt sends all that wait
            raise
        self._waiting.popleft()
        self._sent -= 1
        return outcome

    def _packed(self, batch: Batch) -> bytes:
        # No int among the arguments: Python answers signals while it makes text of one, and
        # hiredis 3.5 crashes on the exception.
        ttl = str(self._ttl)
        if self.command == "MSETEX":
            pairs = chain.from_iterable(batch)
            command = ("MSETEX", str(len(batch)), *pairs, "EX", ttl)
            packed: bytes = hiredis.pack_command(command)
            return packed
        return b"".join(hiredis.pack_command(("SET", *pair, "EX", ttl)) for pair in batch)

    def _outcome(self, keys: int) -> tuple[int, Exception | None]:
        """How many keys of the oldest batch are written, and the first error."""
        count, each, fine = (1, keys, 1) if self.command == "MSETEX" else (keys, 1, b"OK")
        written = 0
        failure: Exception | None = None
        for reply in replies(self._connection, count):
            if reply == fine:
                written += each
            elif isinstance(reply, redis.ResponseError):
                if passes(reply):
                    raise reply
                failure = failure or reply
            else:  # which may be anything, a password as well
                failure = failure or InvalidResponse(f"{self.command} was not answered as it is")
        return written, failure


def persist(work: Callable[[], _T], seconds: float) -> _T:
    """Do what may be done again, for so long, while the server is lost or not yet ready."""
    cancellation.check()
    return retry(work, seconds, passes, "redis.lost")

"""Set keys on one server or a cluster, and send again what a node has not confirmed."""

from __future__ import annotations

from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from redis.exceptions import AskError, ClusterDownError

from etl.cache.errors import is_retryable
from etl.cache.exchange import try_command
from etl.cache.lane import Lane, NotReplicatedError, Refusals
from etl.plumbing import cancellation
from etl.plumbing.retry import retry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from etl.cache.topology import Batch, Cluster, SingleServer

_T = TypeVar("_T")

# Batches that a node works at while the next ones are built.
_MAX_IN_FLIGHT = 4

# How often keys follow MOVED or ASK at once; then the nodes get time to agree.
MAX_REDIRECTS = 5


class RedisWriter:
    """Sets keys, and counts exactly what was written.

    `failure` is the first error with which a node refused a key for good. `command` is how the
    keys are set: MSETEX, a batch in one and all of it or nothing, or SET, one by one. `doubt`
    says why a failover may lose keys that are counted.
    """

    def __init__(
        self, topology: SingleServer | Cluster, mode: str, ttl: int, retry_seconds: float
    ) -> None:
        """Connect at the first need; `ttl` is in seconds, as is how long to try again."""
        self.written = 0
        self.failure: Exception | None = None
        self.command = ""
        self.doubt: str | None = None
        self._topology, self._mode, self._ttl = topology, mode, ttl
        self._retry_seconds = retry_seconds
        self._lanes: dict[str, Lane] = {}
        self._pending: list[Batch] = []  # what is in no lane: new, or not confirmed by its node

    def write_batches(self, batches: Iterable[Batch]) -> Iterator[int]:
        """Send batches until a key is refused; yield after some how many keys are written.

        Raises:
            RedisError: a node is lost, and neither it nor another in its place came in time.
        """
        batches = iter(batches)
        while self.failure is None and (group := list(islice(batches, self._topology.width))):
            self._pending += group
            yield self._advance(_MAX_IN_FLIGHT)
        yield self._advance(0)  # after a failure as well: what is in flight has to be counted

    def close(self) -> None:
        """Hang up, and with it forget the replies that are not read."""
        for lane in self._lanes.values():
            lane.close()

    def _advance(self, most: int) -> int:
        work = partial(self._exchange, most)
        in_cluster = self._topology.is_cluster
        try:
            retry_redis(work, self._retry_seconds, in_cluster=in_cluster)
        except NotReplicatedError as error:  # the node itself has what it confirmed
            self.doubt = str(error)
            for node in list(self._lanes):
                self._pending += self._lanes.pop(node).close()
            retry_redis(work, self._retry_seconds, in_cluster=in_cluster)
        return self.written

    def _exchange(self, most: int) -> None:
        """Send what is pending, then read until each node has at most so many batches in flight.

        Raises:
            Exception: why some keys are pending again.
        """
        self.command = self.command or self._probe_command()
        for _ in range(MAX_REDIRECTS):
            self._hand_out()
            causes = [self._guard(node, Lane.send_all) for node in list(self._lanes)]
            drain = partial(self._drain, most)
            causes += [self._guard(node, drain) for node in list(self._lanes)]
            cause = next((one for one in causes if one and not isinstance(one, AskError)), None)
            if cause:
                raise cause
            if not any(causes):
                return
        raise ClusterDownError("the nodes do not agree on which of them has a slot")

    def _hand_out(self) -> None:
        """Put what is pending into the lanes of its nodes."""
        routes = self._topology.split(self._pending)
        lanes = [self._lane(route.node) for route, _ in routes]
        for lane, (route, batch) in zip(lanes, routes, strict=True):
            lane.add(batch, asking=route.asking)
        self._pending = []

    def _lane(self, node: str) -> Lane:
        if node not in self._lanes:
            connection = self._topology.connection(node)
            wait = self.doubt is None and self._topology.replicas(node) > 0
            self._lanes[node] = Lane(connection, self.command, self._ttl, wait=wait)
        return self._lanes[node]

    def _guard(self, node: str, work: Callable[[Lane], Exception | None]) -> Exception | None:
        """Do the work; when the node is lost take back what it has not confirmed.

        Returns:
            Why keys are pending again.
        """
        lane = self._lanes.get(node)
        if lane is None:
            return None
        try:
            return work(lane)
        except Exception as error:
            self._pending += lane.close()
            del self._lanes[node]
            self.command = ""  # what comes back may be another version
            if not is_retryable(error):
                raise
            self._topology.note(error)
            return error

    def _drain(self, most: int, lane: Lane) -> Exception | None:
        """Read replies until at most so many batches are in flight."""
        cause = None
        while len(lane) > most:
            written, refused = lane.read_oldest()
            self.written += written
            cause = self._sort(refused) or cause
        return cause

    def _sort(self, refused: Refusals) -> Exception | None:
        """Make what another attempt may write pending; the first other error is the failure."""
        cause = None
        again = []
        for pair, error in refused:
            if is_retryable(error, in_cluster=self._topology.is_cluster):
                again.append(pair)
                self._topology.note(error, pair[0])
                cause = error
            else:
                self.failure = self.failure or error
        self._pending += [again] if again else []
        return cause

    def _probe_command(self) -> str:
        """Return MSETEX where the server knows it and the user may, which to set no keys tells.

        On another connection, because some proxies hang up on what they do not know. Never in a
        cluster, because Valkey's MSETEX sets keys of any slot on any node.
        """
        if self._mode != "standalone":
            return "SET"
        connection = self._topology.connection("")
        try:
            refusal = try_command(connection, "MSETEX", "0", "", "")
        finally:
            connection.disconnect()
        return "MSETEX" if "numkeys" in str(refusal) else "SET"


def retry_redis(work: Callable[[], _T], seconds: float, *, in_cluster: bool = False) -> _T:
    """Do what may be done again, for so long, while a server is lost or not yet ready."""
    cancellation.check()
    return retry(work, seconds, partial(is_retryable, in_cluster=in_cluster), "redis.lost")

"""The destinations as the bench sees them: emptied before a case, checked after it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import hiredis
import redis
from contenders import WrongError, output

from demo.embedded import Servers

COLUMNS = "user_id, segment, total_searches, total_conversions, lifetime_value"

# DIGEST of marts.py in Postgres.
DIGEST = f"""
    SELECT count(*) || ' ' || coalesce(sum(('x' || left(md5(concat_ws('|', {COLUMNS})), 8)
    )::bit(32)::bigint), 0) FROM """


class Database:
    """Postgres through the wheel's psql, so that the bench needs no driver of its own."""

    def __init__(self, servers: Servers) -> None:
        """Use the command line that the demo shows to people."""
        program, url = shlex.split(servers.psql)
        self.psql = [program, "-qAtX", "-v", "ON_ERROR_STOP=1", url]
        self.admin = [*self.psql[:-1], url.replace("//airflow@", "//postgres@")]
        password = servers.environment["POSTGRES_PASSWORD"]
        self.uri = url.partition("?")[0].replace("airflow@", f"airflow:{password}@")

    def run(self, *statements: str) -> str:
        """Run each statement in a transaction of its own, as the superuser."""
        commands = [text for statement in statements for text in ("-c", statement)]
        return output([*self.admin, *commands], {}).strip()

    def rest(self, table: str) -> None:
        """Leave nothing for the next case to wait for."""
        self.run(f"VACUUM (ANALYZE) {table}", "CHECKPOINT")

    def empty(self, table: str) -> None:
        """Empty the table; the ledger as well, for it remembers how large the mart was."""
        self.run(f"TRUNCATE {table}, etl.sync_runs")
        self.rest(table)

    def send(self) -> None:
        """Have every mail of the queue sent just now, so that cooldowns and gaps hold."""
        self.run("UPDATE crm.email_queue SET status = 'sent', sent_at = now(), attempts = 1")
        self.rest("crm.email_queue")

    def expect(self, table: str, digest: str) -> None:
        """Check that the table holds these very rows."""
        found = self.run(DIGEST + table)
        if found != digest:
            raise WrongError(f"{table} holds (rows, checksum) {found}, the mart {digest}")

    def copy(self, table: str, way: str) -> list[str]:
        r"""Make the command line of a binary \copy, `way` being "FROM 'file'" or "TO 'file'"."""
        return [*self.psql, "-c", f"\\copy {table} {way} (FORMAT binary)"]


class Keys:
    """One database of the Redis server."""

    def __init__(self, servers: Servers, number: int) -> None:
        """Connect to database `number`, of which each contender has one."""
        self.number = number
        self.client = redis.Redis(port=servers.redis_port, db=number)

    def empty(self) -> None:
        """Forget all keys of this database, and wait until the server has freed them.

        Without SYNC a thread of it frees them beside the case that follows: after ten million
        keys a load of a million took twice its time.
        """
        self.client.execute_command("FLUSHDB", "SYNC")

    def keep(self) -> None:
        """Leave the keys as they are."""

    def expect(self, users: int, values: dict[str, tuple[list[str], float]]) -> None:
        """Check the number of keys, and some of them to the letter."""
        if (found := self.client.dbsize()) != users:
            raise WrongError(f"Redis holds {found:,} keys, not {users:,}")
        for user_id, (destinations, score) in values.items():
            key = f"reco:{user_id}"
            value = json.loads(self.client.get(key) or b"null")
            # The mean's last place depends on the order of adding.
            same = value and value["destinations"] == destinations
            if not same or abs(value["score"] - score) > 0.00011:
                raise WrongError(f"{key} holds {value}, the mart {destinations}, {score}")
            if not 0 < self.client.ttl(key) <= 24 * 60 * 60:
                raise WrongError(f"{key} expires in {self.client.ttl(key)} s")

    def dump(self, path: Path, into: int) -> int:
        """Write the commands that set the same keys in database `into`; return how many."""
        keys = sorted(self.client.scan_iter(count=10_000))
        with path.open("wb") as file:
            file.write(hiredis.pack_command(("SELECT", into)))
            for start in range(0, len(keys), 10_000):
                part = keys[start : start + 10_000]
                for key, value in zip(part, self.client.mget(part), strict=True):
                    file.write(hiredis.pack_command(("SET", key, value, "EX", 86_400)))
        return len(keys) + 1

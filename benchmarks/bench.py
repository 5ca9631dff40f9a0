"""`make bench`: every case as a whole process, rounds interleaved, medians and ratios.

A case is prepared outside the timing, run by measure.py, and its target checked row by row; with a
wrong result the bench ends with exit code 1. README.md tells how to read the table.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from functools import cache, partial
from pathlib import Path

import contenders
import marts
import pictures
import report
from case import Case, require
from contenders import HERE, RIVALS, Contender, WrongError, output, searchflow
from targets import COLUMNS, Database, Keys

from demo.embedded import Servers, running

# As durable as out of the box, with room enough that no checkpoint and no autovacuum falls into
# a case: both are done between the cases.
SERVER = {
    "shared_buffers": "1GB",
    "max_wal_size": "16GB",
    "checkpoint_timeout": "1h",
    "autovacuum": "off",
}

# The steps of user_segments: the mart, the count that tells, and one row in how many it is.
STEPS = {
    "first load": ("first", "inserted", 1),
    "nothing changed": ("first", "unchanged", 1),
    "1 % changed": ("one_percent", "updated", 100),
    "all changed": ("all", "updated", 1),
    "10 rows": ("ten", "inserted", 1),
}

LARGER = "larger marts"  # of --sizes, for --once

REDIS_DATABASES = {"the limit": 1, "searchflow": 0, "by hand": 2}


def main() -> None:
    """Make the marts, start the servers, run every case, write the table."""
    arguments = _arguments()
    others = contenders.installed(arguments.without)
    with tempfile.TemporaryDirectory(prefix="etl-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the servers may run as another user
        print(f"making marts of {arguments.users:,} users", flush=True)
        files = marts.build(folder, arguments.users, arguments.sizes)
        with running(folder / "servers", settings=SERVER) as servers:
            bench = Bench(servers, folder, files, arguments.users)
            bench.prepare(others)
            cases = [*bench.segments(), *bench.mails(), *bench.recommendations(), *bench.small()]
            sizes = [case for users in arguments.sizes for case in bench.sized(users)]
            failed: list[str] = []
            for number in range(arguments.rounds):
                print(f"round {number + 1} of {arguments.rounds}", flush=True)
                for case in cases + sizes:
                    if number == 0 or not _is_once(case, arguments):
                        failed += _failures(case, folder / "figures.json")
            facts = report.facts(bench.database, bench.keys["searchflow"], others)
    run = [case for case in cases + sizes if case.runs]
    pictures.draw(*report.write(run, facts, arguments))
    if failed:
        raise WrongError("\n".join(failed))


class Bench:
    """The servers with everybody's tables, and the cases on them."""

    def __init__(self, servers: Servers, folder: Path, files: dict[str, Path], users: int) -> None:
        """Look at both servers; settings, telemetry and saving stay out of the seconds."""
        self.folder, self.marts, self.users = folder, files, users
        self.database = Database(servers)
        self.keys = {name: Keys(servers, number) for name, number in REDIS_DATABASES.items()}
        self.keys["searchflow"].client.config_set("save", "")  # no fork of the server in a case
        self.environment = contenders.environment(folder, self.database.uri, servers.environment)
        self.values = cache(lambda mart: marts.some_values(files[mart]))
        self.digest = cache(lambda mart, rows: marts.digest(files[mart], rows))

    def prepare(self, others: Collection[str]) -> None:
        """Make the tables and run everybody once unmeasured: the limits send what came of it."""
        folder = self.folder
        self.others = others
        self.everybody = contenders.postgres(folder, self.database.uri, self.users, others)
        output([sys.executable, "-m", "etl.init_db"], self.environment)
        output([*self.database.psql, "-f", str(HERE / "tables.sql")], self.environment)
        contenders.set_up_drt(folder, self.marts)
        for each in self.everybody:
            output(each.command(self.marts["ten"]), self._with("ten"), each.folder)
        for sync in ("user_segments", "recommendations"):
            output(searchflow(sync), self._with("first"))
        self.segments_file, self.values_file = folder / "segments.copy", folder / "values.resp"
        rows = f"(SELECT {COLUMNS} FROM crm.user_segments ORDER BY user_id)"
        output(self.database.copy(rows, f"TO '{self.segments_file}'"), self.environment)
        self.replies = self.keys["searchflow"].dump(self.values_file, REDIS_DATABASES["the limit"])

    def segments(self) -> Iterator[Case]:
        """Each step of user_segments, by everybody, each with a table of its own."""
        copied = "bench.copied"
        copy = self.database.copy(copied, f"FROM '{self.segments_file}'")
        limit = Contender("the limit", copied, lambda _: copy)
        yield self._segments("first load", limit)
        for step in ("first load", "nothing changed", "1 % changed", "all changed"):
            for contender in self.everybody:
                if not contender.steps or step in contender.steps:
                    yield self._segments(step, contender)

    def mails(self) -> Iterator[Case]:
        """email_triggers, which nobody else has."""
        yield from self._mails("email_triggers", "first", self.users)
        yield Case(
            "email_triggers, every mail sent",
            "searchflow",
            searchflow("email_triggers"),
            self._with("first"),
            self.database.send,
            partial(self._check_mails, "every mail sent"),
            self.users,
        )

    def recommendations(self) -> Iterator[Case]:
        """Recommendations by everybody, each in a Redis database of its own."""
        port, by_hand = self.environment["REDIS_PORT"], [str(REDIS_DATABASES["by hand"])]
        limit = [sys.executable, "-S", str(HERE / "limit_redis.py"), port]
        script = [str(RIVALS / "python"), str(HERE / "by_hand_redis.py"), port]
        commands = {
            "the limit": [*limit, str(self.values_file), str(self.replies)],
            "searchflow": searchflow("recommendations"),
            "by hand": [*script, *by_hand, str(self.marts["first"])],
        }
        present = {"the limit", "searchflow", *self.others}
        for step in ("first load", "repeat"):
            for name in sorted(commands.keys() & present, key=list(commands).index):
                yield self._keys(
                    f"recommendations, {step}", name, commands[name], "first", self.users
                )
        name = "recommendations, rows in no order"
        yield self._keys(name, "searchflow", commands["searchflow"], "scattered", self.users)

    def small(self) -> Iterator[Case]:
        """What is waited for where there is nothing to speak of."""
        for contender in self.everybody:
            yield self._segments("10 rows", contender)
        yield Case(
            "python -m etl --help",
            "searchflow",
            [sys.executable, "-m", "etl", "--help"],
            self.environment,
            lambda: None,
            lambda printed: require("--dry-run" in printed, f"no help in {printed!r}"),
        )

    def sized(self, users: int) -> Iterator[Case]:
        """The three syncs for another number of users, this project alone."""
        mart, table = str(users), "crm.user_segments"
        for step, begin in self._steps.items():
            yield Case(
                f"user_segments of {users:,}, {step}",
                "searchflow",
                searchflow("user_segments"),
                self._with(mart),
                partial(begin, table),
                lambda _: self.database.expect(table, self.digest(mart, users)),
                users,
            )
        yield from self._mails(f"email_triggers of {users:,}", mart, users)
        recommendations = f"recommendations of {users:,}, first load"
        yield self._keys(recommendations, "searchflow", searchflow("recommendations"), mart, users)

    @property
    def _steps(self) -> dict[str, Callable[[str], None]]:
        return {"first load": self.database.empty, "nothing changed": self.database.rest}

    def _mails(self, name: str, mart: str, users: int) -> Iterator[Case]:
        for step, begin in self._steps.items():
            yield Case(
                f"{name}, {step}",
                "searchflow",
                searchflow("email_triggers"),
                self._with(mart),
                partial(begin, "crm.email_queue"),
                partial(self._check_mails, step),
                users,
            )

    def _keys(self, name: str, by: str, command: list[str], mart: str, users: int) -> Case:
        keys, values = self.keys[by], self.values(mart)

        def check(_: str) -> None:
            keys.expect(users, values)
            if users > self.users:  # else everybody's next keys would meet so many in the server
                keys.empty()

        return Case(
            name,
            by,
            command,
            self._with(mart),
            keys.keep if name.endswith("repeat") else keys.empty,
            check,
            users,
        )

    def _segments(self, step: str, contender: Contender) -> Case:
        mart, count, part = STEPS[step]
        users, share = (10, 1) if mart == "ten" else (self.users, contender.share)
        rows, table = users // share, contender.table
        begin = self.database.empty if count == "inserted" else self.database.rest

        def check(printed: str) -> None:
            self.database.expect(table, self.digest(mart, rows))
            if contender.name == "searchflow":
                found, wanted = json.loads(printed)[count], -(-rows // part)
                require(found == wanted, f"{count} is {found}, not {wanted}")

        return Case(
            f"user_segments, {step}",
            contender.name,
            contender.command(self.marts[mart]),
            self._with(mart),
            partial(begin, table),
            check,
            rows,
            share,
            contender.folder,
        )

    def _check_mails(self, step: str, printed: str) -> None:
        result = json.loads(printed)
        queued = int(self.database.run("SELECT count(*) FROM crm.email_queue"))
        told = result["inserted"] if step == "first load" else result["unchanged"]
        require(0 < queued == told, f"{queued} mails in the queue, but {printed}")

    def _with(self, mart: str) -> dict[str, str]:
        return self.environment | {"DUCKDB_PATH": str(self.marts[mart])}


def _failures(case: Case, figures: Path) -> list[str]:
    """Run a case; what went wrong ends the bench only after everybody else's turn."""
    try:
        case.run(figures)
    except WrongError as error:
        print(f"  failed  {case.name}, {case.contender}", flush=True)
        return [str(error)]
    return []


def _is_once(case: Case, arguments: argparse.Namespace) -> bool:
    """Leave it at the first round, for those who were asked for so."""
    is_large = case.rows * case.share > arguments.users
    return case.contender.startswith(tuple(arguments.once)) or (
        is_large and LARGER in arguments.once
    )


def _arguments() -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return [name for name in text.split(",") if name]

    def sizes(text: str) -> list[int]:
        return sorted(map(int, names(text)))

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--sizes", type=sizes, default=[], help="add marts of so many users, such as 10000,10000000"
    )
    who = ",".join(contenders.PACKAGES)
    parser.add_argument("--without", type=names, default=[], help=f"whom to leave out: {who}")
    once = f"whom to run in one round only; {LARGER}: those of more users than --users"
    parser.add_argument("--once", type=names, default=[], help=once)
    parser.add_argument("--name", help="of the files in results/; the date when not given")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except WrongError as error:
        sys.exit(f"bench: {error}")

"""A password that is an ordinary word is not told by a gap, nor a secret by what is cut off it."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import command, segments
from destinations import last_run
from examples import examples
from fixture_types import Mart, Select
from redis_servers import Others

from etl import postgres, recommendations, settings, user_segments
from etl.errors import SyncError, UsageError
from etl.plumbing import log
from etl.plumbing.redact import hide
from etl.settings import Settings

if TYPE_CHECKING:
    from etl.postgres import Connection

# Words of what servers and we say of a refused password; also the default, and a port.
WORDS = (
    *("password", "authentication", "failed", "for", "user", "FATAL", "airflow", "searchflow"),
    *("Postgres", "connect", "check", "cannot", "user_segments", "5432", "POSTGRES_USER"),
    *("WRONGPASS", "invalid", "pair", "disabled", "Redis", "recommendations"),
)
STRONG = "c2VjcmV0LXBhc3M=="  # as many generators make them; cut at `=` it would be another
MARK = STRONG[:8]


@pytest.fixture
def marts(mart: Mart) -> None:
    mart(
        segments("('a', 'regular', 1, 0, 0)"),
        "CREATE TABLE mart_recommendations AS SELECT 'a' AS user_id, 'Miami' AS destination,"
        " 0.9 AS score, now() AS generated_at",
    )


def test_a_refused_password_is_told_alike_whatever_word_it_is(
    marts: None, select: Select, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: dict[str, set[str]] = {}
    for word in WORDS[: examples(4, len(WORDS))]:
        with monkeypatch.context() as given:
            given.setenv("REDIS_USERNAME", "nobody")
            for name in ("POSTGRES_PASSWORD", "REDIS_PASSWORD"):
                given.setenv(name, word)
            given.setattr("etl.plumbing.environment.SECRETS", Path("/nowhere"))
            for module in (user_segments, recommendations):
                with pytest.raises(SyncError) as raised:
                    module.sync()
                told.setdefault(module.__name__, set()).add(str(raised.value))

    assert [len(messages) for messages in told.values()] == [1, 1]
    assert "***" not in str(told) + caplog.text


REFUSALS = (
    "OOM command not allowed when used memory > 'maxmemory'.",
    "READONLY You can't write against a read only replica.",
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist",
    "NOREPLICAS Not enough good replicas to write.",
    "NOPERM User default has no permissions to run the 'set' command",
    "CLUSTERDOWN The cluster is down",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "MOVED 3999 127.0.0.1:6381",
    "CROSSSLOT Keys in request don't hash to the same slot",
    "ERR unknown command 'SET', with args beginning with: 'reco:a' '{}' 'EX' '86400'",
    "ERR syntax error",
    "ODD out of its own mind",
)


@pytest.mark.few(1)
@pytest.mark.parametrize("said", REFUSALS)
def test_a_refused_key_is_told_alike_whatever_word_the_password_is(
    said: str, marts: None, select: Select, others: Others
) -> None:
    told = set()
    with others.fake({"AUTH": b"+OK\r\n", "SET": f"-{said}\r\n".encode()}):
        for word in {"hunter2!", "*", *re.findall(r"[\w-]+|\S+", said)}:
            others.monkeypatch.setenv("REDIS_PASSWORD", word)
            with pytest.raises(SyncError) as raised:
                recommendations.sync()
            told.add(re.sub(r":\d+/0", "", str(raised.value)))

    (message,) = told
    assert "***" not in message
    assert not message.endswith("Error; run it again")


SPOILT: dict[str, dict[str, str] | str] = {
    "another user": {"POSTGRES_USER": "somebody"},
    "another database": {"POSTGRES_DB": "other"},
    "nobody there": {"POSTGRES_PORT": "1"},
    "no socket": {"POSTGRES_HOST": "/nowhere/socket"},
    "no file": {"DUCKDB_PATH": "/nowhere/marts.duckdb"},
    "no schema of marts": {"MART_SCHEMA": "other"},
    "no folder": {"ETL_SQL_DIR": "/nowhere/sql"},
    "no table": "DROP TABLE crm.user_segments",
    "no schema": "DROP SCHEMA crm CASCADE",
    "no ledger": "DROP TABLE etl.sync_runs",
    "another type": "ALTER TABLE crm.user_segments ALTER segment TYPE integer USING 1",
    "a rule": "ALTER TABLE crm.user_segments ADD CONSTRAINT c CHECK (segment <> 'regular')",
}


@pytest.mark.few(2)
@pytest.mark.parametrize("kind", SPOILT)
def test_no_word_of_an_error_makes_a_gap_where_it_is_the_password(
    kind: str, marts: None, database: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil = SPOILT[kind]
    if isinstance(spoil, str):
        postgres.execute(database, spoil)
        database.commit()
    given = spoil if isinstance(spoil, dict) else {}
    gaps = []
    with monkeypatch.context() as patch:
        for name, value in given.items():
            patch.setenv(name, value)
        with pytest.raises(SyncError) as raised:
            user_segments.sync()
        message = str(raised.value)
        for word in {*re.findall(r"\w[\w-]*|(?:crm|etl)\.\w+", message)}:
            patch.setenv("REDIS_PASSWORD", word)
            gaps += [word] if settings.hidden(message) != message else []

    assert "***" not in message
    assert gaps == []


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize(
    "said",
    [
        "cannot parse password={} in it",
        "cannot parse PASSWORD = '{}' in it",
        'cannot parse {{"redis_password": "{}", "port": 1}}',
        "host name postgres://airflow:{}@host is unknown",
        "host name airflow:{}@host is unknown",
    ],
)
def test_an_ordinary_word_is_hidden_where_a_text_calls_it_a_password(said: str, word: str) -> None:
    assert hide(said.format(word), [word]) == said.format("***")


@pytest.mark.parametrize("secret", ["g1", "pa55word", "swordfish-9", "qwertyuiopasdfghjk"])
def test_any_other_secret_is_hidden_wherever_it_stands(secret: str) -> None:
    assert hide(f"at /data/{secret} of {secret}.", [secret]) == "at /data/*** of ***."


def test_the_password_of_a_url_is_hidden_though_nobody_knows_it() -> None:
    assert hide("no host redis://me:unknown@x/1 here", []) == "no host redis://me:***@x/1 here"


@pytest.mark.parametrize(
    "words", [["--" + STRONG], [f"--x-{STRONG}={STRONG}"], ["--sync", STRONG], [STRONG]]
)
def test_a_word_of_the_command_line_is_hidden_before_it_is_cut(words: list[str]) -> None:
    finished = command("etl", *words, POSTGRES_PASSWORD=STRONG)

    assert finished.returncode == 2
    assert MARK not in finished.stdout + finished.stderr


def test_what_libpq_says_is_hidden_before_it_is_cut_to_a_line(
    marts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as given:
        given.setenv("REDIS_PASSWORD", "tiger\nlily")
        given.setenv("PGSSLMODE", "tiger\nlily")
        with pytest.raises(SyncError, match="sslmode") as raised:
            user_segments.sync()

    assert "tiger" not in str(raised.value)


def test_a_ledger_row_holds_no_secret(
    marts: None, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = os.environ["POSTGRES_PASSWORD"]
    monkeypatch.setenv("AIRFLOW_CTX_DAG_RUN_ID", f"manual__{password}")
    monkeypatch.setattr(socket, "gethostname", lambda: f"worker-{password}")

    user_segments.sync()

    row = last_run(select)
    assert (row["started_by"], row["host"]) == ("airflow manual__***", "worker-***")
    assert password not in str(row)
    names = select("SELECT application_name AS name FROM pg_stat_activity")
    assert password not in str(names)


@pytest.mark.few(1)
@pytest.mark.parametrize("variable", ["AIRFLOW_CTX_DAG_RUN_ID", "LOGNAME"])
def test_who_started_a_run_may_have_any_name(
    variable: str, marts: None, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, f"n\udce4 {os.environ['POSTGRES_PASSWORD']}")

    user_segments.sync()

    assert last_run(select)["started_by"].endswith("n\\udce4 ***")


def test_a_field_of_the_log_holds_no_secret(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("REDIS_PASSWORD", STRONG)

    with caplog.at_level(logging.INFO, "etl"):
        log.event("odd", reason=f"sent {STRONG}", of={"a": [STRONG]}, rows=1)

    (record,) = caplog.records
    assert MARK not in record.getMessage() + str(vars(record))
    assert vars(record)["etl_fields"]["rows"] == 1


# A secret's file


def test_a_byte_order_mark_is_no_part_of_a_secret(tmp_path: Path, secrets: Path) -> None:
    (secrets / "redis_password").write_bytes(b"\xef\xbb\xbfs3cret\r\n")

    assert Settings.from_environment({}).redis_password == "s3cret"


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


UNFIT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (Path.touch, "is empty"),
    "a line feed": (lambda path: path.write_text("\r\n"), "is empty"),
    "spaces": (lambda path: path.write_text(" \t \n"), "is empty"),
    "a byte order mark": (lambda path: path.write_bytes(b"\xef\xbb\xbf"), "is empty"),
    "a folder": (Path.mkdir, "is not a file"),
    "a FIFO": (_fifo, "is not a file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is not a file"),
    "a terabyte": (_huge, "is longer than 65,536 bytes"),
    "a dangling link": (lambda path: path.symlink_to("nowhere"), "No such file or directory"),
    "a link to itself": (lambda path: path.symlink_to(path), "Too many levels of symbolic"),
    "Latin-1": (lambda path: path.write_bytes(b"s3cr\xe9t"), "save it as UTF-8 text"),
    "UTF-16": (lambda path: path.write_bytes("s3cret".encode("utf-16")), "save it as UTF-8"),
}


@pytest.mark.few(13)
@pytest.mark.parametrize("kind", UNFIT)
@pytest.mark.parametrize("name", ["postgres_password", "redis_password", "postgres_host"])
@pytest.mark.timeout(20)
def test_a_file_that_can_be_no_secret_is_an_error_that_names_it(
    kind: str, name: str, secrets: Path
) -> None:
    make, problem = UNFIT[kind]
    make(secrets / name)

    with pytest.raises(UsageError) as raised:
        Settings.from_environment({})

    message = str(raised.value)
    assert message.startswith(f"settings: {name.upper()}: ")
    assert str(secrets / name) in message
    assert problem in message
    assert "\n" not in message
    assert "s3cr" not in message
    assert "0xe9" not in message


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("etl.plumbing.environment.SECRETS", tmp_path)
    return tmp_path

"""Settings: where they come from, what they may be, and that their secrets stay secret."""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import redis
from conftest import ROOT, command, results, segments
from fixture_types import Mart, Select

from demo import sample
from demo.embedded import Servers
from etl import cache, postgres, recommendations, user_segments
from etl.errors import SyncError, UsageError
from etl.settings import Settings
from etl.syncs import SYNCS

# Every character that some way of writing a connection down would choke on.
PASSWORDS = [
    pytest.param("plain", id="plain"),
    pytest.param(" it's \"quoted\" \\ and \\' spaced ", id="quotes and spaces"),
    pytest.param("p@ss:w/o?rd#&=%20%", id="URL"),
    pytest.param("$HOME `id` *;|<>()[]{}!~^", id="shell"),
    pytest.param("pässwörd ☃ 😀 пароль", id="Unicode"),
    pytest.param("a\tb\nc", id="tab and line feed"),
    pytest.param("host=evil port=1 '", id="conninfo"),
]


@pytest.fixture
def role(servers: Servers, environment: Path) -> Iterator[Callable[[str], Settings]]:
    """A Postgres role with a password, gone afterwards: the settings to be that role."""
    superuser = postgres.connect(_settings(servers, POSTGRES_USER="postgres"), "tests")

    def create(password: str) -> Settings:
        (row,) = postgres.select(superuser, "SELECT quote_literal($1::text) AS text", password)
        postgres.execute(superuser, f"CREATE ROLE odd LOGIN PASSWORD {row['text']} ROLE postgres")
        postgres.execute(superuser, "GRANT airflow TO odd")
        superuser.commit()
        return _settings(servers, POSTGRES_USER="odd", POSTGRES_PASSWORD=password)

    yield create
    superuser.rollback()
    postgres.execute(superuser, "DROP ROLE IF EXISTS odd")
    superuser.commit()
    superuser.close()


@pytest.fixture
def user(servers: Servers, keys: redis.Redis) -> Iterator[Callable[[str], Settings]]:
    """A Redis user with a password, gone afterwards: the settings to be that user."""

    def create(password: str) -> Settings:
        keys.acl_setuser(
            "odd",
            enabled=True,
            passwords=[f"+{password}"],
            keys=["*"],
            commands=["+ping", "+set", "+mget"],
        )
        return _settings(servers, REDIS_USERNAME="odd", REDIS_PASSWORD=password)

    yield create
    keys.acl_deluser("odd")


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where Docker puts secrets."""
    monkeypatch.setattr("etl.plumbing.environment.SECRETS", tmp_path)
    return tmp_path


# Where they come from


SETTINGS = {setting.name.upper() for setting in fields(Settings)} - {"LIBPQ"}

# Read by the log and the command line before there are settings.
OTHERS = {"LOG_FORMAT", "ETL_DEBUG"}


def test_the_defaults_are_those_of_the_documentation() -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    rows = re.findall(r"^\| (`[A-Z_`, ]+`) \| (?:`(.*?)`)? ?\|", page, re.MULTILINE)
    told = {name: default for names, default in rows for name in re.findall(r"\w+", names)}

    assert told.keys() == SETTINGS
    assert Settings.from_environment(told) == Settings()
    unset = {name.lower() for name in SETTINGS if not told[name]}
    assert {name for name in unset if getattr(Settings(), name) is not None} == set()


def test_the_example_of_an_environment_has_every_setting() -> None:
    example = (ROOT / ".env.example").read_text()
    named = dict(re.findall(r"^(?:# )?([A-Z_]+)=(.*)$", example, re.MULTILINE))
    given = dict(re.findall(r"^([A-Z_]+)=(.*)$", example, re.MULTILINE))

    assert {name for name in named if not name.startswith("PG")} == SETTINGS | OTHERS
    assert Settings.from_environment(given) == Settings()


def test_the_compose_stack_hands_on_every_setting_but_where_its_servers_are() -> None:
    compose = (ROOT / "docker-compose.yml").read_text()
    block = compose.partition("environment: &settings")[2].partition("\n  volumes:")[0]
    named = set(re.findall(r"^    ([A-Z_]+):", block, re.MULTILINE))
    servers = {name for name in SETTINGS if name.startswith(("POSTGRES_", "REDIS_"))}

    assert named - servers == (SETTINGS | OTHERS) - servers
    assert "POSTGRES_STATEMENT_TIMEOUT" in named


def test_every_variable_is_read() -> None:
    given = {
        "DUCKDB_PATH": "/w.duckdb",
        "MART_SCHEMA": "marketing",
        "ETL_SQL_DIR": "/sql",
        "WAREHOUSE_WAIT": "1.5",
        "POSTGRES_HOST": "/run/postgresql",
        "POSTGRES_PORT": "65535",
        "POSTGRES_DB": "db",
        "POSTGRES_USER": "user",
        "POSTGRES_PASSWORD": "one",
        "POSTGRES_STATEMENT_TIMEOUT": "60.0",
        "REDIS_HOST": "cache",
        "REDIS_PORT": "1",
        "REDIS_DB": "3",
        "REDIS_USERNAME": "etl",
        "REDIS_PASSWORD": "two",
        "REDIS_SENTINEL": "mymaster",
        "REDIS_SENTINEL_PASSWORD": "three",
        "REDIS_TLS": "True",
        "REDIS_CA_FILE": "/ca.pem",
        "REDIS_CERT_FILE": "/cert.pem",
        "REDIS_KEY_FILE": "/key.pem",
        "RETRY_SECONDS": "0.0",
    }

    read = _variables(Settings.from_environment(given))

    assert {name: str(value) for name, value in read.items()} == given


def test_an_empty_variable_is_an_unset_one() -> None:
    given = dict.fromkeys(_variables(Settings()), "")

    assert Settings.from_environment(given) == Settings()


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("1", True), ("yes", True), ("No", False), ("0", False)]
)
def test_a_switch_may_be_written_in_several_ways(text: str, value: bool) -> None:
    assert Settings.from_environment({"REDIS_TLS": text}).redis_tls is value


def test_bad_values_are_named_all_at_once() -> None:
    given = {
        "POSTGRES_PORT": "65536",
        "REDIS_PORT": "tcp://10.0.0.7:6379",
        "REDIS_DB": "-1",
        "REDIS_TLS": "maybe",
        "POSTGRES_STATEMENT_TIMEOUT": "3e6",
        "POSTGRES_USER": "a\0b",
        "POSTGRES_PASSWORD": "hidden\udcff",
        "GUARD_MAX_SHRINK": "nan",
        "GUARD_MAX_DELETE": "50%",
        "GUARD_MAX_CHANGE": "1.5",
    }

    with pytest.raises(UsageError) as raised:
        Settings.from_environment(given)

    head, _, problems = str(raised.value).partition(": ")
    assert (head, raised.value.exit_code) == ("settings", 2)
    assert set(problems.split("; ")) == {
        "POSTGRES_PORT: '65536' is out of range, give a number from 1 to 65535",
        "REDIS_PORT: 'tcp://10.0.0.7:6379' is not a whole number",
        "set it, or enableServiceLinks: false in the pod",
        "REDIS_DB: '-1' is out of range, give a number at least 0",
        "REDIS_TLS: 'maybe' is not a switch, give true or false",
        "POSTGRES_STATEMENT_TIMEOUT: '3e6' is out of range, give a number from 1 to 1000000",
        "POSTGRES_USER: has a NUL byte",
        "POSTGRES_PASSWORD: is not UTF-8",
        "GUARD_MAX_SHRINK: 'nan' is not a number",
        "GUARD_MAX_DELETE: '50%' is not a number",
        "GUARD_MAX_CHANGE: '1.5' is out of range, give a number from 0 to 1",
    }


def test_sync_checks_the_settings_before_it_does_anything(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(ONE_USER)

    with monkeypatch.context() as wrong:
        wrong.setenv("REDIS_PORT", "x")
        with pytest.raises(UsageError, match="REDIS_PORT"):
            user_segments.sync()

    assert select("SELECT * FROM etl.sync_runs") == []


# Docker secrets


def test_a_secret_is_read_from_its_file(secrets: Path) -> None:
    (secrets / "postgres_password").write_text(" s'pace \n")
    (secrets / "redis_password").write_text("ünï\r\n")
    (secrets / "redis_port").write_text("7000\n")

    read = Settings.from_environment({})

    assert (read.postgres_password, read.redis_password) == (" s'pace ", "ünï")
    assert read.redis_port == 7000


def test_a_variable_goes_before_a_secret_and_an_empty_one_does_not(secrets: Path) -> None:
    (secrets / "postgres_password").write_text("from the file")
    (secrets / "redis_password").write_text("from the file")

    read = Settings.from_environment({"POSTGRES_PASSWORD": "given", "REDIS_PASSWORD": ""})

    assert (read.postgres_password, read.redis_password) == ("given", "from the file")


def test_a_secret_goes_before_libpqs_own_variables(secrets: Path) -> None:
    (secrets / "postgres_password").write_text("from the file")

    read = Settings.from_environment({"PGPASSWORD": "libpq"})

    assert read.postgres_password == "from the file"


def test_secrets_that_cannot_be_read_are_named_with_the_other_problems(secrets: Path) -> None:
    (secrets / "postgres_password").write_bytes(b"\xff\xfe")
    (secrets / "redis_password").mkdir()  # what Docker makes of a file that is not there

    with pytest.raises(UsageError) as raised:
        Settings.from_environment({"REDIS_PORT": "x"})

    assert f"POSTGRES_PASSWORD: cannot read the secret {secrets}" in str(raised.value)
    assert "REDIS_PORT: 'x' is not a whole number" in str(raised.value)
    assert f"REDIS_PASSWORD: the secret {secrets / 'redis_password'} is not" in str(raised.value)


# Settings that are handed over


@pytest.mark.few(1)
@pytest.mark.every_sync
@pytest.mark.parametrize("sync", SYNCS)
def test_a_sync_takes_settings_that_are_not_in_the_environment(
    sync: str, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample.build(environment, 30)
    there = Settings.from_environment()
    with monkeypatch.context() as patch:
        for name in ("POSTGRES_HOST", "POSTGRES_PASSWORD", "REDIS_HOST", "DUCKDB_PATH"):
            patch.setenv(name, "/nowhere")
        result = importlib.import_module(f"etl.{sync}").sync(settings=there)

    assert result["extracted"] > 0


def test_a_password_that_is_handed_over_is_hidden_like_one_of_the_environment(
    mart: Mart, select: Select, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(segments("('a', 'regular', 1, 0, 0)"))
    monkeypatch.setenv("AIRFLOW_CTX_DAG_RUN_ID", "of-a-vault-1")
    read = replace(Settings.from_environment(), redis_password="of-a-vault-1")

    user_segments.sync(settings=read)
    with pytest.raises(SyncError) as raised:
        user_segments.sync(settings=replace(read, mart_schema="of-a-vault-1"))

    assert "of-a-vault-1" not in str(raised.value)
    runs = select("SELECT started_by, error FROM etl.sync_runs ORDER BY started_at")
    assert [run["started_by"] for run in runs] == ["airflow ***", "airflow ***"]
    assert "of-a-vault-1" not in str(runs)


def test_parameters_of_libpq_are_handed_over(servers: Servers, environment: Path) -> None:
    read = replace(Settings.from_environment(), libpq=(("sslmode", "require"),))

    with pytest.raises(SyncError, match="does not support SSL"):
        _whoami(read)  # the server of the tests has none


# libpq's own variables


def test_pgpassword_serves_where_postgres_password_is_unset(
    servers: Servers, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = _without(servers, "POSTGRES_PASSWORD")
    monkeypatch.setenv("PGPASSWORD", servers.environment["POSTGRES_PASSWORD"])

    read = Settings.from_environment({**given, "PGPASSWORD": "any"})

    assert read.postgres_password is None
    assert _whoami(read) == "airflow"


def test_pgpassfile_serves_where_postgres_password_is_unset(
    servers: Servers, environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passfile = tmp_path / "pgpass"
    passfile.touch(mode=0o600)
    passfile.write_text(f"*:*:*:airflow:{servers.environment['POSTGRES_PASSWORD']}\n")
    given = _without(servers, "POSTGRES_PASSWORD")
    monkeypatch.setenv("PGPASSFILE", str(passfile))

    read = Settings.from_environment({**given, "PGPASSFILE": str(passfile)})

    assert _whoami(read) == "airflow"


def test_postgres_password_goes_before_pgpassword(
    servers: Servers, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as wrong:
        wrong.setenv("PGPASSWORD", "wrong")

        assert _whoami(Settings.from_environment()) == "airflow"


def test_pgsslmode_is_libpqs_to_obey(
    servers: Servers, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as strict:
        strict.setenv("PGSSLMODE", "require")  # the server of the tests has none
        with pytest.raises(SyncError, match="SSL"):
            postgres.connect(Settings.from_environment(), "tests")


# Passwords


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_postgres_password_may_hold_any_character(
    password: str, role: Callable[[str], Settings]
) -> None:
    right = role(password)

    assert _whoami(right) == "odd"


@pytest.mark.parametrize("password", PASSWORDS)
def test_a_redis_password_may_hold_any_character(
    password: str, user: Callable[[str], Settings]
) -> None:
    with cache.connect(user(password)) as client:
        client.set("reco:a", b"1")

        assert client.mget(["reco:a"]) == [b"1"]


def test_a_redis_password_without_a_user_name(servers: Servers, keys: redis.Redis) -> None:
    password = "it's @ secret/ %"
    keys.config_set("requirepass", password)
    try:
        with cache.connect(_settings(servers, REDIS_PASSWORD=password)) as client:
            assert client.ping()
        with pytest.raises(SyncError, match="check REDIS_USERNAME and REDIS_PASSWORD"):
            cache.connect(_settings(servers))
    finally:
        keys.config_set("requirepass", "")


@pytest.mark.parametrize("password", PASSWORDS)
def test_no_password_shows_in_a_repr_or_an_error(
    password: str, servers: Servers, environment: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = dict.fromkeys(("POSTGRES_PASSWORD", "REDIS_PASSWORD"), password)
    wrong = _settings(servers, **given, REDIS_USERNAME="nobody")
    caplog.set_level(logging.DEBUG)

    with pytest.raises(SyncError) as database:
        postgres.connect(wrong, "tests")
    with pytest.raises(SyncError) as keys:
        cache.connect(wrong)

    told = f"{wrong!r} {wrong} {database.value!r} {keys.value!r} {caplog.text}"
    assert password not in told
    assert password.encode("unicode_escape").decode() not in told
    assert wrong.secrets == [password, password]


@pytest.mark.slow
def test_no_password_shows_in_anything_a_command_prints_or_records(
    role: Callable[[str], Settings], user: Callable[[str], Settings], mart: Mart, select: Select
) -> None:
    password = "s3cr3t \"'\\ @/:% ☃"
    role(password)
    user(password)
    mart(ONE_USER, RECOMMENDED)
    right = {
        "POSTGRES_USER": "odd",
        "POSTGRES_PASSWORD": password,
        "REDIS_USERNAME": "odd",
        "REDIS_PASSWORD": password,
        "ETL_DEBUG": "1",
    }

    well = command("etl", "--json", **right)
    ill = command("etl", **right, DUCKDB_PATH=f"/{password}/x", REDIS_DB="99")
    usage = command("etl", "--bogus", **right)
    unfit = command("etl", **right, REDIS_PORT=password)

    assert [one["status"] for one in results(well)] == ["ok"] * len(SYNCS)
    assert [one.returncode for one in (well, ill, usage, unfit)] == [0, 1, 2, 2]
    ledger = str(select("SELECT to_jsonb(r) AS row FROM etl.sync_runs AS r"))
    for told in (well, ill, usage, unfit):
        for text in (told.stdout, told.stderr):
            assert "s3cr3t" not in text
    assert "s3cr3t" not in ledger
    assert "Traceback" in ill.stderr


# What is wrong, where, and what to do


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"POSTGRES_PASSWORD": "wrong"}, "check POSTGRES_USER and POSTGRES_PASSWORD"),
        ({"POSTGRES_USER": "nobody"}, "check POSTGRES_USER and POSTGRES_PASSWORD"),
        ({"POSTGRES_DB": "nowhere"}, "check POSTGRES_DB"),
        ({"POSTGRES_PORT": "1"}, "is it up, and are POSTGRES_HOST and POSTGRES_PORT right?"),
        ({"POSTGRES_HOST": "no.invalid"}, "is it up, and are POSTGRES_HOST and POSTGRES_PORT"),
        ({"POSTGRES_HOST": "/nowhere"}, "is it up, and are POSTGRES_HOST and POSTGRES_PORT"),
    ],
)
def test_postgres_out_of_reach_is_one_line(
    given: dict[str, str], said: str, mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(ONE_USER)

    with monkeypatch.context() as wrong:
        for name, value in given.items():
            wrong.setenv(name, value)
        with pytest.raises(SyncError) as raised:
            user_segments.sync()

    shown = [value for name, value in given.items() if name != "POSTGRES_PASSWORD"]
    _is_one_line(raised.value, "Postgres (", shown, said)


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"REDIS_PASSWORD": "wrong", "REDIS_USERNAME": "nobody"}, "check REDIS_USERNAME and RED"),
        ({"REDIS_DB": "99"}, "check REDIS_DB"),
        ({"REDIS_PORT": "1"}, "is it up, and are REDIS_HOST, REDIS_PORT and REDIS_TLS right?"),
        ({"REDIS_HOST": "no.invalid"}, "is it up, and are REDIS_HOST, REDIS_PORT and REDIS_TLS"),
        ({"REDIS_HOST": "a..b"}, "check REDIS_HOST"),
    ],
)
def test_redis_out_of_reach_is_one_line(
    given: dict[str, str], said: str, mart: Mart, monkeypatch: pytest.MonkeyPatch
) -> None:
    mart(RECOMMENDED)

    with monkeypatch.context() as wrong:
        for name, value in given.items():
            wrong.setenv(name, value)
        with pytest.raises(SyncError) as raised:
            recommendations.sync()

    shown = [given[name] for name in ("REDIS_HOST", "REDIS_PORT", "REDIS_DB") if name in given]
    _is_one_line(raised.value, "Redis (", shown, said)


# Helpers

ONE_USER = segments("('a', 'regular', 3, 1, 9.5)")

RECOMMENDED = """
    CREATE TABLE mart_recommendations AS
    SELECT 'a' AS user_id, 'Miami' AS destination, 1.0 AS score, 1 AS rank, now() AS generated_at
"""


def _settings(servers: Servers, **environment: str) -> Settings:
    return Settings.from_environment({**servers.environment, **environment})


def _without(servers: Servers, name: str) -> dict[str, str]:
    return {key: value for key, value in servers.environment.items() if key != name}


def _variables(read: Settings) -> dict[str, Any]:
    """The settings that point at the outside world, under the names of their variables."""
    return {
        name.upper(): value
        for name, value in vars(read).items()
        if name.startswith(
            ("duckdb_", "mart_", "etl_", "warehouse_", "postgres_", "redis_", "retry_")
        )
    }


def _whoami(read: Settings) -> str:
    with postgres.session(read, "tests") as connection:
        (row,) = postgres.select(connection, "SELECT current_user::text AS name")
    name: str = row["name"]
    return name


def _is_one_line(error: SyncError, where: str, shown: list[str], said: str) -> None:
    message = str(error)
    assert message.startswith(where)
    assert said in message
    assert "\n" not in message
    assert (error.exit_code, error.status) == (1, "failed")
    assert error.result is not None
    assert error.result["error"] == message
    assert all(value in message for value in shown)

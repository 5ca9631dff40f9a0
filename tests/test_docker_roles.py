"""The Compose stack's logins: its files and its own commands, in its order, on a real Postgres."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pytest
from conftest import ROOT, segments
from test_docker import services

from demo import embedded, sample

MADE_BY_POSTGRES = ["DROP DATABASE searchflow", "DROP ROLE airflow", "CREATE DATABASE searchflow"]


@dataclass
class Stack:
    """A database as the stack's services leave it, and the settings of their containers."""

    environment: dict[str, str]
    psql: Path
    secrets: Path

    def roles(self) -> None:
        """Run what the service `roles` runs, from this machine's folders."""
        service = services()["roles"]
        (script,) = service["command"]
        here = {"$$": "$", "/run/secrets/": f"{self.secrets}/", "/sql/": f"{ROOT}/sql/"}
        for there, path in here.items():
            script = script.replace(there, path)
        environment = service["environment"] | {"PGHOST": "127.0.0.1"}
        self.run([*service["entrypoint"], script], **environment)

    def run(self, command: list[str], **environment: str) -> str:
        ran = self.tried(command, **environment)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def tried(self, command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=ROOT,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def etl(self, service: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m <arguments>` with the user and the password that a service has."""
        described = services()[service]
        password = next(
            secret["source"]
            for secret in described["secrets"]
            if secret["target"].endswith("postgres_password")
        )
        return self.tried(
            [sys.executable, "-m", *arguments],
            POSTGRES_USER=described["environment"]["POSTGRES_USER"],
            POSTGRES_PASSWORD=self.password(password),
        )

    def sql(self, user: str, *statements: str) -> subprocess.CompletedProcess[str]:
        secret = "postgres_sync_password" if user == "searchflow_sync" else "postgres_password"
        commands = [text for statement in statements for text in ("-c", statement)]
        psql = [
            str(self.psql),
            "-XAtq",
            "-v",
            "VERBOSITY=verbose",
            "-h",
            "127.0.0.1",
            "-d",
            "searchflow",
            *commands,
        ]
        return self.tried(psql, PGUSER=user, PGPASSWORD=self.password(secret))

    def password(self, secret: str) -> str:
        return (self.secrets / secret).read_text().strip()


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that `make up` writes first, under the names they have in a container."""
    folder = tmp_path_factory.mktemp("stack") / "secrets"
    make = ["make", "--no-print-directory", f"SECRETS={folder}", "secrets"]
    subprocess.run(make, cwd=ROOT, check=True, capture_output=True)
    for secret in folder.glob("*.txt"):
        secret.rename(secret.with_suffix(""))
    return folder


@pytest.fixture(scope="module")
def stack(secrets: Path) -> Iterator[Stack]:
    """What `make up` does then: Postgres with owner.sql, init_db, roles."""
    with tempfile.TemporaryDirectory(prefix="etl-stack-") as name:
        Path(name).chmod(0o755)
        with embedded.running(Path(name), settings={"fsync": "off"}) as servers:
            psql, url = shlex.split(servers.psql)
            environment = dict(os.environ)
            servers.set_up(environment)
            environment |= {
                "PATH": f"{Path(psql).parent}:{environment['PATH']}",
                "PGPORT": str(servers.postgres_port),
                "DUCKDB_PATH": str(secrets / "warehouse.duckdb"),
            }
            stack = Stack(environment, Path(psql), secrets)
            sample.build(secrets / "warehouse.duckdb", 300)
            as_the_image_does(stack, url.replace("//airflow@", "//postgres@"))
            made = stack.etl("init_db", "etl.init_db")
            assert made.returncode == 0, made.stderr
            stack.roles()
            yield stack


def as_the_image_does(stack: Stack, url: str) -> None:
    """Make an empty database and run owner.sql in it, as the superuser."""
    psql = [str(stack.psql), "-X", "-v", "ON_ERROR_STOP=1"]
    made = [text for statement in MADE_BY_POSTGRES for text in ("-c", statement)]
    stack.run([*psql, url.replace("/searchflow", "/postgres"), *made])
    owner = str(ROOT / "sql" / "compose" / "owner.sql")
    stack.run([*psql, "-f", owner, url], POSTGRES_PASSWORD=stack.password("postgres_password"))


@pytest.mark.slow
@pytest.mark.every_sync
def test_every_sync_and_the_status_run_as_the_login_of_the_stack(stack: Stack) -> None:
    for arguments in (
        ("etl", "--sync", "all", "--dry-run", "--force"),
        ("etl", "--sync", "all", "--force"),
        ("etl", "--sync", "all"),
        ("etl.status",),
        ("etl.explain", "user_000001"),
        ("etl.init_db",),  # with nothing to do
    ):
        ran = stack.etl("reverse-etl", *arguments)
        assert ran.returncode == 0, ran.stderr


@pytest.mark.few(4)
@pytest.mark.parametrize(
    "forbidden",
    [
        "DELETE FROM crm.user_segments",
        "ALTER TABLE crm.user_segments ADD COLUMN mine int",
        "CREATE TABLE crm.mine (id int)",
        "CREATE TABLE public.mine (id int)",
        "CREATE SCHEMA mine",
        "CREATE ROLE mine",
        "SELECT row FROM etl.rejected_rows",
        "SET ROLE airflow",
        "SET ROLE searchflow_etl_mirror",
        "SET ROLE postgres",
    ],
)
def test_the_login_of_the_stack_may_nothing_else(stack: Stack, forbidden: str) -> None:
    assert "ERROR:  42501" in stack.sql("searchflow_sync", forbidden).stderr


def test_neither_the_login_nor_the_owner_is_a_superuser(stack: Stack) -> None:
    powers = "rolsuper OR rolbypassrls OR rolreplication OR rolcreatedb"
    query = f"SELECT rolname FROM pg_roles WHERE {powers} OR rolcreaterole"

    assert stack.sql("airflow", query).stdout.split() == ["airflow", "postgres"]
    assert stack.sql("airflow", f"{query} AND ({powers})").stdout.split() == ["postgres"]


def test_the_superuser_has_no_password_to_log_in_with(stack: Stack) -> None:
    assert "password authentication failed" in stack.sql("postgres", "SELECT 1").stderr


def test_nobody_else_may_make_temporary_tables_in_the_stack(stack: Stack) -> None:
    query = "SELECT has_database_privilege('public', current_database(), 'TEMPORARY')"

    assert stack.sql("airflow", query).stdout == "f\n"


def test_the_roles_are_made_again_with_the_password_of_the_secret(stack: Stack) -> None:
    mirror = "SELECT pg_has_role('searchflow_sync', 'searchflow_etl_mirror', 'USAGE')"
    granted = stack.sql("airflow", "GRANT searchflow_etl_mirror TO searchflow_sync")
    (stack.secrets / "postgres_sync_password").write_text("it's another\n")

    assert "password authentication failed" in stack.sql("searchflow_sync", "SELECT 1").stderr
    stack.roles()

    assert granted.returncode == 0, granted.stderr
    assert stack.sql("searchflow_sync", mirror).stdout == "t\n"  # what else was granted stays
    with duckdb.connect(stack.environment["DUCKDB_PATH"]) as warehouse:
        warehouse.execute("SET schema = 'main_marketing'")
        warehouse.execute(segments("('a', 'regular', 1, 0, 0)"))
    mirrored = stack.etl("reverse-etl", "etl.user_segments", "--delete-missing", "--force")
    assert mirrored.returncode == 0, mirrored.stderr

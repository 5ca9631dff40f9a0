"""The demo's servers: they end with their parent, and nothing stale stops the next run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import adbc_driver_postgresql.dbapi as adbc
import pytest
import redis
from pace import HANG, soon

from demo import embedded
from etl.errors import SyncError

FAST = {"fsync": "off", "shared_buffers": "16MB"}
CHILD = """
import sys, time
from pathlib import Path
from demo import embedded
with embedded.running(Path(sys.argv[1]), settings={"fsync": "off"}) as servers:
    print(servers.postgres_port, servers.redis_port, flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """Hand out a folder that the servers' user can enter; pytest's own are closed to it.

    One for all tests here, because making a database takes ten times as long as starting it.
    """
    with tempfile.TemporaryDirectory(prefix="etl-embedded-") as name:
        yield Path(name)


@pytest.mark.slow
def test_data_outlive_a_restart_and_the_servers_do_not(folder: Path) -> None:
    with embedded.running(folder, settings=FAST) as servers:
        execute(servers, "CREATE TABLE kept AS SELECT 1 AS one")
        redis.Redis(port=servers.redis_port).set("kept", "1", ex=3600)

    assert not any(listens(port) for port in (servers.postgres_port, servers.redis_port))
    with embedded.running(folder, settings=FAST) as servers:
        execute(servers, "SELECT one FROM kept")
        assert redis.Redis(port=servers.redis_port).get("kept") == b"1"


def test_only_the_right_password_opens_the_database(folder: Path) -> None:
    with embedded.running(folder, settings=FAST) as servers:
        servers.environment["POSTGRES_PASSWORD"] += "x"

        with pytest.raises(adbc.Error, match="password authentication failed"):
            execute(servers, "SELECT 1")


def test_a_killed_server_comes_back_on_its_port(folder: Path) -> None:
    with embedded.running(folder, settings=FAST) as servers:
        ports = servers.postgres_port, servers.redis_port
        servers.postgres.kill()
        servers.redis.kill()
        assert not any(map(listens, ports))

        servers.start_postgres()
        servers.start_redis()

        execute(servers, "SELECT 1")
        assert (servers.postgres_port, servers.redis_port) == ports
        assert all(map(listens, ports))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a child to its parent")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_servers_end_when_the_parent_is_killed(folder: Path, number: int) -> None:
    with parent(folder) as process:
        ports = ports_of(process)
        process.send_signal(number)
        process.wait()

        assert eventually(lambda: not any(map(listens, ports)))
    with embedded.running(folder, settings=FAST) as servers:
        execute(servers, "SELECT 1")


def test_servers_that_an_earlier_run_left_are_ended_first(folder: Path) -> None:
    code = CHILD.replace("    time.sleep(60)", UNTIED)
    with parent(folder, code) as process:
        ports = ports_of(process)
        process.wait()
    assert all(map(listens, ports))

    with embedded.running(folder, settings=FAST) as servers:
        execute(servers, "SELECT 1")
        assert not any(map(listens, ports))


def test_a_second_run_in_the_folder_is_refused_in_one_line(folder: Path) -> None:
    with embedded.running(folder, settings=FAST) as servers:
        with pytest.raises(SyncError, match=r"^[^\n]*another run is using this folder[^\n]*$"):
            embedded.running(folder).__enter__()

        execute(servers, "SELECT 1")


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "content",
    [str(os.getpid()), "", "rubbish", "999999999"],
    ids=["alive", "empty", "rubbish", "nobody"],
)
def test_a_stale_pid_file_is_no_obstacle_and_its_process_is_left_alone(
    folder: Path, content: str
) -> None:
    with embedded.running(folder, settings=FAST) as servers:
        pid_files = servers.postgres.pid_file, servers.redis.pid_file
    for pid_file in pid_files:
        pid_file.write_text(content)

    with embedded.running(folder, settings=FAST) as servers:
        assert listens(servers.redis_port)
        execute(servers, "SELECT 1")


def test_a_server_that_does_not_start_says_why_in_one_line(folder: Path) -> None:
    with (
        pytest.raises(SyncError, match=r'^[^\n]*unrecognized [^\n]* "nonsense"$'),
        embedded.running(folder, settings={"nonsense": "1"}),
    ):
        pass


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user runs the servers itself")
def test_root_is_told_which_folder_the_servers_user_cannot_enter(tmp_path: Path) -> None:
    outside_in = reversed(tmp_path.parents)
    closed = next(parent for parent in outside_in if parent.stat().st_mode & 0o001 == 0)

    with (
        pytest.raises(SyncError, match=rf"^{closed}[^\n]* may not enter this"),
        embedded.running(tmp_path / "data"),
    ):
        pass


UNTIED = """
    import os, threading
    servers.stop_postgres()
    servers.stop_redis()
    for start in (servers.start_postgres, servers.start_redis):
        thread = threading.Thread(target=start)  # Linux ties a child to the main thread only
        thread.start()
        thread.join()
    os.kill(os.getpid(), 9)
"""


def parent(folder: Path, code: str = CHILD) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def ports_of(process: subprocess.Popen[str]) -> list[int]:
    assert process.stdout
    return [int(port) for port in process.stdout.readline().split()]


def execute(servers: embedded.Servers, sql: str) -> None:
    names = ("USER", "PASSWORD", "HOST", "PORT", "DB")
    parts = [servers.environment[f"POSTGRES_{name}"] for name in names]
    uri = "postgresql://{}:{}@{}:{}/{}".format(*parts)
    with closing(adbc.connect(uri)) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        connection.commit()


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def eventually(condition: Callable[[], bool]) -> bool:
    return soon(condition, HANG)

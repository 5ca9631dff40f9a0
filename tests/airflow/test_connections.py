"""What Airflow's Connections mean as settings of the service, in a real Airflow."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from airflows import AIRFLOW, Airflow

from demo.embedded import settings_in

POSTGRES, REDIS = "AIRFLOW_CONN_SEARCHFLOW_POSTGRES", "AIRFLOW_CONN_SEARCHFLOW_REDIS"
READ = """
import json
from etl.airflow import settings
from etl.errors import UsageError
try:
    print(json.dumps(vars(settings())))
except UsageError as error:
    print(json.dumps(str(error)))
"""


def test_a_connection_replaces_every_setting_of_its_server(tmp_path: Path) -> None:
    read = settings(
        tmp_path,
        POSTGRES_PORT="1",
        POSTGRES_PASSWORD="of-the-environment",
        REDIS_PORT="tcp://10.0.0.7:6379",  # as Kubernetes sets it
        REDIS_TLS="true",
        REDIS_SENTINEL="mymaster",
        GUARD_MAX_SHRINK="0.25",
        **{
            POSTGRES: "postgres://who:p%40w%27rd@db/crm?sslmode=verify-full&connect_timeout=3",
            REDIS: "redis://:secret@cache",
            "AIRFLOW_VAR_SEARCHFLOW_DUCKDB_PATH": "/w.duckdb",
        },
    )

    given = {name: value for name, value in read.items() if name.startswith(("post", "redis"))}
    assert given == {
        "postgres_host": "db",
        "postgres_port": 5432,
        "postgres_db": "crm",
        "postgres_user": "who",
        "postgres_password": "p@w'rd",
        "postgres_statement_timeout": 900,
        "redis_host": "cache",
        "redis_port": 6379,
        "redis_db": 0,
        "redis_username": None,
        "redis_password": "secret",
        "redis_sentinel": None,
        "redis_sentinel_password": None,
        "redis_tls": False,
        "redis_ca_file": None,
        "redis_cert_file": None,
        "redis_key_file": None,
    }
    assert read["libpq"] == [["sslmode", "verify-full"]]
    assert (read["duckdb_path"], read["guard_max_shrink"]) == ("/w.duckdb", 0.25)


@pytest.mark.parametrize(
    "uri",
    [
        "redis://cache:7000/?db=2&ssl=true&ssl_ca_certs=/ca.pem&ssl_cert_reqs=required",
        "rediss://cache:7000/2?ssl_ca_certs=%2Fca.pem&ssl_check_hostname=True",
        '{"conn_type": "redis", "host": "cache", "port": 7000,'
        ' "extra": {"db": 2, "ssl": true, "ssl_ca_certs": "/ca.pem", "ssl_check_hostname": true}}',
    ],
)
def test_a_redis_connection_is_read_as_airflows_provider_reads_it(tmp_path: Path, uri: str) -> None:
    read = settings(tmp_path, **{REDIS: uri})

    assert (read["redis_host"], read["redis_port"], read["redis_db"]) == ("cache", 7000, 2)
    assert (read["redis_tls"], read["redis_ca_file"]) == (True, "/ca.pem")


@pytest.mark.parametrize(
    ("name", "uri", "told"),
    [
        (POSTGRES, "postgres://db/crm?sslmod=require", "sslmod is no use here: it can be"),
        (POSTGRES, "postgres:///crm", "searchflow_postgres: has no host"),
        (REDIS, "redis://cache?ssl=on", "ssl='on' is no use here: it is true or false"),
        (REDIS, "redis://cache?ssl_cert_reqs=none", "it is always required"),
        (REDIS, "redis://cache/one", "db='one' is no use here: it is a whole number"),
    ],
)
def test_what_a_connection_cannot_mean_is_told_in_one_line(
    tmp_path: Path, name: str, uri: str, told: str
) -> None:
    error: Any = settings(tmp_path, **{name: uri})

    assert told in error
    assert "\n" not in error


def settings(home: Path, **environment: str) -> Any:
    """What the service's settings are, or what is wrong with them."""
    ours = {k: v for k, v in Airflow(home).environment.items() if not settings_in([k])}
    read = subprocess.run(
        [AIRFLOW / "python", "-c", READ],
        env={**ours, **environment},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return json.loads(read.stdout.splitlines()[-1])

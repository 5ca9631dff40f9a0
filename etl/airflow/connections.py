"""The service's settings, as far as Airflow keeps them: Connections and a Variable."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.sdk import Connection, Variable
from airflow.sdk.exceptions import AirflowNotFoundException

from etl.errors import UsageError
from etl.plumbing import log
from etl.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Set

POSTGRES_CONN_ID = "searchflow_postgres"
REDIS_CONN_ID = "searchflow_redis"
DUCKDB_PATH = "searchflow_duckdb_path"  # a Variable

# Extras of a Postgres Connection that go to libpq under their own names.
_LIBPQ = frozenset(
    (
        "channel_binding",
        "gssencmode",
        "krbsrvname",
        "require_auth",
        "ssl_min_protocol_version",
        "sslcert",
        "sslcrl",
        "sslkey",
        "sslmode",
        "sslnegotiation",
        "sslrootcert",
        "target_session_attrs",
    )
)
# And those that the service sets itself: what they say here has no effect, and does no harm.
_OURS = frozenset(
    (
        "application_name",
        "client_encoding",
        "connect_timeout",
        "cursor",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
    )
)
# Extras of a Redis Connection, as Airflow's provider for Redis names them; and of Sentinels.
_REDIS = {
    "sentinel": "redis_sentinel",
    "sentinel_password": "redis_sentinel_password",
    "ssl_ca_certs": "redis_ca_file",
    "ssl_certfile": "redis_cert_file",
    "ssl_keyfile": "redis_key_file",
}
# What the service does in any case.
_ALWAYS = {"ssl_cert_reqs": "required", "ssl_check_hostname": "true"}


def settings(
    postgres_conn_id: str = POSTGRES_CONN_ID,
    redis_conn_id: str = REDIS_CONN_ID,
    duckdb_path: str | None = None,
) -> Settings:
    """Read the settings of the environment, and in their place those that Airflow keeps.

    A Connection that exists replaces every setting of its server: what it leaves open has the
    default, not what the environment says. Which one is used is logged.

    Args:
        postgres_conn_id: POSTGRES_*.
        redis_conn_id: REDIS_*.
        duckdb_path: DUCKDB_PATH; if it is None, the Variable `searchflow_duckdb_path`.

    Raises:
        UsageError: a Connection without host, or with an extra that means nothing here.
    """
    found: dict[str, Any] = {}
    origin: dict[str, Any] = {
        "postgres": "environment",
        "redis": "environment",
        "warehouse": "environment",
    }
    if (postgres := _connection(postgres_conn_id)) is not None:
        found |= _of_postgres(postgres)
        origin["postgres"] = f"connection {postgres_conn_id}"
    if (redis := _connection(redis_conn_id)) is not None:
        found |= _of_redis(redis)
        origin["redis"] = f"connection {redis_conn_id}"
    if duckdb_path:
        found["duckdb_path"], origin["warehouse"] = duckdb_path, "parameter duckdb_path"
    elif path := Variable.get(DUCKDB_PATH, default=None):
        found["duckdb_path"], origin["warehouse"] = path, f"variable {DUCKDB_PATH}"
    log.event("settings.read", **origin)
    others = {name: value for name, value in os.environ.items() if name.lower() not in found}
    return replace(Settings.from_environment(others), **found)


def _connection(conn_id: str) -> Any:
    try:
        return Connection.get(conn_id)
    except AirflowNotFoundException:
        return None


def _of_postgres(connection: Any) -> dict[str, Any]:
    extra = _extra(connection, _LIBPQ | _OURS)
    return {
        "postgres_host": _host(connection),
        "postgres_port": connection.port or Settings.postgres_port,
        "postgres_db": connection.schema or Settings.postgres_db,
        "postgres_user": connection.login or Settings.postgres_user,
        "postgres_password": connection.password or None,
        "libpq": tuple((name, str(extra[name])) for name in sorted(_LIBPQ & extra.keys())),
    }


def _of_redis(connection: Any) -> dict[str, Any]:
    extra = _extra(connection, {"db", "ssl", *_REDIS, *_ALWAYS})
    # Text, as in a URI: `?ssl=true`.
    words = {name: str(value).lower() for name, value in extra.items()}
    for name, only in _ALWAYS.items():
        if words.get(name, only) != only:
            raise _useless(connection, f"{name}={extra[name]!r}", f"it is always {only}")
    tls = words.get("ssl", str(connection.conn_type == "rediss").lower())
    if tls not in ("true", "false"):
        raise _useless(connection, f"ssl={extra['ssl']!r}", "it is true or false")
    database = words.get("db", connection.schema or "0")
    if not database.isdecimal():
        raise _useless(connection, f"db={database!r}", "it is a whole number")
    return {
        "redis_host": _host(connection),
        "redis_port": connection.port or Settings.redis_port,
        "redis_db": int(database),
        "redis_username": connection.login or None,
        "redis_password": connection.password or None,
        "redis_tls": tls == "true",
        **{setting: extra.get(name) for name, setting in _REDIS.items()},
    }


def _host(connection: Any) -> str:
    if not connection.host:
        raise UsageError(f"connection {connection.conn_id}: has no host; give it one, or delete it")
    host: str = connection.host
    return host


def _extra(connection: Any, known: Set[str]) -> dict[str, Any]:
    extra: dict[str, Any] = connection.extra_dejson
    if unknown := sorted(extra.keys() - known):
        can_be = f"it can be {', '.join(sorted(known))}"
        raise _useless(connection, ", ".join(unknown), can_be)
    return extra


def _useless(connection: Any, extra: str, why: str) -> UsageError:
    return UsageError(f"connection {connection.conn_id}: extra {extra} is no use here: {why}")

"""How to log in to Postgres: the connection string, and what must hold from the first moment."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from adbc_driver_manager.dbapi import Connection as Raw

    from etl.settings import Settings

CONNECT_SECONDS = 10

# Before session.sql is run the driver calls version(), and libpq prints what the server says.
_AT_ONCE = (
    "-c search_path=pg_catalog,pg_temp -c client_min_messages=error"
    " -c statement_timeout=0 -c idle_in_transaction_session_timeout=0"
)


def login(settings: Settings, application: str) -> Raw:
    """Open a connection under that application_name; errors are the driver's own."""
    from adbc_driver_postgresql import dbapi

    # The driver's own default reads all of pg_attribute first: 40 ms.
    connect: Callable[[str], Raw] = partial(
        dbapi.connect, db_kwargs={"adbc.postgresql.type_resolver_mode": "builtin"}
    )
    conninfo = _conninfo(settings, application)
    options = f"{os.environ.get('PGOPTIONS', '')} {_AT_ONCE}"
    try:
        return connect(f"{conninfo} options={_quoted(options)}")
    except dbapi.Error as error:
        if "unsupported startup parameter" not in str(error):
            raise
    return connect(conninfo)  # PgBouncer takes no options


def _conninfo(settings: Settings, application: str) -> str:
    parts = {
        "host": settings.postgres_host,
        "hostaddr": "",  # or PGHOSTADDR would lead elsewhere
        "port": settings.postgres_port,
        "dbname": settings.postgres_db,
        "user": settings.postgres_user,
        "password": settings.postgres_password,
        "application_name": application,
        "client_encoding": "UTF8",  # in which the driver speaks, whatever is set
        "connect_timeout": CONNECT_SECONDS,
        # A network that drops everything is noticed in 25 s; session.sql asks the same of the
        # server, so that a lock is not held for long by a client that is gone.
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 25_000,
        **dict(settings.libpq),
    }
    return " ".join(f"{key}={_quoted(value)}" for key, value in parts.items() if value is not None)


def _quoted(value: object) -> str:
    """Quote a conninfo value as libpq asks for it, so that any character may be in a password."""
    escaped = str(value).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"

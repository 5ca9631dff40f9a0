"""Every environment variable of the service, read once and passed down.

A variable is looked for in the environment, then as a Docker secret (a file named like the
variable in lower case under /run/secrets), then comes the default. An empty one counts as
unset. libpq's own variables (PGSSLMODE, PGSSLROOTCERT, PGPASSFILE, ...) are read by libpq.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import Field, dataclass, field, fields
from typing import Any

from etl.errors import UsageError
from etl.plumbing.environment import text_of, value_of
from etl.plumbing.redact import hide


def _setting(default: Any, *, secret: bool = False, **limits: float) -> Any:
    """One variable: its default, its limits (min, max), and whether to hide it."""
    return field(default=default, repr=not secret, metadata={"variable": True, **limits})


@dataclass(frozen=True)
class Settings:
    """The service's settings; each field is the variable of the same name in capitals.

    What each means is in docs/settings.md.

    To run with others than the environment has, hand `sync()` a copy:
    `sync(settings=replace(Settings.from_environment(), postgres_host="db"))` (dataclasses).
    """

    duckdb_path: str = _setting("/data/searchflow.duckdb")
    mart_schema: str | None = _setting(None)
    etl_sql_dir: str | None = _setting(None)
    warehouse_wait: float = _setting(60.0, min=0)

    postgres_host: str = _setting("postgres")
    postgres_port: int = _setting(5432, min=1, max=65535)
    postgres_db: str = _setting("searchflow")
    postgres_user: str = _setting("airflow")
    postgres_password: str | None = _setting("airflow", secret=True)

    postgres_statement_timeout: float = _setting(900.0, min=1, max=1_000_000)

    # No variable: libpq reads PGSSLMODE and the like by itself. For who builds settings in code:
    # (("sslmode", "verify-full"), ...), parameters of libpq beside those above.
    libpq: tuple[tuple[str, str], ...] = ()

    redis_host: str = _setting("redis")
    redis_port: int = _setting(6379, min=1, max=65535)
    redis_db: int = _setting(0, min=0)
    redis_username: str | None = _setting(None)
    redis_password: str | None = _setting(None, secret=True)
    redis_sentinel: str | None = _setting(None)
    redis_sentinel_password: str | None = _setting(None, secret=True)
    redis_tls: bool = _setting(False)
    redis_ca_file: str | None = _setting(None)
    redis_cert_file: str | None = _setting(None)
    redis_key_file: str | None = _setting(None)

    retry_seconds: float = _setting(30.0, min=0)

    reco_min_score: float = _setting(0.5, min=0, max=1)

    email_min_gap_hours: float = _setting(24.0, min=0, max=8_760)

    email_holdout: float = _setting(0.0, min=0, max=0.5)

    guard_max_shrink: float = _setting(0.5, min=0, max=1)
    guard_max_rejected: float = _setting(0.01, min=0, max=1)
    guard_max_delete: float = _setting(0.1, min=0, max=1)
    guard_max_change: float = _setting(0.6, min=0, max=1)
    guard_max_age_hours: float = _setting(48.0, min=0)
    guard_max_mails: float = _setting(0.25, min=0, max=1)
    guard_max_cancel: float = _setting(0.5, min=0, max=1)
    reject_limit: int = _setting(10_000, min=0)

    alert_urls: str | None = _setting(None, secret=True)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Read every setting.

        Raises:
            UsageError: naming every variable that does not parse or is out of range.
        """
        settings, problems = cls.parse(environment)
        if problems:
            raise UsageError(f"settings: {'; '.join(problems.values())}")
        return settings

    @classmethod
    def parse(cls, environment: Mapping[str, str] = os.environ) -> tuple[Settings, dict[str, str]]:
        """Read every setting; one that does not parse has its default, and its problem is told.

        Returns:
            The settings, and by the names of fields what is wrong with their variables.
        """
        values: dict[str, Any] = {}
        problems: dict[str, str] = {}
        for setting in _variables():
            try:
                if text := text_of(setting.name, environment):
                    kind = str(setting.type).removesuffix(" | None")
                    limits = setting.metadata.get("min"), setting.metadata.get("max")
                    values[setting.name] = value_of(text, kind, *limits)
            except ValueError as error:
                problem = f"{setting.name.upper()}: {error}"
                problems[setting.name] = hide(problem, env_secrets(environment))
        if "postgres_password" not in values and (
            environment.get("PGPASSWORD") or environment.get("PGPASSFILE")
        ):
            values["postgres_password"] = None
        return cls(**values), problems

    @property
    def secrets(self) -> list[str]:
        """Values that no output may contain."""
        every = (self.postgres_password, self.redis_password, self.redis_sentinel_password)
        return [value for value in (*every, *_split(self.alert_urls or "")) if value]

    @property
    def postgres_address(self) -> str:
        """How messages name the database: user@host:port/db."""
        return f"{self.postgres_user}@{self.postgres_host}:{self.postgres_port}/{self.postgres_db}"

    @property
    def redis_address(self) -> str:
        """How messages name the Redis server: host:port/db, a socket, or master@sentinels."""
        if self.redis_socket:
            return f"{self.redis_socket}, database {self.redis_db}"
        hosts = ",".join(f"{host}:{port}" for host, port in self.redis_addresses)
        master = f"{self.redis_sentinel}@" if self.redis_sentinel else ""
        return f"{master}{hosts}/{self.redis_db}"

    @property
    def redis_socket(self) -> str | None:
        """The Unix socket that REDIS_HOST names, if it names one."""
        return self.redis_host if self.redis_host.startswith("/") else None

    @property
    def redis_addresses(self) -> list[tuple[str, int]]:
        """The hosts in REDIS_HOST, each with its own port or REDIS_PORT."""
        named = [one.strip() for one in self.redis_host.split(",") if one.strip()]
        return [_address(one, self.redis_port) for one in named or [self.redis_host]]


def alert_urls(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The URLs in ALERT_URLS, also where another setting does not parse."""
    try:
        return _split(text_of("alert_urls", environment))
    except ValueError:
        return []


def env_secrets(environment: Mapping[str, str]) -> list[str]:
    """The secrets of the environment, also where another setting does not parse."""
    secrets: dict[str, Any] = {}
    for setting in _variables():
        if not setting.repr:
            with contextlib.suppress(ValueError):
                secrets[setting.name] = text_of(setting.name, environment)
    libpqs = Settings(postgres_password=environment.get("PGPASSWORD"))
    return Settings(**secrets).secrets + libpqs.secrets


_of_this_run: ContextVar[tuple[str, ...]] = ContextVar("etl_secrets", default=())


@contextlib.contextmanager
def hiding(secrets: Iterable[str]) -> Iterator[None]:
    """Hide these as well inside the block: settings need not come from the environment."""
    token = _of_this_run.set(tuple(secrets))
    try:
        yield
    finally:
        _of_this_run.reset(token)


def hidden(text: str) -> str:
    """Return a text without the secrets of this process and of the run at hand."""
    return hide(text, {*env_secrets(os.environ), *_of_this_run.get()})


def _variables() -> list[Field[Any]]:
    """The settings that the environment may hold."""
    return [setting for setting in fields(Settings) if "variable" in setting.metadata]


def _split(urls: str) -> list[str]:
    """Split at spaces, line ends, and commas before the next URL (they may hold some as well)."""
    return re.split(r"[\s,]+(?=[A-Za-z][A-Za-z0-9+.-]*://)", urls.strip()) if urls.strip() else []


def _address(text: str, port: int) -> tuple[str, int]:
    """Split `host:port`, `[::1]:port` or a host alone, which may be an IPv6 address."""
    found = re.fullmatch(r"(\[[^\]]+\]|[^:]+):(\d{1,5})", text)
    host = found[1] if found else text
    return host.removeprefix("[").removesuffix("]"), int(found[2]) if found else port

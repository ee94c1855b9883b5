"""The store as one PostgreSQL database, which the monitors of all replicas share.

Every wait is bounded on both sides. The server ends what takes too long or holds a lock too long;
but one that stands still, or that no packet reaches any more, ends nothing, so this side gives up
as well, and closes the connection. No message shows more of the URL than host, port and database.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import sqlalchemy as sa
from typing_extensions import override

from sidecar.config_monitor import StoreConfig
from sidecar.errors import MissingExtraError
from sidecar.monitor import store_migrate
from sidecar.monitor.database import Database
from sidecar.monitor.database_url import MISSING, read_url
from sidecar.monitor.rows import StoreError

try:
    import psycopg
except ImportError:
    raise MissingExtraError(MISSING) from None

if TYPE_CHECKING:
    from psycopg.abc import PQGen

#: Connections that are kept, and that may be opened beside them for a while. Whoever waits for one
#: waits for ``timeout_s``.
_KEPT, _MORE = 2, 6
#: Beyond the server's own limit, until this side gives up.
_MARGIN_S = 1.0
#: The first migration of a large database takes longer than a statement of every day.
_MIGRATION_S = 300.0
#: Of ``pg_advisory_xact_lock``: one migration at a time. Any number that nobody else takes.
_MIGRATING = 0x5349_4445
#: The error classes of a database whose tables are not those that were left there: undefined table,
#: schema; and one that is no more.
_NOT_AS_LEFT = {"42P01", "3F000", "3D000"}


class _Bounded(psycopg.Connection[Any]):
    """A connection that is closed when the server does not answer in time.

    ``tcp_user_timeout`` is not enough: the kernel of a server that stands still goes on to
    acknowledge what it gets.
    """

    wait_s = math.inf

    @override
    def wait(self, gen: PQGen[Any], *arguments: Any, **named: Any) -> Any:
        return super().wait(self._bounded(gen), *arguments, **named)

    def _bounded(self, gen: PQGen[Any]) -> Generator[Any, Any, Any]:
        until = time.monotonic() + self.wait_s
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > until:
                    self.pgconn.finish()
                    message = f"no answer within {self.wait_s:g} s"
                    raise psycopg.OperationalError(message)
                wanted = gen.send(ready)
        except StopIteration as done:
            return done.value


class PostgresDatabase(Database):
    """One database on a server, reached by few connections.

    Args:
        settings: the URL may name several hosts and any parameter of libpq.

    Raises:
        ConfigError: the URL cannot be read.
    """

    def __init__(self, settings: StoreConfig) -> None:
        given = read_url(settings)
        host = given.get("host") or given.get("hostaddr") or "localhost"
        port = given.get("port") or 5432
        super().__init__(f"PostgreSQL at {host}:{port}/{given.get('dbname') or ''}")
        self._timeout_s = settings.timeout_s
        self._secrets = _forms(str(given.get("password") or "")) | {settings.url.get_secret_value()}
        wait_ms = int((settings.timeout_s + _MARGIN_S) * 1000)
        self._parameters: dict[str, Any] = {
            "connect_timeout": max(2, math.ceil(settings.timeout_s)),
            "application_name": "model-sidecar",
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": wait_ms,
            **given,
        }

    @override
    def start(self) -> None:
        if self._engine is None:
            self._engine = self._make_engine()
        try:
            with self._engine.begin() as connection:
                self._migrate(connection)
                self.enter(connection)
        except store_migrate.NewerSchemaError as error:
            message = (
                f"{self.where} was written by a newer release ({error}): upgrade model-sidecar"
            )
            raise StoreError(message) from None
        except sa.exc.SQLAlchemyError as error:
            message = f"{self.where} cannot be opened: {self.reason(error)}"
            raise StoreError(message) from None

    def _make_engine(self) -> sa.Engine:
        return sa.create_engine(
            "postgresql+psycopg://",
            creator=self._connect,
            pool_size=_KEPT,
            max_overflow=_MORE,
            pool_timeout=self._timeout_s,
            pool_pre_ping=True,
            pool_use_lifo=True,
            use_native_hstore=False,
        )

    def _connect(self) -> psycopg.Connection[Any]:
        connection = _Bounded.connect(**self._parameters)
        assert isinstance(connection, _Bounded)
        connection.wait_s = self._timeout_s + _MARGIN_S
        timeout = f"{int(self._timeout_s * 1000)}ms"
        # Set here rather than when connecting (``options``), which poolers in between refuse.
        connection.execute(
            "SELECT set_config('statement_timeout', %(t)s, false),"
            " set_config('lock_timeout', %(t)s, false),"
            " set_config('idle_in_transaction_session_timeout', %(t)s, false)",
            {"t": timeout},
        )
        connection.commit()
        return connection

    def _migrate(self, connection: sa.Connection) -> None:
        """Make the tables; of several monitors that start at once, one at a time does."""
        if store_migrate.is_current(connection):
            return
        raw = connection.connection.driver_connection
        assert isinstance(raw, _Bounded)
        usual, raw.wait_s = raw.wait_s, _MIGRATION_S + _MARGIN_S
        try:
            limit = f"{int(_MIGRATION_S * 1000)}ms"
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = '{limit}'")
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{limit}'")
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATING)))
            store_migrate.migrate(connection)
        finally:
            raw.wait_s = usual

    @override
    def reason(self, error: BaseException) -> str:
        origin = getattr(error, "orig", None) or error
        text = " ".join(str(origin).split()) or type(origin).__name__
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return text

    @override
    def is_damage(self, error: BaseException | None) -> bool:
        return getattr(error, "sqlstate", None) in _NOT_AS_LEFT

    @override
    def size_bytes(self) -> int:
        return 0

    @override
    def _snapshot(self, engine: sa.Engine) -> AbstractContextManager[sa.Connection]:
        return engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        ).connect()


def _forms(password: str) -> set[str]:
    """A password as it may stand in a text; none where there is none."""
    return {password, quote(password), quote(password, safe="")} if password else set()

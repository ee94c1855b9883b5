"""The URL of the database that all replicas share, read without connecting to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sidecar.errors import ConfigError, MissingExtraError, Problem

if TYPE_CHECKING:
    from sidecar.config_monitor import StoreConfig

MISSING = "monitor.store is a PostgreSQL database, which needs psycopg: install "
MISSING += "model-sidecar[postgres]"


def read_url(settings: StoreConfig) -> dict[str, Any]:
    """The parameters of libpq that the URL gives, by name.

    Raises:
        ConfigError: it cannot be read. MissingExtraError: psycopg is not installed.
    """
    try:
        import psycopg
        from psycopg.conninfo import conninfo_to_dict
    except ImportError:  # also of a psycopg that finds no libpq
        raise MissingExtraError(MISSING) from None
    try:
        return conninfo_to_dict(settings.url.get_secret_value())
    except psycopg.Error:  # its text may hold the password
        problem = Problem("monitor.store.url", "is no PostgreSQL URL: postgresql://USER@HOST/…")
        raise ConfigError("monitor.store", [problem]) from None

"""Bringing the store's tables to this release's, by Alembic, whenever it is opened."""

from __future__ import annotations

import importlib.resources
import threading
from typing import TYPE_CHECKING

import sqlalchemy as sa

if TYPE_CHECKING:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

#: Alembic's revisions speak through globals: one migration at a time in a process.
_MIGRATING = threading.Lock()


class NewerSchemaError(Exception):
    """The database has a revision that this release does not know; the text names it."""


def is_current(connection: sa.Connection) -> bool:
    """Whether the tables are those of this release already."""
    _, scripts, current = _revisions(connection)
    return bool(current == scripts.get_current_head())


def migrate(connection: sa.Connection) -> None:
    """Bring the tables to this release's revision, within the connection's transaction.

    Raises:
        NewerSchemaError: a later release wrote it.
    """
    from alembic import command

    config, scripts, current = _revisions(connection)
    if current == scripts.get_current_head():
        return
    if current is not None and current not in {item.revision for item in scripts.walk_revisions()}:
        message = f"revision {current}, while this release knows up to {scripts.get_current_head()}"
        raise NewerSchemaError(message)
    with _MIGRATING:
        command.upgrade(config, "head")


def _revisions(connection: sa.Connection) -> tuple[Config, ScriptDirectory, str | None]:
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = Config()
    folder = importlib.resources.files("sidecar.monitor.migrations")
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.attributes["connection"] = connection
    current = MigrationContext.configure(connection).get_current_revision()
    return config, ScriptDirectory.from_config(config), current

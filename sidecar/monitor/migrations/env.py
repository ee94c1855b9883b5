"""Alembic's entry: runs the revisions on the connection that ``store_tables.migrate`` hands over.

There is no alembic.ini and no offline mode: the store migrates itself when it is opened.
"""

from alembic import context

from sidecar.monitor.store_tables import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    # SQLite cannot alter most of a table: later revisions copy it instead.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()

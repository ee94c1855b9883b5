"""How the store's tables came to be: Alembic revisions, run by ``store_tables.migrate`` on open."""

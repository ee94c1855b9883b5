"""Drift: live references, the rows they are made of, open windows, and those that are over."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "drift_references",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("plain", sa.Text, nullable=False),
    )
    for name in ("drift_rows", "drift_history"):
        op.create_table(
            name,
            sa.Column("model", sa.Text, primary_key=True),
            sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
            sa.Column("plain", sa.Text, nullable=False),
        )
    op.create_table(
        "drift_windows",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("incarnation", sa.Text, primary_key=True),
        sa.Column("plain", sa.Text, nullable=False),
        sa.Column("updated_ns", sa.BigInteger, nullable=False),
    )

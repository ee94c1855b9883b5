"""Rollback: states of version pairs, decisions, freezes, and alerts on their way."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "rollback_pairs",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("new", sa.Text, primary_key=True),
        sa.Column("previous", sa.Text, primary_key=True),
        sa.Column("identity", sa.Text, primary_key=True),
        sa.Column("plain", sa.Text, nullable=False),
    )
    op.create_table(
        "rollback_freezes",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("plain", sa.Text, nullable=False),
    )
    op.create_table(
        "decisions",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("wall_ns", sa.BigInteger, nullable=False),
        sa.Column("action_state", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("plain", sa.Text, nullable=False),
    )
    op.create_index("decisions_by_age", "decisions", ["model", "wall_ns"])
    op.create_table(
        "outbox",
        sa.Column("alert", sa.Text, primary_key=True),
        sa.Column("channel", sa.Text, primary_key=True),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("due_ns", sa.BigInteger, nullable=False),
        sa.Column("plain", sa.Text, nullable=False),
    )
    op.create_index("outbox_by_due", "outbox", ["state", "due_ns"])

"""Several monitors on one PostgreSQL: who decides, who lives, routes, and what is joined."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables, and say of each row of counts by which transaction it was written."""
    for table in ("evidence", "sketches"):
        written = sa.Column("written", sa.BigInteger, nullable=False, server_default="0")
        op.add_column(table, written)
        op.create_index(f"{table}_by_written", table, ["written"])
    for table in ("decisions", "rollback_pairs"):
        revision = sa.Column("revision", sa.BigInteger, nullable=False, server_default="0")
        op.add_column(table, revision)
    op.create_table(
        "leader",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("expires_ns", sa.BigInteger, nullable=False),
        sa.Column("plain", sa.Text, nullable=False),
    )
    op.create_table(
        "replicas",
        sa.Column("incarnation", sa.Text, primary_key=True),
        sa.Column("seen_ns", sa.BigInteger, nullable=False),
        sa.Column("plain", sa.Text, nullable=False),
    )
    op.create_table(
        "routes",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("plain", sa.Text, nullable=False),
    )
    parts = ("model", "candidate", "baseline", "output", "metric", "policy")
    op.create_table(
        "pools",
        *(sa.Column(part, sa.Text, primary_key=True) for part in parts),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("plain", sa.Text, nullable=False),
    )
    op.create_table(
        "labels_offered",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("wall_ns", sa.BigInteger, nullable=False),
        sa.Column("written", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("plain", sa.Text, nullable=False),
    )
    op.create_index("labels_offered_by_written", "labels_offered", ["written"])

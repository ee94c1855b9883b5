"""Several monitors on one PostgreSQL: who decides, who lives, routes, and what is joined."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def _counts() -> None:
    seq = sa.Column("seq", sa.BigInteger, nullable=False, server_default="0")
    op.add_column("sketches", seq)
    op.create_index("sketches_by_seq", "sketches", ["incarnation", "seq"])
    op.create_table(
        "lives",
        sa.Column("incarnation", sa.Text, primary_key=True),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("folded", sa.Boolean, nullable=False),
        sa.Column("since_ns", sa.BigInteger, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
    )
    op.create_table(
        "packs",
        *(sa.Column(p, sa.Text, primary_key=True) for p in ("model", "candidate", "baseline")),
        sa.Column("block", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("incarnation", sa.Text, primary_key=True),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("layout_id", sa.Text, nullable=False),
        sa.Column("layout", sa.Text, nullable=False),
        sa.Column("counts", sa.LargeBinary, nullable=False),
        sa.Column("updated_ns", sa.BigInteger, nullable=False),
    )
    op.create_index("packs_by_seq", "packs", ["incarnation", "seq"])
    if op.get_bind().dialect.name == "postgresql":
        # Numbers of a flush barely compress, and it would take longer than to write them.
        op.execute("ALTER TABLE packs ALTER COLUMN counts SET STORAGE EXTERNAL")


def upgrade() -> None:
    """Make the tables."""
    _counts()
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

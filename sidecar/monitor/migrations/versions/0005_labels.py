"""Late labels: answers that wait for theirs, and labels that came before their request."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "labels_waiting",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("request_id", sa.Text, primary_key=True),
        sa.Column("wall_ns", sa.BigInteger, nullable=False),
        sa.Column("plain", sa.Text, nullable=False),
    )
    op.create_index("labels_waiting_by_age", "labels_waiting", ["model", "wall_ns"])

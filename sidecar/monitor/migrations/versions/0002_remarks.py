"""Remarks: the worst values and the first structural problem of an output, over all lives."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "remarks",
        *(
            sa.Column(name, sa.Text, primary_key=True)
            for name in ("model", "candidate", "baseline", "output", "policy")
        ),
        sa.Column("plain", sa.Text, nullable=False),
    )

"""The first tables: evidence, sketches, certificates, cases, events, incarnations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _key() -> list[sa.Column[str] | sa.Column[int]]:
    names = ("model", "candidate", "baseline", "output", "metric", "policy")
    return [
        *(sa.Column(name, sa.Text, primary_key=True) for name in names),
        sa.Column("block", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("incarnation", sa.Text, primary_key=True),
    ]


def upgrade() -> None:
    """Make the tables."""
    for name, value in (("evidence", "cells"), ("sketches", "plain")):
        op.create_table(
            name,
            *_key(),
            sa.Column(value, sa.Text, nullable=False),
            sa.Column("updated_ns", sa.BigInteger, nullable=False),
        )
    op.create_table(
        "certificates",
        *(
            sa.Column(name, sa.Text, primary_key=True)
            for name in ("model", "candidate", "baseline", "output", "policy")
        ),
        sa.Column("best_log_e", sa.Double, nullable=False),
        sa.Column("certified_ns", sa.BigInteger, nullable=True),
    )
    op.create_table(
        "cases",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("wall_ns", sa.BigInteger, nullable=False),
        sa.Column("plain", sa.Text, nullable=False),
    )
    op.create_index("cases_by_age", "cases", ["model", "wall_ns"])
    op.create_table(
        "events",
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("plain", sa.Text, nullable=False),
    )
    op.create_table(
        "incarnations",
        sa.Column("incarnation", sa.Text, primary_key=True),
        sa.Column("started_ns", sa.BigInteger, nullable=False),
        sa.Column("pid", sa.BigInteger, nullable=False),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
    )

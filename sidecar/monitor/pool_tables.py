"""The tables of blocks over all replicas (``pool_store.py``)."""

from __future__ import annotations

import sqlalchemy as sa

from sidecar.monitor.store_tables import KEY, METADATA, Json

#: Pairs that a replica has handed over to be joined to blocks, until the leader takes them.
RESTS = sa.Table(
    "rests",
    METADATA,
    sa.Column("incarnation", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("upto", sa.BigInteger, nullable=False),
    sa.Column("plain", Json, nullable=False),
)
#: What is left of them of each series; without a model, how far a replica's rows were taken.
POOLS = sa.Table(
    "pools",
    METADATA,
    *(sa.Column(part, sa.Text, primary_key=True) for part in KEY[:-1]),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("plain", Json, nullable=False),
)

"""Blocks of pairs (``validators/sequential/paired.py``), made fewer as they grow old.

A change is looked for from the beginning of every block on. How exactly its beginning is known
matters less the longer ago it was, and a monitor that lives for months has thousands of blocks: so
the latest stay as they are, and older ones are joined to stretches that double in length, eight for
each doubling. A stretch is the count of its blocks, under the number of its first: no sum changes.

Which blocks are joined depends on their age only, never on what was counted: what is left of the
starts is a choice that was made without looking.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sidecar.monitor.rows import EvidenceKey, EvidenceRow

#: The latest blocks, which stay as they are.
_LATEST = 16
#: Stretches of each length.
_EACH = 8


def stretch_of(block: int, latest: int) -> int:
    """The first block of the stretch that ``block`` belongs to when ``latest`` is the newest one.

    Rises with ``block``, and never exceeds it: what is joined goes to the stretch before it.
    """
    age = latest - block
    if age < _LATEST:
        return block
    length: int = 1 << ((age // _EACH).bit_length() - 1)
    return block // length * length


def join(
    rows: Iterable[EvidenceRow],
) -> tuple[list[EvidenceRow], list[tuple[EvidenceKey, str]]]:
    """Join the old blocks among rows of any keys and incarnations, each incarnation's apart.

    Returns:
        The rows that are others now (new objects), and what went into them: key and incarnation.
    """
    left = {(row.key, row.incarnation): row for row in rows}
    latest: dict[EvidenceKey, int] = {}
    for key, _ in left:
        whole = replace(key, block=0)
        latest[whole] = max(latest.get(whole, 0), key.block)
    changed: set[tuple[EvidenceKey, str]] = set()
    gone: list[tuple[EvidenceKey, str]] = []
    for key, life in sorted(left):
        first = stretch_of(key.block, latest[replace(key, block=0)])
        if first == key.block:
            continue
        row = left.pop((key, life))
        changed.discard((key, life))
        gone.append((key, life))
        target = replace(key, block=first), life
        at = left.get(target)
        cells = dict(at.cells) if at is not None else {}
        for name, count in row.cells.items():
            cells[name] = cells.get(name, 0.0) + count
        updated_ns = max(row.updated_ns, at.updated_ns if at is not None else 0)
        left[target] = EvidenceRow(*target, cells, updated_ns)
        changed.add(target)
    return [left[target] for target in sorted(changed)], gone

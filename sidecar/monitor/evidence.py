"""Counts that decisions are made from: gathered in memory, flushed to the store, read back.

Each key's cells are cumulative for this life of the process (its incarnation); what earlier lives
left in the store is read once and added whenever somebody looks. So a flush that fails loses
nothing, and replicas or restarts never count an exchange twice.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from sidecar.clock import Clock
from sidecar.monitor import blocks
from sidecar.monitor.rows import (
    CertificateRow,
    EvidenceKey,
    EvidenceRow,
    Remark,
    SketchRow,
    StoreError,
)
from validators.sketches import LogHistogram

if TYPE_CHECKING:
    from sidecar.monitor.pool_rests import Rests
    from sidecar.monitor.store import Store

logger = logging.getLogger("sidecar.monitor.evidence")

Cells = dict[str, float]
CertificateKey = tuple[str, str, str, str, str]


class Evidence:
    """Accumulators. Any thread may add and look; one flushes.

    Args:
        incarnation: this life's name.

    Attributes:
        refreshes: how often what others have counted was read (``evidence_shared.py``).
        rests: where pairs wait to be joined to blocks with those of other replicas; ``None``: there
            are no others.
    """

    def __init__(self, incarnation: str, clock: Clock) -> None:
        self.incarnation = incarnation
        self.refreshes = 0
        self.rests: Rests | None = None
        self._clock = clock
        self._lock = threading.Lock()
        self._own: dict[EvidenceKey, Cells] = {}
        self._older: dict[EvidenceKey, Cells] = {}
        self._older_rows: list[EvidenceRow] = []
        self._sketches: dict[EvidenceKey, LogHistogram] = {}
        self._older_sketches: dict[EvidenceKey, LogHistogram] = {}
        self._certificates: dict[CertificateKey, CertificateRow] = {}
        self._remarks: dict[EvidenceKey, Remark] = {}
        self._changed_remarks: set[EvidenceKey] = set()
        self._changed: set[EvidenceKey] = set()
        self._touched: set[EvidenceKey] | None = None
        self._changed_older: dict[tuple[EvidenceKey, str], EvidenceRow] = {}
        self._gone: set[tuple[EvidenceKey, str]] = set()
        self._has_new_block = False
        self._changed_sketches: set[EvidenceKey] = set()
        self._changed_certificates: set[CertificateKey] = set()
        self._generation: int | None = None
        self._failing = False
        #: In order, until there is a new one: there are thousands, and sorting takes 30 ms.
        self._keys: list[EvidenceKey] | None = None

    # --- counting -----------------------------------------------------------------------------

    def add(self, key: EvidenceKey, cells: Mapping[str, float]) -> None:
        """Add to a key's cells; numbers are finite."""
        with self._lock:
            own = self._own.get(key)
            if own is None:
                own = self._own[key] = {}
                self._began(key)
            for name, count in cells.items():
                own[name] = own.get(name, 0.0) + float(count)
            self._changed.add(key)
            if self._touched is not None:
                self._touched.add(key)

    def _began(self, key: EvidenceKey) -> None:
        self._keys = None
        self._has_new_block = self._has_new_block or key.block > 0

    def set_cells(self, key: EvidenceKey, cells: Mapping[str, float]) -> None:
        """Set a key's cells of this life: where somebody else counts."""
        with self._lock:
            if key not in self._own:
                self._own[key] = {}
                self._began(key)
            if self._own[key] != cells:
                self._own[key] = dict(cells)
                self._changed.add(key)
                if self._touched is not None:
                    self._touched.add(key)

    def remark(self, key: EvidenceKey, remark: Remark) -> None:
        """Remember what is worth it of an output; ``key`` is without a metric."""
        with self._lock:
            if self._remarks.setdefault(key, Remark()).merge(remark):
                self._changed_remarks.add(key)

    def add_sketch(self, key: EvidenceKey, sketch: LogHistogram) -> None:
        """Merge a histogram into a key's."""
        with self._lock:
            self._sketches.setdefault(key, LogHistogram()).merge(sketch)
            self._changed_sketches.add(key)

    def note_certificate(self, key: CertificateKey, log_e: float, *, certified: bool) -> bool:
        """Latch a certificate's best evidence; returns whether it was certified just now.

        Args:
            key: (model, candidate, baseline, output, policy).
            log_e: at this look.
            certified: the best evidence suffices.
        """
        with self._lock:
            row = self._certificates.get(key) or CertificateRow(*key, best_log_e=float("-inf"))
            newly = certified and row.certified_ns is None
            if log_e > row.best_log_e or newly:
                at = self._clock.now_ns() if newly else row.certified_ns
                best = max(log_e, row.best_log_e)
                self._certificates[key] = replace(row, best_log_e=best, certified_ns=at)
                self._changed_certificates.add(key)
            return newly

    # --- looking ------------------------------------------------------------------------------

    def cells(self, key: EvidenceKey) -> Cells:
        """Cells of a key over all lives."""
        with self._lock:
            total = dict(self._older.get(key, {}))
            for name, count in self._own.get(key, {}).items():
                total[name] = total.get(name, 0.0) + count
            return total

    def own_cells(self, key: EvidenceKey) -> Cells:
        """Cells of a key, of this life only."""
        with self._lock:
            return dict(self._own.get(key, {}))

    def total(self, key: EvidenceKey) -> float:
        """The sum of all cells of a key over its blocks and all lives; ``key``: with block 0."""
        of = (key.metric, key.candidate, key.baseline, key.policy, key.output, key.model)
        with self._lock:
            return sum(
                sum(cells.values())
                for source in (self._older, self._own)
                for each, cells in source.items()
                if each.metric == of[0]
                and (each.metric, each.candidate, each.baseline, each.policy, each.output,
                     each.model) == of
            )  # fmt: skip

    def now_ns(self) -> int:
        """Wall clock."""
        return self._clock.now_ns()

    def monotonic_ns(self) -> int:
        """For time that passes."""
        return self._clock.monotonic_ns()

    def latest_cells(self, key: EvidenceKey) -> Cells:
        """Cells of a key as the latest of the earlier lives left them."""
        with self._lock:
            rows = [row for row in self._older_rows if row.key == key]
            return dict(max(rows, key=lambda row: row.updated_ns).cells) if rows else {}

    def remarks(self, key: EvidenceKey) -> Remark:
        """What was remembered of an output, over all lives."""
        with self._lock:
            found = Remark()
            found.merge(self._remarks.get(key, found))
            return found

    def take_touched(self) -> set[EvidenceKey] | None:
        """Keys whose cells have changed since the last call; ``None``: any may have.

        For one caller, who keeps what it has read of the others: reading all of them again takes
        longer than what is made of them.
        """
        with self._lock:
            touched, self._touched = self._touched, set()
            return touched

    def all_keys(self) -> list[EvidenceKey]:
        """All keys of which anything was ever counted."""
        with self._lock:
            if self._keys is None:
                self._keys = sorted(self._own.keys() | self._older.keys())
            return list(self._keys)

    def sketch(self, key: EvidenceKey) -> LogHistogram:
        """A key's histogram over all lives; empty where there is none."""
        with self._lock:
            total = LogHistogram()
            for source in (self._older_sketches, self._sketches):
                if key in source:
                    total.merge(source[key])
            return total

    def certificate(self, key: CertificateKey) -> CertificateRow | None:
        """What a certificate has reached so far."""
        with self._lock:
            return self._certificates.get(key)

    def rows(self, model: str | None) -> list[EvidenceRow]:
        """Rows of every life, of one model or all."""
        now_ns = self._clock.now_ns()
        with self._lock:
            own = [
                EvidenceRow(key, self.incarnation, dict(cells), now_ns)
                for key, cells in self._own.items()
            ]
            return [
                row
                for row in (*self._older_rows, *own)
                # Of no model: what the monitor keeps of itself.
                if row.key.model and model in {None, row.key.model}
            ]

    # --- the store ----------------------------------------------------------------------------

    def refresh(self, store: Store) -> None:
        """Read what other monitors have counted since; with a store of its own there are none.

        Raises:
            StoreError: it cannot be read; the next call reads all of it.
        """

    def load(self, store: Store) -> None:
        """Read what earlier lives left, and go by the store's name for this life from now on.

        May come late (the store could not be opened before): then all of this life so far is
        written at the next flush.

        Raises:
            StoreError: it cannot be read.
        """
        rows, sketches = store.evidence(), store.sketches()
        certificates, remarks = store.certificates(), store.remarks()
        with self._lock:
            self.incarnation = store.incarnation
            self._older_sketches.clear()
            self._older_rows = [row for row in rows if row.incarnation != self.incarnation]
            self._sum_older()
            for place, remark in remarks.items():
                self._remarks.setdefault(place, Remark()).merge(remark)
            for sketch in sketches:
                if sketch.incarnation != self.incarnation:
                    self._merge_older(sketch)
            for certificate in certificates:
                key = certificate_key(certificate)
                own = self._certificates.get(key)
                if own is None or own.best_log_e < certificate.best_log_e:
                    self._certificates[key] = certificate
            self._generation = store.generation
            self._has_new_block = True

    def _sum_older(self) -> None:
        self._older.clear()
        self._touched = None  # after a load, or when blocks were joined
        for row in self._older_rows:
            cells = self._older.setdefault(row.key, {})
            for name, count in row.cells.items():
                cells[name] = cells.get(name, 0.0) + count
        self._keys = None

    def _join_blocks(self) -> None:
        """Join blocks of pairs that are long past: this life's, and in step with it the others'.

        (A stretch that began for one life and not for another would be a start of neither.)
        """
        self._has_new_block = False
        own = [EvidenceRow(key, "", cells) for key, cells in self._own.items()]
        changed, gone = blocks.join([*self._older_rows, *own])
        if not gone:
            return
        older = {(row.key, row.incarnation): row for row in self._older_rows}
        for key, life in gone:
            if life:
                del older[key, life]
                self._changed_older.pop((key, life), None)
            else:
                del self._own[key]
                self._changed.discard(key)
            self._gone.add((key, life or self.incarnation))
        for row in changed:
            if row.incarnation:
                older[row.key, row.incarnation] = row
                self._changed_older[row.key, row.incarnation] = row
            else:
                self._own[row.key] = row.cells
                self._changed.add(row.key)
        self._older_rows = list(older.values())
        self._sum_older()

    def _merge_older(self, row: SketchRow) -> None:
        try:
            histogram = LogHistogram.from_plain(row.plain)
        except ValueError as error:  # of another layout; counts do not depend on it
            logger.warning("a stored sketch of %s is left out: %s", row.key, error)
            return
        self._older_sketches.setdefault(row.key, LogHistogram()).merge(histogram)

    def flush(self, store: Store) -> bool:
        """Write what has changed; ``False``: the store refused, and it will be tried again."""
        if store.generation != self._generation:
            self._note_all(store.generation)
        with self._lock:
            if self._has_new_block:
                self._join_blocks()
            changed, self._changed = self._changed, set()
            older, self._changed_older = self._changed_older, {}
            gone, self._gone = self._gone, set()
            remarks, self._changed_remarks = self._changed_remarks, set()
            sketches, self._changed_sketches = self._changed_sketches, set()
            certificates, self._changed_certificates = self._changed_certificates, set()
            now_ns = self._clock.now_ns()
            rows = [EvidenceRow(k, self.incarnation, dict(self._own[k]), now_ns) for k in changed]
            sketch_rows = [
                SketchRow(key, self.incarnation, self._sketches[key].to_plain(), now_ns)
                for key in sketches
            ]
            rows += older.values()
            certificate_rows = [self._certificates[key] for key in certificates]
            remark_rows = {key: Remark(**asdict(self._remarks[key])) for key in remarks}
        try:
            if rows or gone:
                store.put_evidence(rows, gone)
            if remark_rows:
                store.put_remarks(remark_rows)
            _write(store, sketch_rows, certificate_rows)
        except StoreError as error:
            with self._lock:
                self._changed |= changed & self._own.keys()
                self._changed_older = older | self._changed_older
                self._gone |= gone
                self._changed_remarks |= remarks
                self._changed_sketches |= sketches
                self._changed_certificates |= certificates
            if not self._failing:  # once, not every two seconds
                logger.error("evidence is kept in memory only: %s", error)
            self._failing = True
            return False
        if self._failing:
            logger.info("evidence is written again")
        self._failing = False
        return True

    def _note_all(self, generation: int) -> None:
        """The store was begun afresh while open: all of this life is to be written again."""
        with self._lock:
            self._generation = generation
            self._changed |= self._own.keys()
            self._changed_remarks |= self._remarks.keys()
            self._changed_sketches |= self._sketches.keys()
            self._changed_certificates |= self._certificates.keys()


def certificate_key(row: CertificateRow) -> CertificateKey:
    """What ``Evidence.certificate`` is asked for."""
    return row.model, row.candidate, row.baseline, row.output, row.policy


def _write(
    store: Store,
    sketches: list[SketchRow],
    certificates: Iterable[CertificateRow],
) -> None:
    if sketches:
        store.put_sketches(sketches)
    for row in certificates:
        store.put_certificate(
            row.model, row.candidate, row.baseline, row.output, row.policy, row.best_log_e,
            row.certified_ns,
        )  # fmt: skip

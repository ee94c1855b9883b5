"""Counts that decisions are made from: gathered in memory, flushed to the store, read back.

Each key's cells are cumulative for this life of the process (its incarnation); what earlier lives
left in the store is read once and added whenever somebody looks. So a flush that fails loses
nothing, and replicas or restarts never count an exchange twice.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from sidecar.clock import Clock
from sidecar.monitor.rows import CertificateRow, EvidenceKey, EvidenceRow, SketchRow, StoreError
from validators.sketches import LogHistogram

if TYPE_CHECKING:
    from sidecar.monitor.store import Store

logger = logging.getLogger("sidecar.monitor.evidence")

Cells = dict[str, float]
CertificateKey = tuple[str, str, str, str, str]


class Evidence:
    """Accumulators. Any thread may add and look; one flushes.

    Args:
        incarnation: this life's name.
    """

    def __init__(self, incarnation: str, clock: Clock) -> None:
        self.incarnation = incarnation
        self._clock = clock
        self._lock = threading.Lock()
        self._own: dict[EvidenceKey, Cells] = {}
        self._older: dict[EvidenceKey, Cells] = {}
        self._older_rows: list[EvidenceRow] = []
        self._sketches: dict[EvidenceKey, LogHistogram] = {}
        self._older_sketches: dict[EvidenceKey, LogHistogram] = {}
        self._certificates: dict[CertificateKey, CertificateRow] = {}
        self._changed: set[EvidenceKey] = set()
        self._changed_sketches: set[EvidenceKey] = set()
        self._changed_certificates: set[CertificateKey] = set()
        self._generation: int | None = None
        self._failing = False

    # --- counting -----------------------------------------------------------------------------

    def add(self, key: EvidenceKey, cells: Mapping[str, float]) -> None:
        """Add to a key's cells; numbers are finite."""
        with self._lock:
            own = self._own.setdefault(key, {})
            for name, count in cells.items():
                own[name] = own.get(name, 0.0) + float(count)
            self._changed.add(key)

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

    def all_keys(self) -> list[EvidenceKey]:
        """All keys of which anything was ever counted."""
        with self._lock:
            return sorted(self._own.keys() | self._older.keys())

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
                row for row in (*self._older_rows, *own) if model is None or row.key.model == model
            ]

    # --- the store ----------------------------------------------------------------------------

    def load(self, store: Store) -> None:
        """Read what earlier lives left, and go by the store's name for this life from now on.

        May come late (the store could not be opened before): then all of this life so far is
        written at the next flush.

        Raises:
            StoreError: it cannot be read.
        """
        rows, sketches = store.evidence(), store.sketches()
        certificates = store.certificates()
        with self._lock:
            self.incarnation = store.incarnation
            self._older.clear()
            self._older_sketches.clear()
            self._older_rows = [row for row in rows if row.incarnation != self.incarnation]
            for row in self._older_rows:
                cells = self._older.setdefault(row.key, {})
                for name, count in row.cells.items():
                    cells[name] = cells.get(name, 0.0) + count
            for sketch in sketches:
                if sketch.incarnation != self.incarnation:
                    self._merge_older(sketch)
            for certificate in certificates:
                key = _certificate_key(certificate)
                own = self._certificates.get(key)
                if own is None or own.best_log_e < certificate.best_log_e:
                    self._certificates[key] = certificate
            self._generation = store.generation

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
            changed, self._changed = self._changed, set()
            sketches, self._changed_sketches = self._changed_sketches, set()
            certificates, self._changed_certificates = self._changed_certificates, set()
            now_ns = self._clock.now_ns()
            rows = [EvidenceRow(k, self.incarnation, dict(self._own[k]), now_ns) for k in changed]
            sketch_rows = [
                SketchRow(key, self.incarnation, self._sketches[key].to_plain(), now_ns)
                for key in sketches
            ]
            certificate_rows = [self._certificates[key] for key in certificates]
        try:
            _write(store, rows, sketch_rows, certificate_rows)
        except StoreError as error:
            with self._lock:
                self._changed |= changed
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
            self._changed_sketches |= self._sketches.keys()
            self._changed_certificates |= self._certificates.keys()


def _certificate_key(row: CertificateRow) -> CertificateKey:
    return row.model, row.candidate, row.baseline, row.output, row.policy


def _write(
    store: Store,
    rows: list[EvidenceRow],
    sketches: list[SketchRow],
    certificates: Iterable[CertificateRow],
) -> None:
    if rows:
        store.put_evidence(rows)
    if sketches:
        store.put_sketches(sketches)
    for row in certificates:
        store.put_certificate(
            row.model, row.candidate, row.baseline, row.output, row.policy, row.best_log_e,
            row.certified_ns,
        )  # fmt: skip

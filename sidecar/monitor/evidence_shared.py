"""Evidence of a fleet: what this monitor has counted and what the others have, over PostgreSQL.

Every incarnation writes its own counts only, cumulative, and reads the others' again as they grow
(``refresh``). So nothing is ever added twice, whoever fails to write or to read, and when. What is
of no model (``ledger.py``) is this monitor's own business and goes to its own store.

What can happen to a database, and what is done then:

* It cannot be reached: counting goes on, and the next flush says all of it.
* A commit without an answer: the next flush sees by its number whether it was taken.
* It was emptied, or restored from a backup: the number is not the one that was left there, and
  everything is written again, under a new ``epoch``, by which others know to read it again.
* This incarnation was taken for dead and folded into ``past``: it takes a new name, and keeps what
  had not been written under the old one.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from typing_extensions import override

from sidecar.clock import Clock
from sidecar.monitor import shared_tables
from sidecar.monitor.evidence import CertificateKey, certificate_key
from sidecar.monitor.evidence_joined import JoinedEvidence
from sidecar.monitor.packs import Pack, PackKey, add_cells, make_pack, pack_of
from sidecar.monitor.rows import (
    CertificateRow,
    EvidenceKey,
    EvidenceRow,
    Remark,
    SketchRow,
    StoreError,
)
from sidecar.monitor.shared_read import Reading, read
from sidecar.monitor.shared_tables import Flush, FoldedError, NotAsLeftError
from validators.sketches import LogHistogram

if TYPE_CHECKING:
    from sidecar.monitor.store import Store

logger = logging.getLogger("sidecar.monitor.evidence")

#: A certificate's best is written when it has grown by so much (natural logarithm), and not more
#: often than so: all replicas look at the same evidence, and would all write it every second.
_LOG_E_STEP, _LOG_E_EVERY_S = 0.05, 10.0


class SharedEvidence(JoinedEvidence):
    """Accumulators of one monitor of several. Any thread may add and look; one shares.

    Args:
        incarnation: this life's name, for the others as well.
    """

    def __init__(self, incarnation: str, clock: Clock) -> None:
        super().__init__(incarnation, clock)
        self._name, self._names = incarnation, 1
        self._seq, self._number, self._epoch = 0, 0, 0
        self._doubt: Flush | None = None
        self._again = False
        self._written: dict[PackKey, Pack] = {}
        self._empty_ns: dict[PackKey, int] = {}
        self._since: dict[EvidenceKey, LogHistogram] = {}
        self._doubt_since: dict[EvidenceKey, LogHistogram] = {}
        self._reading = Reading()
        self._their_sketches: dict[EvidenceKey, dict[str, SketchRow]] = {}
        self._stale_sketches: set[EvidenceKey] = set()
        self._stored: dict[CertificateKey, CertificateRow] = {}
        self._certificates_ns = 0

    def become(self, incarnation: str) -> None:
        """Go by this life's name; before anything is counted."""
        self.incarnation = self._name = incarnation

    # --- counting -----------------------------------------------------------------------------

    @override
    def add_sketch(self, key: EvidenceKey, sketch: LogHistogram) -> None:
        with self._lock:
            self._since.setdefault(key, LogHistogram()).merge(sketch)
        super().add_sketch(key, sketch)

    # --- looking ------------------------------------------------------------------------------

    @override
    def sketch(self, key: EvidenceKey) -> LogHistogram:
        with self._lock:
            if key in self._stale_sketches:
                self._stale_sketches.discard(key)
                self._older_sketches.pop(key, None)
                for row in self._their_sketches.get(key, {}).values():
                    self._merge_older(row)
        return super().sketch(key)

    @override
    def rows(self, model: str | None) -> list[EvidenceRow]:
        now_ns = self._clock.now_ns()
        with self._lock:
            own = [EvidenceRow(k, self._name, dict(c), now_ns) for k, c in self._own.items()]
            rows = [*own, *self._others.rows()]
        return [row for row in rows if row.key.model and model in {None, row.key.model}]

    # --- this monitor's own store -------------------------------------------------------------

    @override
    def load(self, store: Store) -> None:
        rows = [row for row in store.evidence("") if row.incarnation != store.incarnation]
        with self._lock:
            for row in self._older_rows:
                self._older.pop(row.key, None)
            self._older_rows = rows
            for row in rows:
                add_cells(self._older.setdefault(row.key, {}), row.cells)
            self._generation, self._keys = store.generation, None
            self._changed |= {key for key in self._own if not key.model}

    @override
    def flush(self, store: Store) -> bool:
        with self._lock:
            if store.generation != self._generation:
                self._generation = store.generation
                self._changed |= {key for key in self._own if not key.model}
            changed = {key for key in self._changed if not key.model}
            self._changed -= changed
            now_ns = self._clock.now_ns()
            rows = [EvidenceRow(k, store.incarnation, dict(self._own[k]), now_ns) for k in changed]
        try:
            if rows:
                store.put_evidence(rows)
        except StoreError:
            with self._lock:
                self._changed |= changed
            return False
        return True

    # --- the shared store: writing ------------------------------------------------------------

    def share(self, store: Store) -> None:
        """Write what has changed.

        Raises:
            StoreError: it cannot be written; the next call says all of it.
        """
        generation = store.generation
        for _ in range(3):
            with self._lock:
                flush = self._take()
            if not (flush.packs or flush.sketches or flush.purge or flush.again):
                break
            try:
                shared_tables.write(store, flush)
            except FoldedError as error:
                self._give_back(flush)
                self._rename(store, error.seq)
            except NotAsLeftError as error:
                self._give_back(flush)
                self._note_all_again(error.seq)
                if store.generation == generation:
                    store.database.put_again()
                generation = store.generation
            except BaseException:
                self._give_back(flush)
                raise
            else:
                self._confirm(flush)
                break
        self._share_rest(store)

    def _take(self) -> Flush:
        self._settle()
        keys = self._own if self._again else self._changed
        packs = {pack_of(key) for key in keys if key.model} | self._changed_packs
        self._changed = {key for key in self._changed if not key.model}
        self._changed_packs = set()
        self._number += 1
        before = (self._seq,) if self._doubt is None else (self._seq, self._doubt.seq)
        monotonic_ns, now_ns = self._clock.monotonic_ns(), self._clock.now_ns()
        kept_ns = int(shared_tables.EMPTY_KEPT_S * 1e9)
        flush = Flush(self._name, self._epoch, self._number, before, again=self._again)
        flush.updated_ns = now_ns
        for pack in packs:
            if self._own_packs.get(pack) or (pack in self._written and not self._again):
                flush.packs.append(self._pack(pack))
        if self._doubt is None:
            flush.known = {key: pack.layout.id for key, pack in self._written.items()}
        flush.purge = [k for k, at in self._empty_ns.items() if monotonic_ns - at > kept_ns]
        sketches = set(self._sketches) if self._again else self._changed_sketches
        self._changed_sketches = set()
        flush.sketches = [
            SketchRow(key, self._name, self._sketches[key].to_plain(), now_ns) for key in sketches
        ]
        self._doubt_since, self._since = self._since, {}
        return flush

    def _pack(self, pack: PackKey) -> Pack:
        keys = self._own_packs.get(pack, ())
        places = {(key.output, key.metric, key.policy): self._own[key] for key in keys}
        return make_pack(pack, places)

    def _confirm(self, flush: Flush) -> None:
        with self._lock:
            if flush.again:
                self._written.clear()
                self._empty_ns.clear()
            self._again = False
            self._doubt, self._seq = None, flush.seq
            self._doubt_since = {}
            for pack in flush.packs:
                self._written[pack.key] = pack
                self._empty_ns.pop(pack.key, None)
                if not pack.layout.size:
                    self._empty_ns[pack.key] = self._clock.monotonic_ns()
            for key in flush.purge:
                if key not in self._own_packs:
                    self._written.pop(key, None)
                    self._empty_ns.pop(key, None)

    def _give_back(self, flush: Flush) -> None:
        """It was not written, or nobody knows: the next one says all of it again."""
        with self._lock:
            self._changed_packs |= {pack.key for pack in flush.packs}
            self._changed_sketches |= {row.key for row in flush.sketches}
            if self._doubt is not None and flush.found == self._doubt.seq:
                self._confirm_doubt()
            elif self._doubt is not None and flush.found is not None:
                self._doubt = None
            if flush.sent:
                self._doubt = flush
            for key, sketch in self._doubt_since.items():
                self._since.setdefault(key, LogHistogram()).merge(sketch)
            self._doubt_since = {}

    def _confirm_doubt(self) -> None:
        doubt = self._doubt
        if doubt is not None:
            self._seq, self._doubt = doubt.seq, None
            self._written.update({pack.key: pack for pack in doubt.packs})

    def _note_all_again(self, seq: int) -> None:
        logger.warning("the shared store has not what was written: all of it is written again")
        with self._lock:
            self._again, self._doubt = True, None
            self._number = max(self._number, seq)
            self._epoch += 1
            self._changed_remarks |= self._remarks.keys()
            self._changed_certificates |= self._certificates.keys()
            self._stored.clear()

    def _rename(self, store: Store, seq: int) -> None:
        """Others took this incarnation for dead: what it had written counts as the past's."""
        reading = self._reading.fresh()
        read(store, reading, self._name)  # so that nothing is missing in between
        with self._lock:
            if self._doubt is not None and self._doubt.seq == seq:
                self._confirm_doubt()
            for pack in self._written.values():
                for place, cells in pack.cells().items():
                    self._take_off(pack.key.key(place), cells)
            self._sketches, self._since = dict(self._since), {}
            for key, sketch in self._sketches.items():
                self._since[key] = LogHistogram()
                self._since[key].merge(sketch)
            self._changed_sketches = set(self._sketches)
            self._changed_packs = {key for key, own in self._own_packs.items() if own}
            self._written.clear()
            self._empty_ns.clear()
            self._seq = self._number = self._epoch = 0
            self._doubt, self._again, self._touched = None, False, None
            before, self._names = self._name, self._names + 1
            self._name = f"{self.incarnation}+{self._names}"
            self._apply(reading)
        logger.warning("%s was taken for dead and goes on counting as %s", before, self._name)

    # --- the shared store: what all write -----------------------------------------------------

    def _share_rest(self, store: Store) -> None:
        """Remarks and certificates: few, and mostly the same in all replicas."""
        now_ns = self._clock.monotonic_ns()
        with self._lock:
            places, self._changed_remarks = self._changed_remarks, set()
            remarks = {place: Remark(**asdict(self._remarks[place])) for place in sorted(places)}
            is_due = now_ns - self._certificates_ns >= _LOG_E_EVERY_S * 1e9
            wanted = [key for key in self._changed_certificates if self._is_news(key, due=is_due)]
            certificates = [self._certificates[key] for key in sorted(wanted)]
        try:
            if remarks:
                store.put_remarks(remarks)
        except BaseException:
            with self._lock:
                self._changed_remarks |= places
            raise
        if certificates:
            store.put_certificates(certificates)
        with self._lock:
            self._changed_certificates -= set(wanted)
            self._stored |= {certificate_key(row): replace(row) for row in certificates}
            if is_due:
                self._certificates_ns = now_ns

    def _is_news(self, key: CertificateKey, *, due: bool) -> bool:
        row, stored = self._certificates[key], self._stored.get(key)
        if stored is None or (row.certified_ns is not None and stored.certified_ns is None):
            return True
        return due and row.best_log_e > stored.best_log_e + _LOG_E_STEP

    # --- the shared store: reading ------------------------------------------------------------

    @override
    def refresh(self, store: Store) -> None:
        read(store, self._reading, self._name)
        with self._lock:
            self._apply(self._reading)
        self.refreshes += 1

    def _apply(self, reading: Reading) -> None:
        self._reading = reading
        own = reading.own
        left = {self._seq} if self._doubt is None else {self._seq, self._doubt.seq}
        if self._seq and (own is None or own.epoch != self._epoch or own.seq not in left):
            self._again = True
        if reading.all_again:
            self._others.clear()
            self._stale_sketches |= self._their_sketches.keys()
            self._their_sketches.clear()
        for life in reading.dropped:
            self._others.drop(life)
            for key, rows in self._their_sketches.items():
                if rows.pop(life, None) is not None:
                    self._stale_sketches.add(key)
        for pack, life, updated_ns in reading.packs:
            self._others.put(pack, life, updated_ns)
        for row in reading.sketches:
            self._their_sketches.setdefault(row.key, {})[row.incarnation] = row
            self._stale_sketches.add(row.key)
        self._merge_rest(reading)
        self._settle()
        reading.taken()

    def _merge_rest(self, reading: Reading) -> None:
        for place, remark in reading.remarks.items():
            self._remarks.setdefault(place, Remark()).merge(remark)
        for row in reading.certificates:
            key = certificate_key(row)
            own = self._certificates.get(key, row)
            at = own.certified_ns if row.certified_ns is None else row.certified_ns
            best = max(own.best_log_e, row.best_log_e)
            self._certificates[key] = replace(row, best_log_e=best, certified_ns=at)
            self._stored[key] = row

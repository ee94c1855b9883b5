"""Deciding what is kept, and writing it."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from sidecar.cases import files, shards
from sidecar.cases.case import Array, Arrays, Case, CaseEntry, CaseError, FieldUse, Offer
from sidecar.cases.case import hash_array as hash_of
from sidecar.cases.choice import RESERVOIR, Choice, Chooser, Limits
from sidecar.cases.index import (
    NAME,
    CorruptIndexError,
    Group,
    Index,
    read_index,
    rebuild_index,
    require_pyarrow,
    write_index,
)

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.config_monitor import CasesConfig

#: Held in memory between two flushes, at most.
PENDING_BYTES_MAX = 16 * 2**20
_TEXT_MAX = 256  # of what clients choose: a request's id


class CaseWriter:
    """Keeps a folder of cases within its bounds. For one thread."""

    def __init__(
        self,
        folder: Path,
        config: CasesConfig,
        clock: Clock,
        rng: random.Random | None = None,
        *,
        pending_bytes_max: int = PENDING_BYTES_MAX,
    ) -> None:
        """Open or make a folder, and go on with what is in it.

        Args:
            folder: made if it is missing, readable by its owner only.
            config: the bounds, and what becomes of fields.
            clock: for the time to live.
            rng: draws the sample.
            pending_bytes_max: held in memory between two flushes.

        Raises:
            CaseError: it cannot be made or written, or another process writes to it.
        """
        require_pyarrow()
        self.folder, self.config = folder, config
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - a sample, not a secret
        self._pending_bytes_max = min(pending_bytes_max, config.max_bytes)
        self._time_to_live_ns = round(config.time_to_live_s * 1e9)
        #: What happened so far, by name.
        self.counters = dict.fromkeys(
            (
                "offered", "kept", "replaced", "expired", "over_bytes", "too_large", "lost",
                "corrupt", "write_failures",
            ), 0,
        )  # fmt: skip
        #: What was found wrong on opening, for people; "": nothing.
        self.message = ""
        self._choosers: dict[Group, Chooser] = {}
        self._stored: dict[str, CaseEntry] = {}
        self._pending: dict[str, Case] = {}
        self._pending_bytes = 0
        self._doomed: dict[str, Path] = {}
        self._is_dirty = False
        self._seen_written = 0
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (folder / shards.FOLDER).mkdir(mode=0o700, exist_ok=True)
            self._lock: int | None = files.lock(folder)
        except OSError as error:
            raise _failed(folder, error) from None
        try:
            self._open()
        except OSError as error:
            self._unlock()
            raise _failed(folder, error) from None

    # --- on the way in ----------------------------------------------------------------------------

    def offer(self, offer: Offer, read: Callable[[], Arrays]) -> str | None:
        """Consider one exchange; keep a copy of what the config allows if it is wanted.

        Nothing is written before ``flush``, unless more is waiting than memory is given.

        Args:
            offer: what the decision is made from: a few microseconds.
            read: gives the arrays; called only when it is wanted, before ``offer`` returns. They
                may be views: what is kept is copied. What it raises passes through, and nothing is
                kept.

        Returns:
            The case's id, or ``None``: not wanted, or over ``max_bytes`` by itself.

        Raises:
            CaseError: a tensor that no case can hold; or memory was full and writing failed.
        """
        self.counters["offered"] += 1
        group = (offer.model, offer.candidate, offer.baseline)
        chooser = self._choosers.get(group) or self._add_chooser(group)
        choice = chooser.choose(offer, self._clock.now_ns())
        if not choice.reasons:
            return None
        case = self._make(offer, choice, read())
        if case is None:
            self.counters["too_large"] += 1
            return None
        chooser.accept(case.id, offer, choice)
        for reason, old in choice.replaced:
            self._take_reason(old, reason)
        self._pending[case.id] = case
        self._pending_bytes += case.nbytes
        self.counters["kept"] += 1
        if self._pending_bytes > self._pending_bytes_max:
            try:
                self.flush()
            finally:
                self._shed()
        return case.id

    def _make(self, offer: Offer, choice: Choice, arrays: Arrays) -> Case | None:
        now_ns = self._clock.now_ns()
        case = Case(
            id=self._new_id(now_ns),
            model=_text(offer.model),
            candidate=_text(offer.candidate),
            baseline=_text(offer.baseline),
            reasons=tuple(_text(reason) for reason in choice.reasons),
            request_id=_text(offer.request_id)[:_TEXT_MAX],
            # A clock that was wrong must not keep a case for ever.
            time_ns=min(offer.time_ns, now_ns) or now_ns,
            metrics={_text(name): float(value) for name, value in offer.metrics.items()},
            limited={_text(name): worse for name, worse in offer.limited.items()},
            info=json.loads(json.dumps(dict(offer.info), default=str, skipkeys=True)),
        )
        kept, hashes = self._use(case, "input", arrays.inputs)
        case.inputs, case.input_hashes = kept or None, hashes
        for variant, outputs in arrays.outputs.items():
            kept, hashes = self._use(case, "output", outputs)
            case.outputs[_text(variant)] = kept
            if hashes:
                case.output_hashes[_text(variant)] = hashes
            if case.nbytes > self.config.max_bytes:
                return None
        return None if case.nbytes > self.config.max_bytes else case

    def _use(
        self, case: Case, role: str, arrays: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, str]]:
        """Keep, hash or drop each; ``case.nbytes`` grows by what is kept."""
        kept: dict[str, Array] = {}
        hashes: dict[str, str] = {}
        default: FieldUse = self.config.inputs if role == "input" else "keep"
        for name, array in arrays.items():
            use: FieldUse = self.config.fields.get(name, default)
            clean = _text(name)
            case.field_uses[f"{role}:{clean}"] = use
            if use == "hash":
                hashes[clean] = hash_of(shards.plain_array(name, array))
            elif use == "keep":
                # Asked before the copy is made: one huge tensor must not double itself.
                if case.nbytes + array.nbytes > self.config.max_bytes:
                    case.nbytes += array.nbytes
                    break
                kept[clean] = shards.plain_array(name, array)
                case.nbytes += shards.array_bytes(kept[clean])
        return kept, hashes

    def _new_id(self, now_ns: int) -> str:
        moment = datetime.fromtimestamp(now_ns // 10**9, UTC)
        while True:
            case_id = f"{moment:%Y%m%dT%H%M%S}-{self._rng.getrandbits(32):08x}"
            if not {case_id} & (self._stored.keys() | self._pending.keys() | self._doomed.keys()):
                return case_id

    def _shed(self) -> None:
        """Memory is bounded even while the disk refuses: the oldest that wait are lost."""
        while self._pending and self._pending_bytes > self._pending_bytes_max:
            self._drop([next(iter(self._pending))], "lost")

    # --- to and from the disk ---------------------------------------------------------------------

    def flush(self) -> None:
        """Write what is new, delete what was replaced, what is too old, and what is over bytes.

        Raises:
            CaseError: the disk refused (full, read-only); what waits in memory is kept, and the
                next flush tries again.
        """
        if self._lock is None:
            message = f"the writer of {self.folder} is closed"
            raise CaseError(message)
        try:
            self._expire()
            self._fit_bytes()
            self._delete_doomed()  # first: it makes room
            for case in list(self._pending.values()):
                self._store(case)
            self._fit_bytes()  # files are a little larger than what is in them
            self._delete_doomed()
            # The counts alone are worth a write when they have changed what a sample would do.
            if self._is_dirty or self._seen() > 1.1 * self._seen_written:
                self._write_index()
        except OSError as error:
            self.counters["write_failures"] += 1
            raise _failed(self.folder, error) from None

    def entries(self) -> list[CaseEntry]:
        """What is on disk after the last flush, the oldest first."""
        return sorted(self._stored.values(), key=lambda entry: (entry.time_ns, entry.id))

    def close(self) -> None:
        """Flush, and let go of the folder. Idempotent.

        Raises:
            CaseError: as ``flush``; the folder is let go of all the same.
        """
        if self._lock is None:
            return
        try:
            self._is_dirty = self._is_dirty or self._seen() != self._seen_written
            self.flush()
        finally:
            self._unlock()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def _open(self) -> None:
        files.remove_leftovers(self.folder)
        files.remove_leftovers(self.folder / shards.FOLDER)
        try:
            index = read_index(self.folder)
        except FileNotFoundError:
            index = Index()
        except CorruptIndexError as error:
            aside = self.folder / f"{NAME}.corrupt"
            (self.folder / NAME).replace(aside)
            self.counters["corrupt"] += 1
            self.message = f"{error}; moved to {aside.name}, made again from the cases' files"
            index = Index()
        # What a crash kept out of the index; all of them when there was none.
        found, broken = rebuild_index(self.folder, [entry.id for entry in index.entries])
        self._is_dirty = bool(found.entries)
        for path in broken:
            path.replace(path.with_name(f"{path.name}.corrupt"))
            self.counters["corrupt"] += 1
            self.message = f"{self.message}; {path.name} is corrupt, moved aside".lstrip("; ")
        for group, seen in index.seen.items():
            self._add_chooser(group).restore_seen(seen)
        for entry in (*index.entries, *found.entries):
            self._adopt(entry)
        self._guess_seen()
        self._seen_written = self._seen()

    def _adopt(self, entry: CaseEntry) -> None:
        group = (entry.model, entry.candidate, entry.baseline)
        chooser = self._choosers.get(group) or self._add_chooser(group)
        held = chooser.adopt(entry.id, entry.reasons, entry.metrics, entry.limited)
        self._stored[entry.id] = entry
        if held:
            entry.reasons = held
        else:  # the config asks for fewer than it did
            self._drop([entry.id], "replaced")

    def _guess_seen(self) -> None:
        """Without its counts, a sample has seen what is in it at least."""
        lost = [group for group, chooser in self._choosers.items() if chooser.total == 0]
        for entry in self._stored.values():
            group = (entry.model, entry.candidate, entry.baseline)
            if group in lost and RESERVOIR in entry.reasons:
                self._choosers[group].restore_seen({entry.time_ns: 1})

    def _store(self, case: Case) -> None:
        path = shards.shard_path(self.folder, case.id)
        data = shards.encode(case)
        files.write_atomically(path, data)
        self._pending.pop(case.id)
        self._pending_bytes -= case.nbytes
        fields = {name: getattr(case, name) for name in CaseEntry.__dataclass_fields__}
        self._stored[case.id] = CaseEntry(**{**fields, "path": path, "nbytes": len(data)})
        self._is_dirty = True

    def _write_index(self) -> None:
        seen = {group: chooser.seen for group, chooser in self._choosers.items()}
        write_index(self.folder, Index(self.entries(), seen))
        self._is_dirty, self._seen_written = False, self._seen()

    def _seen(self) -> int:
        return sum(chooser.total for chooser in self._choosers.values())

    def _delete_doomed(self) -> None:
        for case_id, path in list(self._doomed.items()):
            path.unlink(missing_ok=True)
            del self._doomed[case_id]
            self._is_dirty = True

    # --- what goes --------------------------------------------------------------------------------

    def _expire(self) -> None:
        oldest_ns = self._clock.now_ns() - self._time_to_live_ns
        every = [*self._stored.values(), *self._pending.values()]
        self._drop([entry.id for entry in every if entry.time_ns < oldest_ns], "expired")
        for path in (self.folder / shards.FOLDER).glob(f"*{shards.SUFFIX}.corrupt"):
            if path.stat().st_mtime_ns < oldest_ns:
                self._doomed[path.name] = path

    def _fit_bytes(self) -> None:
        every = [*self._stored.values(), *self._pending.values()]
        total = sum(entry.nbytes for entry in every)
        gone = []
        for entry in sorted(every, key=lambda entry: (entry.time_ns, entry.id)):
            if total <= self.config.max_bytes:
                break
            gone.append(entry.id)
            total -= entry.nbytes
        self._drop(gone, "over_bytes")

    def _take_reason(self, case_id: str, reason: str) -> None:
        entry = self._stored.get(case_id) or self._pending.get(case_id)
        if entry is None:
            return
        entry.reasons = tuple(held for held in entry.reasons if held != _text(reason))
        self._is_dirty = True
        if not entry.reasons:
            self._drop([case_id], "replaced")

    def _drop(self, ids: Iterable[str], counter: str) -> None:
        gone = set(ids)
        if not gone:
            return
        for case_id in gone:
            if (case := self._pending.pop(case_id, None)) is not None:
                self._pending_bytes -= case.nbytes
            else:
                self._doomed[case_id] = self._stored.pop(case_id).path
            self.counters[counter] += 1
        for chooser in self._choosers.values():
            chooser.forget(gone)

    def _add_chooser(self, group: Group) -> Chooser:
        config = self.config
        limits = Limits(config.reservoir, config.worst, config.per_failure, self._time_to_live_ns)
        return self._choosers.setdefault(group, Chooser(limits, self._rng))

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _failed(folder: Path, error: OSError) -> CaseError:
    why = error.strerror or str(error)
    return CaseError(f"cases cannot be written to {folder}: {why}; they are tried again")


def _text(text: str) -> str:
    """What clients and models call things may hold half of a surrogate pair, which no file can."""
    return text.encode("utf-8", "replace").decode()

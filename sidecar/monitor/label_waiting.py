"""Answers that wait for their labels, and labels that wait for their answers: of one model.

Both are bounded in number and in time, the oldest go first, and what goes is counted. Not safe for
several threads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from sidecar.monitor.label_answers import Said, Value

T = TypeVar("T")

#: Identities whose label has come: as numbers, to tell a repeated label from an early one. What
#: has been forgotten cannot count twice either, for its answer is gone.
REMEMBERED = 65_536


@dataclass(slots=True)
class Waiting:
    """The answers to one request.

    Attributes:
        wall_ns: when it came.
        output: that labels are of.
        served: the variant whose answer the user got; empty: not known.
        answers: variant → what it said; of one that failed nothing.
        pairs: compared pairs of versions: new, previous, identity.
    """

    wall_ns: int
    output: str
    served: str
    answers: Mapping[str, Said]
    pairs: tuple[tuple[str, str, str], ...] = ()

    def to_plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "output": self.output,
            "served": self.served,
            "answers": {key: [list(a.rows), a.classes] for key, a in self.answers.items()},
            "pairs": [list(pair) for pair in self.pairs],
        }

    @classmethod
    def from_plain(cls, plain: Any, wall_ns: int) -> Waiting:
        """The inverse of ``to_plain``.

        Raises:
            ValueError: it is no such thing.
        """
        try:
            answers = {
                str(key): Said(tuple(map(_value, rows)), int(classes))
                for key, (rows, classes) in plain["answers"].items()
            }
            pairs = tuple((str(new), str(old), str(of)) for new, old, of in plain["pairs"])
            return cls(wall_ns, str(plain["output"]), str(plain["served"]), answers, pairs)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"no answer that waits: {error!r}") from None


class Shared:
    """One object for all that are equal: most requests are answered as many others were.

    A hundred thousand that wait take a third of the memory so. Bounded: then it begins anew.
    """

    _MOST = 4096

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def of(self, key: Hashable, value: T) -> T:
        """What was given first under an equal key."""
        if len(self._known) >= self._MOST:
            self._known.clear()
        found: T = self._known.setdefault(key, value)
        return found


def _value(value: Any) -> Value:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"{value!r} is no class and no score")
    return value


@dataclass(slots=True)
class Early:
    """A label whose request is not known (yet)."""

    wall_ns: int
    values: tuple[Value, ...]


class WaitingRoom:
    """Both kinds of one model.

    Args:
        within_s: nobody waits longer.
        most: of each kind.

    Attributes:
        gone: (outcome, reason) → how many left without their other half.
        changed: (kind, request id) of what is to be written or deleted; a kind is ``answer`` or
            ``label``.
    """

    def __init__(self, within_s: float, most: int) -> None:
        self._within_ns = int(within_s * 1e9)
        self._most = most
        self._answers: dict[str, Waiting] = {}
        self._early: dict[str, Early] = {}
        self._done: dict[int, None] = {}
        self.gone: Counter[tuple[str, str]] = Counter()
        self.changed: dict[tuple[str, str], None] = {}

    # --- answers ------------------------------------------------------------------------------

    def add(self, request_id: str, answer: Waiting) -> tuple[int | float | str, ...] | None:
        """Let an answer wait; returns its label where that has come already."""
        if hash(request_id) in self._done:
            return None
        known = self._answers.get(request_id)
        if known is not None:  # the other half of a fallback, or a retry: what was there stands
            if not known.served and answer.served:
                known.served = answer.served
                known.answers = {**answer.answers, **known.answers}
                self.changed["answer", request_id] = None
            return None
        self._answers[request_id] = answer
        self.changed["answer", request_id] = None
        if len(self._answers) > self._most:
            self._lose("answer", self._answers, "full")
        early = self._early.get(request_id)
        if early is None:
            return None
        self._forget("label", self._early, request_id)
        return early.values

    def find(self, request_id: str) -> Waiting | None:
        """The answer that waits under this identity."""
        return self._answers.get(request_id)

    def is_done(self, request_id: str) -> bool:
        """Whether its label has come, or waits."""
        return hash(request_id) in self._done or request_id in self._early

    def done(self, request_id: str) -> None:
        """The answer has had its label."""
        self._forget("answer", self._answers, request_id)
        self._done[hash(request_id)] = None
        if len(self._done) > REMEMBERED:
            del self._done[next(iter(self._done))]

    # --- labels -------------------------------------------------------------------------------

    def keep_early(self, request_id: str, label: Early) -> None:
        """Let a label wait for its request."""
        self._early[request_id] = label
        self.changed["label", request_id] = None
        if len(self._early) > self._most:
            self._lose("label", self._early, "full")

    def take_early(self, most: int) -> list[tuple[str, Early]]:
        """Take the oldest labels out, to be offered to other replicas. The store keeps them until
        ``offered`` says that they are."""
        taken = list(islice(self._early.items(), most))
        for request_id, _ in taken:
            del self._early[request_id]
        return taken

    def offered(self, request_id: str) -> None:
        """It is elsewhere by now: the store need not keep it."""
        self.changed["label", request_id] = None

    # --- time, and the store ------------------------------------------------------------------

    def expire(self, now_ns: int) -> None:
        """Let go what has waited too long."""
        waiting: list[tuple[str, Mapping[str, Waiting | Early]]] = [
            ("answer", self._answers), ("label", self._early),
        ]  # fmt: skip
        for kind, rows in waiting:
            while rows and next(iter(rows.values())).wall_ns < now_ns - self._within_ns:
                self._lose(kind, rows, "expired")

    def _lose(self, kind: str, rows: Any, reason: str) -> None:
        self._forget(kind, rows, next(iter(rows)))
        self.gone["unlabelled" if kind == "answer" else "lost", reason] += 1

    def _forget(self, kind: str, rows: Any, request_id: str) -> None:
        del rows[request_id]
        self.changed[kind, request_id] = None

    @property
    def limits(self) -> tuple[int, int]:
        """Nanoseconds that nobody waits longer than, and how many may wait."""
        return self._within_ns, self._most

    @property
    def waiting(self) -> int:
        """Answers that wait."""
        return len(self._answers)

    def rows(self, keys: Iterable[tuple[str, str]]) -> list[tuple[str, str, int, Any]]:
        """Of these, what is still there: kind, identity, time, and the rest as JSON values."""
        found: list[tuple[str, str, int, Any]] = []
        for kind, request_id in keys:
            if kind == "answer" and (answer := self._answers.get(request_id)):
                found.append((kind, request_id, answer.wall_ns, answer.to_plain()))
            elif kind == "label" and (label := self._early.get(request_id)):
                found.append((kind, request_id, label.wall_ns, {"values": list(label.values)}))
        return found

    def restore(self, rows: Sequence[tuple[str, str, int, Any]]) -> int:
        """Take over what an earlier life left, the oldest first; returns how many make no sense."""
        answers: dict[str, Waiting] = {}
        early: dict[str, Early] = {}
        bad = 0
        for kind, request_id, wall_ns, plain in rows:
            try:
                if kind == "answer":
                    answers[request_id] = Waiting.from_plain(plain, wall_ns)
                else:
                    values = tuple(map(_value, plain["values"]))
                    early[request_id] = Early(wall_ns, values)
            except (ValueError, TypeError, KeyError):
                self.changed[kind, request_id] = None  # to be deleted
                bad += 1
        self._answers = {**answers, **self._answers}
        self._early = {**early, **self._early}
        while len(self._answers) > self._most:
            self._lose("answer", self._answers, "full")
        while len(self._early) > self._most:
            self._lose("label", self._early, "full")
        return bad

    def change_all(self) -> None:
        """The store was begun afresh: everything is to be written again."""
        self.changed |= {("answer", name): None for name in self._answers}
        self.changed |= {("label", name): None for name in self._early}

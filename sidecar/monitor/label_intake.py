"""Late labels as they come in: over gRPC, HTTP, or from a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Label:
    """What the right answer to one request was.

    Attributes:
        request_id: as the response's ``x-request-id`` said.
        values: one for each row of the request: a class's index or name, or a score.
    """

    model: str
    request_id: str
    values: tuple[int | float | str, ...]


@dataclass(frozen=True, slots=True)
class LabelCounts:
    """What became of a batch of labels; each is counted once.

    Attributes:
        matched: their request was known, and they count from now on.
        early: their request is not known yet; they wait for it, a bounded time.
        repeated: their request had its label already; the first stands.
        refused: text → how many: another number of rows, a class that is none, no such model, …
    """

    matched: int = 0
    early: int = 0
    repeated: int = 0
    refused: dict[str, int] | None = None


class LabelSink(Protocol):
    """Takes labels; any thread."""

    def check(self, model: str) -> None:
        """See that labels of a model are taken.

        Raises:
            NotFoundError: there is no such model. InvalidRequestError: it takes none.
        """
        ...

    def put(self, labels: Sequence[Label]) -> LabelCounts:
        """Match what can be matched; never waits for anything."""
        ...

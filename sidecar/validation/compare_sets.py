"""Running sets of rows through the reference and its candidates, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from sidecar.errors import RequestError
from sidecar.validation.files import ValidationInputError
from sidecar.validation.isolated import CrashError
from sidecar.validation.layout import Caller, RaggedError, Rows, pick, rows_in
from sidecar.validation.tally import KeptRow, Tally, WorstRows, keep_worst
from validators.compare import OutputComparison, compare_outputs
from validators.policy import OutputPolicy

if TYPE_CHECKING:
    from sidecar.config import VariantConfig
    from sidecar.runtimes.base import Array
    from sidecar.validation.inputs import InputData
    from validators.results import VariantResult

#: Rows of one call, unless ``--batch-size`` says otherwise.
BATCH_SIZE = 32
#: What is held of one chunk, inputs and all variants' outputs: at most so many rows and bytes.
CHUNK_ROWS = 1024
CHUNK_BYTES = 64 * 2**20
#: The reference's own noise is measured on a tenth of the rows, and on no more than this.
NOISE_SHARE = 0.1
NOISE_ROWS_MAX = 512

Policies = dict[str, OutputPolicy]
Advance = Callable[[int, str], None]


class ReferenceFailedError(Exception):
    """The reference did not answer a row: there is nothing to compare with."""

    def __init__(self, where: str, error: RequestError) -> None:
        super().__init__(f"{where}: {error}")


@dataclass(slots=True)
class Side:
    """One candidate of a run.

    Attributes:
        config: its configuration.
        result: what is reported of it.
        caller: the loaded copy; ``None`` before it is loaded, and when it cannot be.
        policies: how its outputs are compared; set with the first answers of the reference.
        tallies: input set → what was measured.
        worst: its worst rows.
        predicted: input set → the chunks' answers in the output that labels are about.
    """

    config: VariantConfig
    result: VariantResult
    caller: Caller | None = None
    policies: Policies = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)
    worst: WorstRows = field(default_factory=WorstRows)
    predicted: dict[str, list[Array]] = field(default_factory=dict)


class SetRunner:
    """Runs sets of rows. One reference, one or more candidates; all loaded."""

    def __init__(
        self,
        reference: Side,
        policies_of: Callable[[Side, Mapping[str, Array]], Policies],
        *,
        batch_size: int | None,
        advance: Advance,
    ) -> None:
        """Args:
        reference: loaded.
        policies_of: how a side's outputs are compared, from the first answers.
        batch_size: rows of one call; ``None``: ``BATCH_SIZE``.
        advance: told of rows that are done.
        """
        assert reference.caller is not None
        self.reference = reference
        self.caller = reference.caller
        self.policies_of = policies_of
        self.size = max(1, min(batch_size or BATCH_SIZE, self.caller.largest))
        self.advance = advance
        self.noise: Tally | None = None
        self.arbiter: Tally | None = None
        self.label_output = ""

    def run(self, data: InputData, sides: Sequence[Side], *, first_pass: bool) -> None:
        """Run one set.

        Args:
            data: the set.
            sides: the candidates; those that are not loaded are passed over.
            first_pass: the reference runs these rows for the first time: what is known of itself
                (its noise, its answers to labelled rows) is gathered.

        Raises:
            ReferenceFailedError: the reference did not answer.
            ValidationInputError: a policy is wrong.
        """
        start = 0
        for block in data.blocks:
            count, at = rows_in(block), 0
            step = count if data.calls else self.size  # small at first: answers may be large
            while at < count:
                chunk = pick(block, at, min(at + step, count))
                size = count if data.calls else self.size
                used = self._chunk(data, sides, chunk, start + at, size, first_pass=first_pass)
                at += rows_in(chunk)
                step = max(step, _chunk_rows(used, rows_in(chunk), self.size))
            start += count

    def _chunk(
        self, data: InputData, sides: Sequence[Side], rows: Rows, first: int, size: int, *,
        first_pass: bool,
    ) -> int:  # fmt: skip
        """Run and compare some rows; return how many bytes they took."""
        count = rows_in(rows)
        answers: dict[str, Rows] = {}
        try:
            truth = self._truth(data, rows, first, size)
            for side in sides:
                found = self._answer(data, side, rows, first, size)
                if found is not None:
                    answers[side.config.key] = found
        except RaggedError:
            # Answers of different shapes: halves, until what is compared has one shape.
            middle = count // 2
            halves = (pick(rows, 0, middle), first), (pick(rows, middle, count), first + middle)
            return sum(
                self._chunk(data, sides, half, at, size, first_pass=first_pass)
                for half, at in halves
            )
        self._check_rows(data, truth, count)
        for side in sides:
            if side.config.key in answers:
                self._compare(data, side, rows, first, truth, answers[side.config.key])
        if first_pass and data.labels is not None and self.label_output in truth:
            self.reference.predicted.setdefault(data.name, []).append(truth[self.label_output])
        if first_pass and not data.calls and data.decides:
            self._measure_noise(rows, truth, size)
        self.advance(count, data.name)
        return sum(a.nbytes for part in (rows, truth, *answers.values()) for a in part.values())

    def _truth(self, data: InputData, rows: Rows, first: int, size: int) -> Rows:
        try:
            return self.caller.run(rows, size)
        except RequestError as error:
            at, found = _first_failing(self.caller, rows, size, error)
            raise ReferenceFailedError(f"row {first + at} of {data.name}", found) from None

    def _check_rows(self, data: InputData, truth: Rows, count: int) -> None:
        for name, array in truth.items():
            if len(array) != count:
                error = RequestError(
                    f"output {name!r} has a first dimension of {len(array)} for {count} rows; give "
                    "the reference max_batch_size: 0 if it has no batch dimension"
                )
                raise ReferenceFailedError(data.name, error)

    def _answer(
        self, data: InputData, side: Side, rows: Rows, first: int, size: int
    ) -> Rows | None:
        """What a candidate answers; ``None`` when it failed, here or before in this set."""
        if side.caller is None or side.caller.problems or _failed(side, data.name):
            return None
        feed = {name: rows[name] for name in rows.keys() & side.caller.takes}
        try:
            return side.caller.run(feed, size)
        except RequestError as error:
            at, found = _first_failing(side.caller, feed, size, error)
            names = data.row_names
            named = f" ({names[first + at]})" if first + at < len(names) else ""
            where = f"in a batch of {rows_in(rows)}" if data.calls else f"row {first + at}{named}"
            side.result.errors.append(f"{data.name}: {where}: {found}")
            if isinstance(found, CrashError):
                # INVALID whatever else there is, and each crash costs loading it anew.
                side.caller.problems.append("it ended its process: no more rows are run on it")
            side.worst.offer(
                KeptRow(
                    side.config.key, data.name, first + at, "", f"failure:{type(found).__name__}",
                    pick(rows, at, at + 1), {}, {}, decides=True, score=float("inf"),
                )
            )  # fmt: skip
            return None

    def _compare(
        self, data: InputData, side: Side, rows: Rows, first: int, truth: Rows, found: Rows
    ) -> None:
        if not side.policies:
            side.policies = self.policies_of(side, truth)
        tally = side.tallies.setdefault(data.name, Tally(side.policies))
        compared = compare_rows(truth, found, side.policies)
        tally.add(compared, rows_in(rows))
        both = {self.reference.config.key: truth, side.config.key: found}
        row = KeptRow(side.config.key, data.name, first, "", "", {}, {}, decides=data.decides)
        if not data.only_masks:
            keep_worst(side.worst, compared, side.policies, row, inputs=rows, outputs=both)
        if data.labels is not None and self.label_output in found:
            side.predicted.setdefault(data.name, []).append(found[self.label_output])

    def _measure_noise(self, rows: Rows, truth: Rows, size: int) -> None:
        """Run a tenth of the rows again, one by one, and compare the reference with itself."""
        if self.noise is None:
            if not self.reference.policies:
                self.reference.policies = self.policies_of(self.reference, truth)
            self.noise = Tally(self.reference.policies)
        count = rows_in(rows)
        wanted = min(max(1, int(count * NOISE_SHARE)), NOISE_ROWS_MAX - self.noise.rows, count)
        if size == 1 or wanted < 1 or not self.caller.batches_freely:
            return
        some = pick(rows, 0, wanted)
        try:
            again = self.caller.run(some, 1)
        except (RequestError, RaggedError):
            return  # a batch of one it does not take; the `batch` set says so where it matters
        compared = compare_rows(pick(truth, 0, wanted), again, self.reference.policies)
        self.noise.add(compared, wanted)


def compare_rows(truth: Rows, found: Rows, policies: Policies) -> dict[str, OutputComparison]:
    """Compare rows of two variants; rows that are finite nowhere, on either side, agree.

    ``compare_outputs`` calls a chunk of such rows alone a problem, since nothing was compared. But
    how rows are cut into chunks must not matter: they are compared beside a row of zeros, and an
    output that has no finite row at all is found when it is judged.
    """
    try:
        compared = compare_outputs(truth, found, policies)
        if any(item.problems for item in compared.values()):
            beside = compare_outputs(_with_zeros(truth), _with_zeros(found), policies)
            for name, item in compared.items():
                if item.problems and not beside[name].problems:
                    compared[name] = _without_last(beside[name])
    except ValueError as error:  # a mistake of the configuration, not of an answer
        raise ValidationInputError(str(error)) from None
    return compared


def _with_zeros(rows: Rows) -> Rows:
    return {
        name: np.concatenate([array, np.zeros_like(array[:1])]) if array.ndim else array
        for name, array in rows.items()
    }


def _without_last(item: OutputComparison) -> OutputComparison:
    item.rows -= 1
    item.invalid = item.invalid[:-1]
    item.metrics = {metric: values[:-1] for metric, values in item.metrics.items()}
    item.sketches = {}  # they know the row of zeros, and no other
    return item


def _failed(side: Side, name: str) -> bool:
    return any(text.startswith(f"{name}: ") for text in side.result.errors)


def _first_failing(
    caller: Caller, rows: Rows, size: int, error: RequestError
) -> tuple[int, RequestError]:
    """Find the row that fails in the call that just did, by halves; the error is that row's own.

    Where the halves succeed it is the rows together that fail: then the first row is told.
    """
    low, high = caller.calling
    while high - low > 1:
        middle = (low + high) // 2
        for start, stop in ((low, middle), (middle, high)):
            try:
                caller.run(pick(rows, start, stop), size)
            except RaggedError:
                continue
            except RequestError as found:
                low, high, error = start, stop, found
                break
        else:
            break
    return low, error


def _chunk_rows(used_bytes: int, rows: int, size: int) -> int:
    """How many rows a chunk may have, in whole batches."""
    fitting = CHUNK_BYTES * rows // max(used_bytes, 1)
    return max(size, min(CHUNK_ROWS, fitting) // size * size)

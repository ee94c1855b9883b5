"""The sets of rows of one run: given ones, or generated ones that the reference takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sidecar.errors import RequestError
from sidecar.validation import inputs
from sidecar.validation.files import ValidationInputError
from sidecar.validation.generate import RANDOM_ROWS, Maker
from sidecar.validation.inputs import InputData
from sidecar.validation.layout import Caller, Layout, RaggedError, Rows, pick, rows_in
from sidecar.validation.options import Options
from validators.results import InputSet


def make_sets(
    options: Options, caller: Caller, layout: Layout
) -> tuple[list[InputData], list[str]]:
    """Load or generate the rows.

    With given rows, the ``batch`` set is made of the first ones of the first set.

    Args:
        options: what was asked.
        caller: the reference: generated rows that it refuses are left out.
        layout: what a row is.

    Returns:
        The sets, and notes on what was left out.

    Raises:
        ValidationInputError: what was given does not fit; or nothing generated is taken.
        MissingExtraError: an input file's kind needs an extra.
    """
    if options.label_output is not None and options.labels is None:
        message = "--label-output without --labels: there are none to judge it by"
        raise ValidationInputError(message)
    # See Maker: an index beyond its table ends a process's use of the GPU.
    wild = not caller.runtime.placement.device.startswith("cuda")
    if options.inputs:
        given = inputs.load(options.inputs, layout, labels=options.labels, rows=options.rows)
        maker = Maker(layout, options.seed, lambda _rows: True, wild_integers=wild)
        made, notes = screen(maker.batches(given[0]), caller)
        return [*given, *made], notes
    if options.labels is not None:
        message = "--labels without --input: generated rows have no labels"
        raise ValidationInputError(message)

    def accepts(rows: Rows) -> bool:
        try:
            caller.run(rows, rows_in(rows))
        except RequestError:
            return False
        except RaggedError:
            return True
        return True

    maker = Maker(layout, options.seed, accepts, wild_integers=wild)
    made, notes = screen([maker.random(options.rows or RANDOM_ROWS)], caller)
    if not made:
        message = "the reference refuses every random input, so nothing can be compared "
        message += f"({notes[0]}); give rows it takes: --input FILE"
        raise ValidationInputError(message)
    more, said = screen([*maker.batches(made[0]), *maker.others()], caller)
    return [*made, *more], [*notes, *said]


def screen(sets: Sequence[InputData], caller: Caller) -> tuple[list[InputData], list[str]]:
    """Leave out generated rows that the reference refuses: they are questions to nobody.

    Returns:
        The sets with what is left of them, without empty ones; and a note for each that lost rows.
    """
    kept, notes = [], []
    for data in sets:
        blocks, names, origins, lost, reason, start = [], [], [], [], "", 0
        for block in data.blocks:
            count = rows_in(block)
            labels = [_label(data, start + at) for at in range(count)]
            origin = data.origin_rows[start : start + count]
            start += count
            taken, said = _taken(caller, block, whole=data.calls)
            reason = reason or said
            if data.calls and not taken:
                lost.append(f"a batch of {count}")
            elif len(taken) < count:
                lost += [label for at, label in enumerate(labels) if at not in taken]
            if taken:
                blocks.append({name: array[taken] for name, array in block.items()})
                names += [labels[at] for at in taken]
                origins += origin  # batches are taken whole, or not at all
        if lost:
            shown = ", ".join(lost[:5]) + (", …" if len(lost) > 5 else "")
            notes.append(
                f"{data.name}: the reference refused {len(lost)} ({shown}), left out: {reason}"
            )
        if blocks:
            names = names if data.row_names else []
            kept.append(replace(data, blocks=blocks, row_names=names, origin_rows=origins))
    return kept, notes


def _label(data: InputData, row: int) -> str:
    return data.row_names[row] if data.row_names else f"row {row}"


def _taken(caller: Caller, block: Rows, *, whole: bool) -> tuple[list[int], str]:
    """Which rows of a block the reference takes, and why not the others."""
    count = rows_in(block)
    try:
        caller.run(block, count)
    except RaggedError:
        return list(range(count)), ""
    except RequestError as error:
        reason = str(error)
    else:
        return list(range(count)), ""
    if whole or count == 1:
        return [], reason
    taken = []
    for at in range(count):
        found, said = _taken(caller, pick(block, at, at + 1), whole=True)
        taken += [at] if found else []
        reason = said or reason
    return taken, reason


def input_set(data: InputData) -> InputSet:
    """A set as reports describe it."""
    sizes = [rows_in(block) for block in data.blocks] if data.calls else []
    return InputSet(
        data.name, data.kind, data.source, data.rows, data.seed, sizes, data.decides, data.origin,
        data.origin_rows,
    )  # fmt: skip

"""``sidecar labels``: a file of late labels to a running monitor, in batches."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from sidecar.cli.verdicts import console_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.monitor.label_intake import Label

#: Labels of one call.
BATCH = 1000


def run(
    address: str, file: Path, *, model: str, token: str, timeout_s: float, as_json: bool
) -> int:
    """Send the file; return the exit code: 1 when a label was refused.

    Raises:
        SidecarError: the file cannot be read, no monitor answers, it takes no such labels.
    """
    from sidecar.cli.labels_file import read
    from sidecar.monitor.client import MonitorClient

    total: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    with MonitorClient(address, timeout_s=timeout_s) as client, _progress() as on_sent:
        for batch in _batches(read(file, model)):
            counts = client.put_labels(model, batch, token=token, timeout_s=timeout_s)
            total.update(matched=counts.matched, early=counts.early, repeated=counts.repeated)
            refused.update(counts.refused or {})
            on_sent(len(batch))
    if as_json:
        names = ("matched", "early", "repeated")
        found = {name: total[name] for name in names} | {"refused": dict(refused)}
        print(json.dumps(found, indent=2))
    else:
        _show(total, refused)
    return int(bool(refused))


def _batches(labels: Iterator[Label]) -> Iterator[list[Label]]:
    while batch := list(islice(labels, BATCH)):
        yield batch


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """A count on standard error, where somebody looks at it."""
    from rich.progress import Progress, SpinnerColumn, TextColumn

    console = console_for(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.completed} labels sent"))
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None)
        yield lambda count: bar.advance(task, count)


def _show(total: Counter[str], refused: Counter[str]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    for name, meaning in (
        ("matched", "their request was known: they count"),
        ("early", "they wait for their request, which is not known (yet)"),
        ("repeated", "their request had its label"),
    ):
        table.add_row(f"{total[name]}", name, meaning)
    for why, count in refused.most_common():
        table.add_row(f"{count}", "refused", why, style="red")
    console_for().print(table, markup=False)

"""What one run of ``sidecar validate`` found: plain values, to and from JSON.

::

    RunResult
    ├── inputs: InputSet …            what was run: given data, or generated, each kind by itself
    ├── noise: OutputResult …         the reference against itself, in another batch composition
    └── variants: VariantResult …     one of them is the reference
        ├── groups: GroupResult …     one an input set
        │   └── outputs: OutputResult …
        ├── labels: LabelResult
        └── worst: WorstCase …

Written by the runner, read by the reports and by ``rejudge``. The metrics of each row are not in
here: they lie in ``metrics.safetensors`` beside the report, under ``metric_key``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from validators.limits import Limit
from validators.plain import from_plain, to_plain
from validators.verdict import Verdict

__all__ = [
    "INPUT_KINDS",
    "INVALID_ROWS",
    "SCHEMA_VERSION",
    "Artifact",
    "GroupResult",
    "InputSet",
    "LabelResult",
    "LatencySummary",
    "MetricSummary",
    "OutputResult",
    "RunResult",
    "RunSettings",
    "VariantResult",
    "WorstCase",
    "from_plain",
    "metric_key",
    "to_plain",
]

#: Of the document; another number is not read.
SCHEMA_VERSION = 1

#: How ``InputSet.kind`` is said: data was given, the others were generated.
INPUT_KINDS = ("data", "random", "edges", "extremes", "nonfinite", "batch")

#: Beside the metrics of an output, what ``metrics.safetensors`` holds of it: bool [rows], whether
#: the row is non-finite on one side only.
INVALID_ROWS = "invalid"


@dataclass(slots=True)
class InputSet:
    """Rows that were run, and where they come from.

    Attributes:
        name: unique within the run; what groups, cases and stored metrics are named after.
        kind: one of ``INPUT_KINDS``.
        source: a file's name, or how the rows were made, in words.
        rows: how many.
        seed: of generated rows.
        batch_sizes: of a ``batch`` set: the sizes of its batches, in order.
        origin: of a ``batch`` set: the set whose rows were run again.
        origin_rows: which of its rows these are.
        decides: whether a numeric difference on them counts towards the verdict; where it does
            not, it is a warning (structure always counts).
    """

    name: str
    kind: str
    source: str
    rows: int
    seed: int | None = None
    batch_sizes: list[int] = field(default_factory=list)
    decides: bool = True
    origin: str = ""
    origin_rows: list[int] = field(default_factory=list)


@dataclass(slots=True)
class MetricSummary:
    """The values of one metric over rows; NaN (not applicable to the row) is left out.

    Attributes:
        count: rows with a value.
        mean, min, p50, p90, p99, p999, max: in ``unit``; NaN when ``count`` is 0. SQNR of equal
            rows is infinite, so that the mean may be too.
        violations: rows over a limit; 0 where the metric has none.
        unit: of the values (``"dB"``, ``""``).
        worse: ``"higher"`` or ``"lower"``: which end is bad.
    """

    count: int
    mean: float
    min: float
    p50: float
    p90: float
    p99: float
    p999: float
    max: float
    violations: int = 0
    unit: str = ""
    worse: str = "higher"


@dataclass(slots=True)
class OutputResult:
    """One output of one variant against the reference's, on one input set.

    Attributes:
        output: its name.
        kind: the comparator (``"tensor"``, …); ``""`` when structure forbade any.
        inferred: the sentence that says what was inferred; ``""`` where the config declares it.
        rows: compared.
        invalid_rows: non-finite on one side only; they count as disagreeing.
        disagreements: rows over any limit, or invalid.
        known: of a ``batch`` set, those that disagree in the set of its origin as well: they are
            not held against the variant again.
        limits: what was asked.
        metrics: metric → its values over the rows.
        sketches: name (``"abs_error"``, ``"margin"``) → a ``LogHistogram`` in plain form.
        problems: what is wrong in structure; then the verdict is INVALID and the rest is empty.
        certificate: a ``Certificate`` in plain form, over given data only; else ``None``.
        verdict: of this output on these rows.
        reasons: why, in sentences; the first is the most important.
    """

    output: str
    kind: str = ""
    inferred: str = ""
    rows: int = 0
    invalid_rows: int = 0
    disagreements: int = 0
    limits: list[Limit] = field(default_factory=list)
    metrics: dict[str, MetricSummary] = field(default_factory=dict)
    sketches: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    certificate: dict[str, Any] | None = None
    verdict: Verdict = Verdict.INVALID
    reasons: list[str] = field(default_factory=list)
    known: int = 0

    @property
    def held(self) -> int:
        """The rows that are held against the variant."""
        return self.disagreements - self.known


@dataclass(slots=True)
class GroupResult:
    """One variant on one input set (``RunResult.inputs`` by name)."""

    input_set: str
    outputs: list[OutputResult] = field(default_factory=list)
    verdict: Verdict = Verdict.INVALID
    decides: bool = True


@dataclass(slots=True)
class LabelResult:
    """A variant against the labels, beside the reference.

    Attributes:
        output: the one that holds the classes.
        rows: with a label.
        accuracy, reference_accuracy: shares in [0, 1].
        retention: accuracy / reference_accuracy.
        negative_flips: rows the reference had right and the variant has wrong.
        positive_flips: the other way.
        limit: the share of predictions that ``retention_class`` allows to be lost.
        certificate: over the negative flips, in plain form.
    """

    output: str
    rows: int
    accuracy: float
    reference_accuracy: float
    retention: float
    negative_flips: int
    positive_flips: int
    limit: float
    certificate: dict[str, Any] | None = None
    verdict: Verdict = Verdict.INCONCLUSIVE
    reasons: list[str] = field(default_factory=list)


@dataclass(slots=True)
class LatencySummary:
    """Compute time of calls of one batch size; information, never part of the verdict."""

    batch_size: int
    calls: int
    p50_ms: float
    p99_ms: float


@dataclass(slots=True)
class WorstCase:
    """A row that differs most, or that was the first of its kind to fail.

    Attributes:
        id: the case's, in the report's ``cases`` folder (where inputs and outputs are stored).
        input_set: the group.
        row: index into the input set.
        output: which output it is worst in.
        reason: ``"worst:METRIC"`` or ``"failure:KIND"``.
        metrics: of that output on that row.
        replay: the command that runs it again.
    """

    id: str
    input_set: str
    row: int
    output: str
    reason: str
    metrics: dict[str, float] = field(default_factory=dict)
    replay: str = ""


@dataclass(slots=True)
class Artifact:
    """A file a variant was loaded from (no path of the machine: its name)."""

    name: str
    sha256: str
    bytes: int


@dataclass(slots=True)
class VariantResult:
    """One variant.

    Attributes:
        key: ``version/name``.
        runtime: its kind (``"onnxruntime"``).
        device: where it ran; ``""`` when it could not be loaded.
        precision: one of the precisions of the limits (``"fp16"``).
        precision_note: how that is known.
        is_reference: the others are compared with it.
        divergence: what localization found, plain; ``None`` where it was not asked for.
        errors: what it raised: then INVALID.
        warnings: differences on inputs that do not decide.
    """

    key: str
    runtime: str
    device: str = ""
    precision: str = "fp32"
    precision_note: str = ""
    is_reference: bool = False
    artifacts: list[Artifact] = field(default_factory=list)
    groups: list[GroupResult] = field(default_factory=list)
    labels: LabelResult | None = None
    latency: list[LatencySummary] = field(default_factory=list)
    worst: list[WorstCase] = field(default_factory=list)
    divergence: dict[str, Any] | None = None
    verdict: Verdict = Verdict.INVALID
    reasons: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


@dataclass(slots=True)
class RunSettings:
    """What the run was asked."""

    retention_class: str
    retention_limit: float
    alpha: float
    seed: int
    rows: int | None = None
    limits: dict[str, str] = field(default_factory=dict)  # given on the command line


@dataclass(slots=True)
class RunResult:
    """One model's run.

    Attributes:
        model: its name.
        created_at: ISO 8601, UTC.
        tool_version: of the sidecar.
        command: what was typed.
        settings: what was asked.
        environment: fact → text: versions, device, cpu, flags of precision.
        reference: the key of the variant the others are compared with.
        reference_note: how it was chosen, where the config has no ``reference`` role.
        inputs: what was run.
        noise: the reference's own noise, an output each, over the sets it could be measured on.
        variants: the reference first.
        verdict: of the whole.
        reasons: why.
        notes: what a reader should know (what was inferred, what was left out).
        schema: of the document.
    """

    model: str
    created_at: str
    tool_version: str
    command: str
    settings: RunSettings
    reference: str
    environment: dict[str, str] = field(default_factory=dict)
    reference_note: str = ""
    inputs: list[InputSet] = field(default_factory=list)
    noise: list[OutputResult] = field(default_factory=list)
    variants: list[VariantResult] = field(default_factory=list)
    verdict: Verdict = Verdict.INVALID
    reasons: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    schema: int = SCHEMA_VERSION

    def variant(self, key: str) -> VariantResult | None:
        """The variant of that key."""
        return next((variant for variant in self.variants if variant.key == key), None)

    def to_plain(self) -> dict[str, Any]:
        """The document: only what JSON has; numbers that are not finite are text (``"inf"``)."""
        plain = to_plain(self)
        assert isinstance(plain, dict)
        return plain

    @classmethod
    def from_plain(cls, plain: object) -> RunResult:
        """Read what ``to_plain`` made.

        Raises:
            ValueError: it is not such a document, or of another schema; says where.
        """
        if not isinstance(plain, dict) or "schema" not in plain:
            message = "this is not the report of a run: it has no `schema`"
            raise ValueError(message)
        if plain["schema"] != SCHEMA_VERSION:
            message = f"the report has schema {plain['schema']!r}; this version reads "
            message += f"{SCHEMA_VERSION}: run `sidecar validate` again"
            raise ValueError(message)
        return from_plain(cls, plain)


def metric_key(variant: str, input_set: str, output: str, metric: str) -> str:
    """The name of a metric's values (float64 [rows]) in ``metrics.safetensors``.

    Any of the parts may hold any character: what separates them is escaped.
    """
    parts = (variant, input_set, output, metric)
    return "|".join(part.replace("%", "%25").replace("|", "%7C") for part in parts)

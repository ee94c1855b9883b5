from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import pytest

from sidecar.demo.figures import compare_formats, figures, stage_means_us, totals
from sidecar.demo.load import NOT_ANSWERED, Tally, Target
from sidecar.protocol.pb import inference_pb2 as pb

TARGET = Target("digits", "2", "onnx")


def tally_of(answers: list[int | None], **fields: Any) -> Tally:
    scores = np.full((len(answers), 10), np.nan, np.float32)
    for row, answer in enumerate(answers):
        if answer is not None:
            scores[row] = 0
            scores[row, answer] = 1
    return Tally(scores, {"grpc": 3, "http": 1}, {"grpc": deque(), "http": deque()}, **fields)


def test_accuracy_is_over_answered_digits_only():
    tally = tally_of([3, 5, None, 7])
    assert tally.answers().tolist() == [3, 5, NOT_ANSWERED, 7]
    row = figures(TARGET, tally, np.array([3, 1, 2, 7]), 2.0, {})
    assert row.variant == "digits:2/onnx"
    assert row.answered == 3
    assert row.accuracy == pytest.approx(2 / 3)
    assert row.rate_per_s == 2.0


def test_without_answers_there_are_no_figures_instead_of_zeros():
    row = figures(TARGET, tally_of([None, None], failures=4), np.array([3, 1]), 0.0, {})
    assert row.accuracy is None
    assert row.latency_ms == {}
    assert row.failures == 4


def test_percentiles_are_milliseconds():
    tally = tally_of([1])
    tally.latencies_ns["http"].extend(range(0, 101_000_000, 1_000_000))
    latency = figures(TARGET, tally, np.array([1]), 1.0, {}).latency_ms
    assert set(latency) == {"http"}
    assert (latency["http"].p50, latency["http"].p99) == pytest.approx((50, 99))


def statistics(count: int, ns: int) -> list[pb.ModelStatistics]:
    model = pb.ModelStatistics(name="digits", version="2")
    stats = model.inference_stats
    stats.compute_input.count, stats.compute_input.ns = count, ns
    stats.queue.count, stats.queue.ns = count, 2 * ns
    stats.compute_infer.count, stats.compute_infer.ns = count, 3 * ns
    return [model]


def test_stages_are_means_since_the_start_and_absent_where_nothing_ran():
    before, now = totals(statistics(10, 10_000_000)), totals(statistics(30, 10_040_000))
    means = stage_means_us(before, now, TARGET)
    assert means == pytest.approx({"decode": 2.0, "queue": 4.0, "execute": 6.0})
    assert stage_means_us(before, before, TARGET) == {}
    assert stage_means_us({}, now, Target("digits", "1", "onnx")) == {}


def test_a_version_and_its_fallback_are_one_row():
    both = totals([*statistics(10, 1_000), *statistics(2, 500)])
    assert both["digits", "2"]["decode"] == (12, 1_500)


def test_formats_are_compared_over_the_digits_both_answered():
    exact = tally_of([1, 2, 3, None])
    quantized = tally_of([1, 2, 4, 4])
    quantized.scores[0] *= 1.5
    tallies = {
        TARGET: exact,
        Target("digits-int8", "2", "int8"): quantized,
        Target("digits-int8", "1", "int8"): tally_of([9, 9, 9, 9]),
    }
    (result,) = compare_formats(tallies)
    assert (result.version, result.digits, result.disagreements) == ("2", 3, 1)
    assert result.score_difference_max == 1.0

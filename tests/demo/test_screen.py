from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console, RenderableType

from sidecar.demo.figures import Percentiles, VariantFigures
from sidecar.demo.load import NOT_ANSWERED
from sidecar.demo.screen import Shown, digit_row, draw, progress_line, variant_table

ROW = VariantFigures(
    variant="digits-torch:2/pt2",
    requests={"grpc": 1000, "http": 500},
    failures=0,
    differences=0,
    rate_per_s=150.4,
    answered=450,
    accuracy=0.9889,
    latency_ms={"grpc": Percentiles(1.24, 13.46)},
    stages_us={"decode": 21.4, "queue": 3.0, "execute": 1234.0},
)


def console(width: int = 80, encoding: str = "utf-8", **options: Any) -> tuple[Console, io.BytesIO]:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    return Console(file=file, width=width, legacy_windows=False, **options), raw


def shown(renderable: RenderableType, **options: Any) -> str:
    target, raw = console(**options)
    target.print(renderable)
    return raw.getvalue().decode()


@pytest.fixture
def image():
    image = np.zeros((8, 8), np.float32)
    image[0, 0] = image[1, 1] = image[2, 2] = image[3, 2] = 16
    return image


def test_the_table_fits_eighty_columns_with_everything_in_it():
    text = shown(variant_table([ROW]))
    line = next(line for line in text.splitlines() if "pt2" in line)
    assert line.split() == [
        "digits-torch:2/pt2", "150", "1.2/13.5", "21", "3", "1,234", "98.9%",
    ]  # fmt: skip


def test_two_pixels_share_a_character(image: np.ndarray):
    assert draw(image, colored=False).plain.splitlines() == ["▀▄      ", "  █     ", *[" " * 8] * 2]


def test_colours_are_the_pixels_themselves(image: np.ndarray):
    image[0, 1] = 8
    first, second = draw(image, colored=True).spans[:2]
    assert (first.style.color.name, first.style.bgcolor.name) == ("#ffffff", "#000000")
    assert (second.style.color.name, second.style.bgcolor.name) == ("#808080", "#ffffff")


def test_answers_stand_under_the_digit(image: np.ndarray):
    digits = [Shown(image, 7, {"v1": 3, "v2": 7, "v3": NOT_ANSWERED})]
    target, _ = console()
    text = shown(digit_row(target, digits))
    assert "is 7" in text
    assert "v1 3 ✗" in text
    assert "v2 7 ✓" in text
    assert "v3 …" in text


def test_no_more_digits_than_fit(image: np.ndarray):
    target, _ = console(width=40)
    row = digit_row(target, [Shown(image, index, {}) for index in range(8)])
    assert [f"is {index}" in shown(row, width=40) for index in range(4)] == [
        True,
        True,
        True,
        False,
    ]


def test_a_terminal_without_block_characters_gets_no_picture(image: np.ndarray):
    target, _ = console(encoding="ascii")
    assert digit_row(target, [Shown(image, 1, {})]) is None


def test_the_line_weighs_variants_by_their_answers():
    half = VariantFigures("digits:1/onnx", {"grpc": 4}, 2, 0, 1.0, 150, 0.5, {}, {})
    empty = VariantFigures("digits:3/onnx", {}, 0, 0, 0.0, 0, None, {}, {})
    line = progress_line([ROW, half, empty], 10.0)
    assert line.split() == [
        "10.0",
        "s",
        "1,504",
        "requests",
        "150/s",
        "2",
        "failed",
        "86.7%",
        "right",
    ]

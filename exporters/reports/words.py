"""Numbers and names as a report says them."""

from __future__ import annotations

import math
import re
import unicodedata

#: What XML and screens cannot show: control characters but tab and line feed, halves of surrogate
#: pairs, noncharacters.
_UNSHOWABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
#: What turns the direction of the text around it, so that a name could pose as another.
_TURNING = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def clean(text: str) -> str:
    """Return ``text`` with what cannot or must not be shown replaced by its escape."""
    return _TURNING.sub(_escaped, _UNSHOWABLE.sub(_escaped, text))


def _escaped(match: re.Match[str]) -> str:
    return f"\\u{ord(match.group()):04x}"


def shortened(text: str, most: int) -> str:
    """Return ``text`` in at most ``most`` characters, its end replaced by an ellipsis."""
    text = clean(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def number(value: float | str | None, unit: str = "") -> str:
    """Return a number in four digits, with its unit; ``–`` for none.

    Args:
        value: may be text, as non-finite numbers are in JSON.
        unit: ``"1"``, ``"share"`` and a sentence are not shown.
    """
    value = plain(value)
    if math.isnan(value):
        return "–"
    infinite = "∞" if value > 0 else "−∞"
    text = infinite if math.isinf(value) else f"{value:.4g}"
    return f"{text} {unit}" if unit in {"dB", "nats", "ms"} else text


def plain(value: float | str | None) -> float:
    """Return a number that may be text; NaN for what is none."""
    try:
        return math.nan if value is None else float(value)
    except (TypeError, ValueError):
        return math.nan


def percent(share: float | str | None) -> str:
    """Return a share of 0.0123 as ``1.23 %``."""
    value = plain(share)
    return "–" if math.isnan(value) else f"{100 * value:.3g} %"


def count(value: float | str | None) -> str:
    """Return a count with thousands apart; a sum of shares with its fraction."""
    found = plain(value)
    if not math.isfinite(found):
        return "–"
    return f"{found:,.0f}" if found == round(found) else f"{found:,.6g}"


def size(value: int) -> str:
    """Return bytes in a unit of a thousand."""
    amount = float(value)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.3g} {unit}"
        amount /= 1000
    return f"{amount:.3g} GB"


def plural(amount: int, noun: str) -> str:
    """Return ``1 row``, ``2 rows``."""
    return f"{count(amount)} {noun}{'' if amount == 1 else 's'}"


def anchor(text: str) -> str:
    """Return an id for a link: letters, digits and dashes of ``text``."""
    ascii_only = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-zA-Z0-9]+", "-", ascii_only).strip("-").lower() or "x"

"""Protobuf's wire format, walked without a schema: which field lies where.

Every walk has a budget of fields, so that no message, however made, costs more than a bounded time
(the Python lock is held meanwhile), whatever its size.
"""

from __future__ import annotations

from typing import NoReturn

Buffer = bytes | memoryview
#: A field: its number, where its tag begins, where its value begins and ends.
Span = tuple[int, int, int, int]

#: A bound on the work: 64 MiB of two-byte fields would hold Python's lock for ten seconds. Real
#: requests have a field for each tensor, twice, and one for each parameter.
MAX_FIELDS = 65_536
LENGTH_DELIMITED = 2
_VARINT, _GROUP_START, _GROUP_END = 0, 3, 4
_FIXED_BYTES = {1: 8, 5: 4}
#: Nesting of unknown groups; protobuf's own limit.
_MAX_DEPTH = 100
CUT_SHORT = "it is cut short"


class MalformedError(ValueError):
    """Not protobuf's wire format; the text says what and where."""


def flat(body: Buffer) -> Buffer:
    """The same bytes, so that indexing gives integers from 0 to 255."""
    if isinstance(body, bytes) or (body.format == "B" and body.ndim == 1):
        return body
    return body.cast("B")


def spans(body: Buffer) -> list[Span]:
    """Where the length-delimited top-level fields of any message lie, in the order of the wire.

    Fields of other wire types are stepped over: the protocol's infer messages have none on top.

    Raises:
        MalformedError: not protobuf's wire format, or more than ``MAX_FIELDS`` fields.
    """
    body = flat(body)
    size = len(body)
    found: list[Span] = []
    budget = MAX_FIELDS
    position = 0
    try:
        while position < size:
            # Tags and lengths of one byte, nearly all, are read in place: calls double the time.
            start = position
            tag = body[position]
            position += 1
            if tag > 0x7F:
                tag, position = varint(body, start)
            if tag & 7 != LENGTH_DELIMITED:
                position, budget = _skip(body, tag, position, budget)
                continue
            length = body[position]
            position += 1
            if length > 0x7F:
                length, position = varint(body, position - 1)
            end = position + length
            budget -= 1
            if end > size or budget < 0 or tag < 8:
                _refuse(tag, start, budget)
            found.append((tag >> 3, start, position, end))
            position = end
    except IndexError:
        raise MalformedError(CUT_SHORT) from None
    return found


def _refuse(tag: int, start: int, budget: int) -> NoReturn:
    if budget < 0:
        text = f"it has more than {MAX_FIELDS} fields"
    elif tag < 8:
        text = f"field number 0 at byte {start}"
    else:
        text = CUT_SHORT
    raise MalformedError(text)


def varint(body: Buffer, position: int) -> tuple[int, int]:
    """Read a variable-length integer: its value (64 bits) and where it ends.

    Raises:
        MalformedError: it has more than ten bytes. IndexError: the body ends within it.
    """
    value = shift = 0
    while True:
        byte = body[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
        shift += 7
        if shift > 63:
            text = f"an integer of more than ten bytes at byte {position - 10}"
            raise MalformedError(text)


def _skip(body: Buffer, tag: int, position: int, budget: int) -> tuple[int, int]:
    """Skip the value behind ``tag`` (a whole group, if it opens one): its end, and the budget."""
    groups: list[int] = []
    while True:
        wire, number = tag & 7, tag >> 3
        budget -= 1
        # Inside an unknown group protobuf's parser takes even field number 0.
        if budget < 0 or (number == 0 and not groups):
            _refuse(tag, position, budget)
        if wire == _GROUP_START:
            groups.append(number)
            if len(groups) > _MAX_DEPTH:
                text = f"groups nested more than {_MAX_DEPTH} deep"
                raise MalformedError(text)
        elif wire == _GROUP_END and groups and groups[-1] == number:
            groups.pop()
        else:
            position = _value_end(body, wire, position)
        if not groups:
            return position, budget
        tag, position = varint(body, position)


def _value_end(body: Buffer, wire: int, position: int) -> int:
    if wire == LENGTH_DELIMITED:
        length, position = varint(body, position)
        position += length
    elif wire == _VARINT:
        _, position = varint(body, position)
    elif wire in _FIXED_BYTES:
        position += _FIXED_BYTES[wire]
    else:
        text = f"wire type {wire} at byte {position}"
        raise MalformedError(text)
    if position > len(body):
        raise IndexError
    return position


def subfields(
    body: Buffer, position: int, end: int, budget: int
) -> tuple[list[tuple[int, int, int]], int]:
    """The fields of the message in ``body[position:end]``, and what is left of the budget.

    Returns:
        (tag, start of value, end of value) of each.

    Raises:
        MalformedError: as ``spans``. IndexError: the body ends within a field.
    """
    found: list[tuple[int, int, int]] = []
    while position < end:
        tag, position = varint(body, position)
        value = position
        if tag & 7 == LENGTH_DELIMITED:
            _, value = varint(body, position)
        position, budget = _skip(body, tag, position, budget)
        found.append((tag, value, position))
    if position != end:
        text = f"a field runs over the end of its message at byte {end}"
        raise MalformedError(text)
    return found, budget


def encode_varint(value: int) -> bytes:
    """Protobuf's variable-length form of a non-negative integer."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append((value & 0x7F) | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def length_delimited(number: int, value: bytes) -> bytes:
    """Field ``number`` (below 16) with ``value``: tag, length, value."""
    return b"".join((bytes((number << 3 | LENGTH_DELIMITED,)), encode_varint(len(value)), value))

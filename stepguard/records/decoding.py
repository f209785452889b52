"""From lines of JSON to records, all of a block at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, get_type_hints

import msgspec

from stepguard.records.collapse import CollapseReading
from stepguard.records.reading import Reading

_NUMBER = float | Literal["inf", "-inf", "nan"]
_TYPES: dict[Any, Any] = {
    float: _NUMBER,
    float | None: _NUMBER | None,
    list[float | None] | None: list[_NUMBER | None] | None,
    dict[str, float] | None: dict[str, _NUMBER] | None,
}


def _line(kind: str, fields: dict[str, Any], defaults: dict[str, Any]) -> Any:
    """What a line of a kind is made into: its fields as attributes, what is not known passed over."""
    # In the order of the lines, by which they are found soonest; without the garbage collector, for there is no cycle.
    every = [("time", float, 0.0), *((n, t, defaults[n]) if n in defaults else (n, t) for n, t in fields.items())]
    return msgspec.defstruct(
        kind,
        [*every, ("logged_step", int | None, None), ("by", str, "")],
        tag=kind,
        tag_field="kind",
        kw_only=True,
        gc=False,
    )


def _of(kind: str, row: Any) -> Any:
    types = {name: _TYPES.get(hint, hint) for name, hint in get_type_hints(row).items()}
    return _line(kind, {name: types[name] for name in row._fields}, row._field_defaults)


READING, COLLAPSE = _of("reading", Reading), _of("collapse", CollapseReading)
EVENT = _line("event", {"step": int, "event": str, "message": str, "data": dict[str, Any] | None}, {"data": None})
_ANY: Any = READING | COLLAPSE | EVENT
_DECODER = msgspec.json.Decoder(_ANY)
_KINDS = {kind.__struct_config__.tag for kind in (READING, COLLAPSE, EVENT)}


def records(block: bytes) -> list[Any] | None:
    """The records of lines that are all of steps; None if one is something else, or nothing that can be read."""
    try:
        found = _DECODER.decode_lines(block)
    except (msgspec.MsgspecError, ValueError):
        return None
    return found if len(found) == block.count(b"\n") else None


def record(line: bytes) -> Any:
    """That of one line, or of another kind the dict that it is.

    Raises:
        ValueError, KeyError, TypeError: If it is none.
    """
    values = json.loads(line)  # which also takes NaN and Infinity, as others may write them
    if values["kind"] not in _KINDS:
        return values
    try:
        return msgspec.convert(values, _ANY)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def values(found: Sequence[Any]) -> list[tuple[Any, ...]]:
    """What the fields of readings or collapses have, each of all of them."""
    return list(zip(*map(msgspec.structs.astuple, found), strict=True))[1:-2]  # without time, logged_step and by

"""Compares two plain contents: the analysis of two versions, or the facts of two collections.

    changes = compare({"analysis": {...}, "model": "m"}, {"analysis": {...}, "model": "n"})

A content is a mapping of plain JSON values. Lists named in `_LISTS` anywhere in it are compared
row by row, matched by what names a row and not by its place; everything else is compared by path.
Nothing is rounded or rewritten: a change holds both values as they were written.
"""

import json
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from services.techfiles.rules import slot_name
from shared.formats.fact_tables import LENGTH_UNITS

Kind = Literal["added", "removed", "changed", "rewritten", "moved"]
_Row = Mapping[str, Any]

_MATERIALS = ("materials",)
_LENGTHS = ("dimensions", "measurements", "points_of_measure")
_PLACES = ("call_outs", "features")
_LISTS = frozenset((*_MATERIALS, *_LENGTHS, *_PLACES))
# Lengths that differ by less are equal: a billionth is far below what anybody measures, and above
# what the conversion of a unit rounds.
_EQUAL = 1e-9
_ABSENT: Any = object()


@dataclass(frozen=True, slots=True)
class RowChange:
    """A row of a list that differs. `fields`: the names of its fields that do."""

    kind: Kind
    list: str
    name: str
    view: str
    before: _Row | None
    after: _Row | None
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LengthChange(RowChange):
    """A length that differs. `delta` is after less before in `unit`, the unit of the later one."""

    delta: float | None = None
    unit: str = ""
    not_comparable: str = ""


@dataclass(frozen=True, slots=True)
class PlaceChange(RowChange):
    """A call-out or feature that differs, and how far it moved, as fractions of the picture."""

    moved: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class ValueChange:
    kind: Kind
    path: str
    before: Any
    after: Any


@dataclass(slots=True)
class Changes:
    materials: list[RowChange] = field(default_factory=list)
    lengths: list[LengthChange] = field(default_factory=list)
    places: list[PlaceChange] = field(default_factory=list)
    values: list[ValueChange] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.materials) + len(self.lengths) + len(self.places) + len(self.values)


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> Changes:
    """Returns all that differs; it is empty if the two say the same."""
    changes = Changes()
    _compare_objects("", before, after, changes)
    return changes


def same(one: object, other: object) -> bool:
    """Returns whether two plain values are equal. 1 and 1.0 are, 1 and true are not."""
    return one is other or (_ABSENT not in (one, other) and _canonical(one) == _canonical(other))


def _compare_objects(path: str, before: _Row, after: _Row, changes: Changes) -> None:
    for name in (*before, *(name for name in after if name not in before)):
        _compare(
            f"{path}.{name}" if path else name,
            name,
            before.get(name, _ABSENT),
            after.get(name, _ABSENT),
            changes,
        )


def _compare(path: str, name: str, before: Any, after: Any, changes: Changes) -> None:
    rows = [_rows(before), _rows(after)]
    if name in _LISTS and None not in rows:
        _compare_rows(name, rows[0] or [], rows[1] or [], changes)
    elif isinstance(before, dict) and isinstance(after, dict):
        _compare_objects(path, before, after, changes)
    elif _holds_objects(before) and _holds_objects(after):
        for index in range(max(len(before), len(after))):
            _compare(f"{path}[{index}]", "", _item(before, index), _item(after, index), changes)
    elif before is _ABSENT:
        changes.values.append(ValueChange("added", path, None, after))
    elif after is _ABSENT:
        changes.values.append(ValueChange("removed", path, before, None))
    elif not same(before, after):
        changes.values.append(ValueChange("changed", path, before, after))


def _rows(value: Any) -> list[_Row] | None:
    """Returns the rows of a list; none if it is absent. Returns None if it isn't a list of rows."""
    if value is _ABSENT or value is None:
        return []
    is_list = isinstance(value, list) and all(isinstance(row, dict) for row in value)
    return value if is_list else None


def _holds_objects(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict | list) for item in value)


def _item(items: list[Any], index: int) -> Any:
    return items[index] if index < len(items) else _ABSENT


def _compare_rows(name: str, before: list[_Row], after: list[_Row], changes: Changes) -> None:
    if name in _MATERIALS:
        pairs = _paired(before, after, lambda row: _key(row, "part"))
        changes.materials += [_material(name, *pair) for pair in pairs]
    elif name in _LENGTHS:
        pairs = _paired(before, after, _length_key)
        changes.lengths += [_length(name, *pair) for pair in pairs]
    else:
        pairs = _paired(before, after, lambda row: _key(row, "view", "name"))
        changes.places += [_place(name, *pair) for pair in pairs]


_Pair = tuple[_Row | None, _Row | None]


def _paired(
    before: list[_Row], after: list[_Row], key_of: Callable[[_Row], object]
) -> Iterator[_Pair]:
    """Yields the rows that differ in pairs. Of several rows with one key, those that are equal
    belong together; the others are paired in their order."""
    equal = Counter(map(_canonical, before)) & Counter(map(_canonical, after))
    left: dict[object, deque[_Row]] = {}
    for row in _without(after, equal):
        left.setdefault(key_of(row), deque()).append(row)
    for row in _without(before, equal):
        others = left.get(key_of(row))
        yield row, (others.popleft() if others else None)
    for rows in left.values():
        yield from ((None, row) for row in rows)


def _without(rows: list[_Row], equal: Counter[str]) -> Iterator[_Row]:
    rest = Counter(equal)
    for row in rows:
        text = _canonical(row)
        if rest[text]:
            rest[text] -= 1
        else:
            yield row


def _canonical(value: object) -> str:
    """Returns a text that equal values share."""
    return json.dumps(_whole(value), sort_keys=True)


def _whole(value: object) -> object:
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _key(row: _Row, *names: str) -> tuple[str, ...]:
    return tuple(slot_name(_text(row, name)) for name in names)


def _length_key(row: _Row) -> tuple[str, ...]:
    return ("code", *_key(row, "code")) if _text(row, "code") else ("", *_key(row, "view", "name"))


def _text(row: _Row | None, name: str) -> str:
    value = (row or {}).get(name)
    return value if isinstance(value, str) else ""


def _differing(before: _Row, after: _Row) -> tuple[str, ...]:
    names = dict.fromkeys((*before, *after))
    return tuple(n for n in names if not same(before.get(n, _ABSENT), after.get(n, _ABSENT)))


def _kind(before: _Row | None, after: _Row | None) -> Kind:
    return "added" if before is None else "removed" if after is None else "changed"


def _material(name: str, before: _Row | None, after: _Row | None) -> RowChange:
    fields = _differing(before, after) if before and after else ()
    part = _text(after or before, "part")
    return RowChange(_kind(before, after), name, part, "", before, after, fields)


def _length(name: str, before: _Row | None, after: _Row | None) -> LengthChange:
    shown = after if after is not None else before
    kind = _kind(before, after)
    fields: tuple[str, ...] = ()
    delta: float | None = None
    unit, why = "", ""
    if before is not None and after is not None:
        fields = _differing(before, after)
        delta, unit, why = difference(before, after)
        if delta == 0 and set(fields) == {"value", "unit"}:
            kind = "rewritten"
    return LengthChange(
        kind,
        name,
        _text(shown, "name"),
        _text(shown, "view"),
        before,
        after,
        fields,
        delta,
        unit,
        why,
    )


def difference(before: _Row, after: _Row) -> tuple[float | None, str, str]:
    """Returns the difference of two lengths, its unit, and why there is none."""
    values = [row.get("value") for row in (before, after)]
    units = [_text(row, "unit") for row in (before, after)]
    numbers = [
        value for value in values if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    if len(numbers) < 2:
        return None, "", "a value is missing or no number"
    if units[0] == units[1]:
        delta = numbers[1] - numbers[0]
    elif all(unit in LENGTH_UNITS for unit in units):
        delta = numbers[1] - numbers[0] * LENGTH_UNITS[units[0]] / LENGTH_UNITS[units[1]]
    else:
        named = [unit[:20] or "no unit" for unit in units]
        return None, "", f"{named[0]} and {named[1]} are not both units of length"
    if abs(delta) <= _EQUAL * max(1.0, abs(numbers[1])):
        return 0.0, units[1], ""
    return round(delta, 9), units[1], ""


def _place(name: str, before: _Row | None, after: _Row | None) -> PlaceChange:
    shown = after if after is not None else before
    kind = _kind(before, after)
    fields: tuple[str, ...] = ()
    moved: tuple[float, float] | None = None
    if before is not None and after is not None:
        fields = _differing(before, after)
        places = [_point(before), _point(after)]
        if places[0] and places[1] and places[0] != places[1]:
            x, y = (b - a for a, b in zip(places[0], places[1], strict=True))
            moved = round(x, 9), round(y, 9)
            if set(fields) <= {"x", "y", "at"}:
                kind = "moved"
    return PlaceChange(
        kind, name, _text(shown, "name"), _text(shown, "view"), before, after, fields, moved
    )


def _point(row: _Row) -> tuple[float, float] | None:
    """Returns the place of a call-out (x, y) or of a stated feature (at: {x, y})."""
    at = row.get("at") if isinstance(row.get("at"), dict) else row
    x, y = (at or {}).get("x"), (at or {}).get("y")
    if isinstance(x, int | float) and isinstance(y, int | float):
        return float(x), float(y)
    return None

"""Reads what the analyses of tech files say: each value with its source.

An analysis is free JSON. What has a known key and a form that can be printed is read; all else is
kept as it is, and named in a warning. Keys and forms: docs/techfiles/printing.md.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from atelier.conversions.v1 import analysis_pb2
from google.protobuf import json_format

from services.techfiles import document
from services.techfiles.document import Point
from services.techfiles.tech_file_rows import TechFile
from shared.formats.fact_tables import VIEWS, FactsError, Table
from shared.rpc import protos

Source = Literal["supplied", "confirmed", "measured", "read", "found"]
SOURCES: tuple[Source, ...] = ("supplied", "confirmed", "measured", "read", "found")
"""The sources of values, the surest first."""
# A reading of less confidence is a guess: it is listed, and stands nowhere else.
READ_COUNTS_FROM = 0.5

# Values and their characters that one pack takes from analyses. 500 marks with 100,000 characters
# beside a megabyte of facts with 500 marks take 770 MB, without them 500 MB; the renderer may have
# 1,024 MB, and 2,000 of them don't fit.
_MOST_VALUES = 500
_MOST_CHARACTERS = 100_000
_MOST_WARNINGS = 20

_LABELS = {
    "category": "Category",
    "base_view": "Base view",
    "sketch": "Sketch",
    "closeup": "Close-up",
}

Row = (
    str
    | document.Material
    | document.BillItem
    | document.Dimension
    | document.PointOfMeasure
    | document.Feature
    | document.Price
)


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in a picture, as fractions of its width and height."""

    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value comes from. `by` is a model, or who supplied or confirmed it; `file` is the
    tech file whose analysis has it. `repeats_facts`: a model's analysis repeats what was stated,
    which the facts say."""

    source: Source
    by: str
    confidence: float | None
    file: str
    picture: int = 0
    box: Box | None = None
    note: str = ""
    repeats_facts: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """What one source says under one key of an analysis: a value, or the items of a list. `view` is
    that of features."""

    key: str
    rows: tuple[tuple[Row, str], ...]
    origin: Origin


def label(file: TechFile) -> str:
    """Returns the name of a file in print."""
    named = file.file_category or file.view_type
    kind = _LABELS.get(file.file_type, file.file_type if named else "")
    return f"{kind}: {named}" if named else kind


def stored(analysis: analysis_pb2.Analysis) -> dict[str, Any]:
    """Returns an analysis of `conversions` as a tech file keeps it: the keys of its result, and its
    findings, which say where each value comes from."""
    listed = [
        json_format.MessageToDict(each, preserving_proto_field_name=True)
        for each in analysis.findings
    ]
    return {**protos.plain(analysis.result), **({"findings": listed} if listed else {})}


class Reading:
    """Reads analyses, file by file. A finding is taken or left as a whole; after the first that is
    left no further file is read."""

    def __init__(self) -> None:
        self.taken: list[Finding] = []
        self._warnings: list[str] = []
        self._values, self._characters, self._left, self._unread = 0, 0, 0, 0

    def add(self, files: Iterable[TechFile]) -> None:
        for file in files:
            if file.analysis and self._left:
                self._unread += 1
            elif file.analysis:
                self._add(_Reader(file))

    def _add(self, reader: "_Reader") -> None:
        for finding in reader.findings():
            size = len(finding.origin.note) + sum(len(repr(row)) for row, _ in finding.rows) // 2
            values, characters = self._values + len(finding.rows), self._characters + size
            if values > _MOST_VALUES or characters > _MOST_CHARACTERS:
                self._left += len(finding.rows)
                continue
            self._values, self._characters = values, characters
            self.taken.append(finding)
        self._warnings += reader.warnings

    def warnings(self) -> list[str]:
        """Returns warnings about what isn't printed."""
        warnings = list(self._warnings)
        if self._left:
            others = f", and those of {self._unread} more files," if self._unread else ""
            warnings.insert(
                0,
                f"analysis: {self._left:,} values{others} are not printed: a pack takes"
                f" {_MOST_VALUES:,} from its files, with {_MOST_CHARACTERS:,} characters; the ZIP"
                " has all of them",
            )
        if len(warnings) > _MOST_WARNINGS:
            more = len(warnings) - _MOST_WARNINGS
            warnings[_MOST_WARNINGS:] = [
                f"analysis: {more:,} more warnings about values not printed"
            ]
        return warnings


class _Reader:
    """Reads the analysis of one file."""

    def __init__(self, file: TechFile) -> None:
        self._file = file
        self._label = label(file)
        self._analysis: Mapping[str, Any] = file.analysis or {}
        self.warnings: list[str] = []

    def findings(self) -> Iterator[Finding]:
        listed = self._analysis.get("findings")
        entries = listed if isinstance(listed, list) else []
        if listed is not None and not isinstance(listed, list):
            self._warn("findings", "is not a list")
        told: set[str] = set()
        for index, entry in enumerate(entries):
            path = f"findings[{index}]"
            if not isinstance(entry, Mapping) or not isinstance(entry.get("key"), str):
                self._warn(path, "is not a table with a key, a value and a source")
                continue
            told.add(entry["key"])
            origin = self._origin(entry, path)
            if origin is not None:
                yield from self._values(entry["key"], entry.get("value"), origin, f"{path}.value")
        result = self._analysis.get("result")
        plain = {**result, **self._analysis} if isinstance(result, Mapping) else self._analysis
        for key, value in plain.items():
            if key not in told and key not in _ENVELOPE:
                yield from self._values(key, value, self._unsaid(), key)

    def _origin(self, entry: Mapping[str, Any], path: str) -> Origin | None:
        source = _source(entry.get("source"))
        if source is None:
            self._warn(f"{path}.source", f"is none of {', '.join(SOURCES)}")
            return None
        confidence = entry.get("confidence")
        picture = entry.get("picture")
        sure = confidence if _is_number(confidence) and 0 <= confidence <= 1 else None
        by = _line(entry.get("by")) or _line(entry.get("model"))
        return Origin(
            source,
            by or (self._file.model if source in ("read", "found") else self._who(source)),
            sure if source in ("read", "found") else None,
            self._label,
            int(picture) if _is_number(picture) and 0 < picture <= 64 else 0,
            _box(entry.get("box")),
            _line(entry.get("note")),
            source == "supplied" and bool(self._file.model),
        )

    def _unsaid(self) -> Origin:
        """Returns the origin of values without one of their own: a file that a model made has its
        model's, any other was supplied by who wrote it."""
        file = self._file
        if file.model:
            return Origin("found", file.model, file.confidence, self._label)
        return Origin("supplied", self._who("supplied"), None, self._label)

    def _who(self, source: Source) -> str:
        return self._file.created_by if source in ("supplied", "confirmed") else ""

    def _values(self, key: str, value: Any, origin: Origin, path: str) -> Iterator[Finding]:
        if value in (None, "", []) or key in _FOR_OTHERS:
            return
        if key == "categories" and isinstance(value, list):  # from wide to narrow
            yield from self._values("category", value[0], origin, f"{path}[0]")
            for index, narrower in enumerate(value[1:], 1):
                yield from self._values("subcategory", narrower, origin, f"{path}[{index}]")
            return
        if key not in _FORMS:  # also `categories` that is no list
            self._warn(path, f"has no place in print under the key {key[:60]!r}")
            return
        name, parse, is_list = _FORMS[key]
        if not is_list:
            value, is_list = [value], True
        if isinstance(value, Mapping) and isinstance(value.get("text"), list):
            value = value["text"]  # care, as a reader of labels gives it
        if not isinstance(value, list):
            self._warn(path, "is not a list")
            return
        groups: dict[tuple[str, Origin], list[tuple[Row, str]]] = {}
        for index, item in enumerate(value):
            at = f"{path}[{index}]" if len(value) > 1 else path
            try:
                row = parse(item, self._file.view_type)
            except FactsError as error:
                problem = f"{error.path}: {error.reason}" if error.path else error.reason
                self._warn(at, problem)
                continue
            if row is not None:
                coded = isinstance(row[0], document.PointOfMeasure)
                group = "points of measure" if coded else name, self._of_item(item, origin)
                groups.setdefault(group, []).append(row)
        for (group_name, its_origin), rows in groups.items():
            if not its_origin.repeats_facts:
                yield Finding(group_name, tuple(rows), its_origin)

    def _of_item(self, item: Any, origin: Origin) -> Origin:
        """Returns the origin of an item of a list, which may say its own source."""
        source = _source(item.get("source")) if isinstance(item, Mapping) else None
        if source is None or source == origin.source:
            return origin
        by = origin.by if source in ("read", "found") else self._who(source)
        return Origin(
            source,
            by,
            origin.confidence if source in ("read", "found") else None,
            origin.file,
            origin.picture,
            origin.box,
            origin.note,
            source == "supplied" and bool(self._file.model),
        )

    def _warn(self, path: str, problem: str) -> None:
        self.warnings.append(f"analysis: {self._label}: {path[:120]}: {problem}; it is not printed")


def _source(value: object) -> Source | None:
    if not isinstance(value, str):
        return None
    word = value.removeprefix("VALUE_SOURCE_").lower()
    if word.startswith("measured"):  # "measured from the declared scale"
        return "measured"
    return next((source for source in SOURCES if source == word), None)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _line(value: object) -> str:
    return " ".join(value.split())[:300] if isinstance(value, str) else ""


def _box(value: object) -> Box | None:
    names = ("left", "top", "width", "height")
    if isinstance(value, Mapping):
        value = [value.get(name, 0) for name in names]
    if not isinstance(value, list) or len(value) != len(names):
        return None
    if not all(_is_number(each) and 0 <= each <= 1 for each in value):
        return None
    return Box(*(float(each) for each in value))


# One function per form. Each returns the row and the view that it belongs to, or None if the row
# says nothing.

Parsed = tuple[Row, str] | None


def _table(item: object) -> Table:
    """Returns the item's known values: an analysis has a null for what isn't known."""
    if not isinstance(item, Mapping):
        return Table("", item)  # raises
    return Table("", {key: value for key, value in item.items() if value not in (None, "")})


def _one_line(item: object, _view: str) -> Parsed:
    return _need(Table("", {"value": item}).line("value")), ""


def _one_text(item: object, _view: str) -> Parsed:
    return _need(Table("", {"value": item}).text("value")), ""


def _need(text: str | None) -> str:
    if text is None:
        raise FactsError("", "is empty")
    return text


def _material(item: object, _view: str) -> Parsed:
    row = _table(item)
    return document.Material(
        row.line("part"),
        row.need(row.line, "material"),
        row.line("weight"),
        row.line("colour"),
        None,
        row.line("supplier"),
    ), ""


def _bill_item(item: object, _view: str) -> Parsed:
    row = _table(item)
    return document.BillItem(
        row.need(row.line, "item"),
        row.line("material"),
        row.positive("quantity"),
        row.line("unit"),
        row.line("colour"),
        None,
        row.line("supplier"),
    ), ""


def _length(item: object, file_view: str) -> Parsed:
    row = _table(item)
    code, name, value = row.line("code"), row.need(row.line, "name"), row.positive("value")
    unit, tolerance, view = row.line("unit"), row.not_negative("tolerance"), _view(row, file_view)
    if value is None:
        return None
    if code is None:
        return document.Dimension(name, value, unit, tolerance), view
    start, end = row.table("start", _point), row.table("end", _point)
    return document.PointOfMeasure(
        code, name, value, unit, tolerance, view or None, "supplied", start, end
    ), view


def _feature(item: object, file_view: str) -> Parsed:
    row = _table(item)
    view = _view(row, file_view)
    x, y = row.fraction("x"), row.fraction("y")
    at = Point(x, y) if x is not None and y is not None else row.table("at", _point)
    return document.Feature(
        row.need(row.line, "name"), row.text("note"), at if view else None
    ), view


def _view(row: Table, file_view: str) -> str:
    """Returns the view that a row names, or that of the file: a model may name none that is
    known."""
    named = row.line("view")
    return named if named in VIEWS else file_view


def _point(row: Table) -> Point:
    return Point(row.need(row.fraction, "x"), row.need(row.fraction, "y"))


def _price(item: object, _view: str) -> Parsed:
    row = _table(item)
    amount = row.money("amount") or row.money("msrp")
    if amount is None:
        raise FactsError("amount", "is needed")
    return document.Price(amount, row.need(row.currency, "currency")), ""


def _code(item: object, _view: str) -> Parsed:
    row = _table(item)
    return f"{row.need(row.line, 'text')} ({row.line('format') or 'code'})", ""


def _share(item: object, _view: str) -> Parsed:
    row = _table(item)
    percent, part = row.positive("percent"), row.line("part")
    words = f"{percent:g} % " if percent else ""
    return f"{words}{row.need(row.line, 'material')}{f' ({part})' if part else ''}", ""


def _colour(item: object, _view: str) -> Parsed:
    row = _table(item)
    hex_, name, view = row.line("hex"), row.line("name"), row.line("view")
    if hex_ is not None and not re.fullmatch("#[0-9a-fA-F]{6}", hex_):
        raise FactsError("hex", "is not a colour such as #1b2229")
    words = " ".join(word for word in (name, hex_) if word)
    return f"{_need(words or None)}{f' ({view})' if view else ''}", ""


# Key of an analysis -> the key in print, how a value or an item is read, whether it is a list.
_Form = tuple[str, Callable[[object, str], Parsed], bool]
_FORMS: Mapping[str, _Form] = {
    **{
        key: (key, _one_line, False)
        for key in ("name", "model", "brand", "category", "subcategory", "condition")
    },
    **{key: (key, _one_text, False) for key in ("condition_details", "description")},
    "brands": ("brand", _one_line, True),
    "keywords": ("keywords", _one_line, True),
    "care": ("care", _one_line, True),
    "materials": ("materials", _material, True),
    "bill_of_materials": ("bill_of_materials", _bill_item, True),
    "dimensions": ("dimensions", _length, True),
    "measurements": ("dimensions", _length, True),
    "points_of_measure": ("dimensions", _length, True),
    "features": ("features", _feature, True),
    "call_outs": ("features", _feature, True),
    "price": ("price", _price, False),
    "size": ("size", _one_line, False),
    "origin": ("origin", _one_line, False),
    "ean": ("ean", _one_line, False),
    "codes": ("codes", _code, True),
    "composition": ("composition", _share, True),
    "colours": ("colours", _colour, True),
}
# What an analysis has beside its values; and what isn't meant for a factory.
_ENVELOPE = frozenset({"findings", "result", "confidence", "evidence", "recipe", "task", "images"})
_FOR_OTHERS = frozenset({"views", "image_quality", "title", "bullets", "slug", "scores"})

"""Puts what analyses say beside what the facts state, and gives each source a sign.

A stated value has no sign, unless a person confirmed it in a review. A value of another source has
one, such as `F3`, which the section on sources explains. Where two disagree both stand; one that
says nothing new is only listed with its source.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Generic, TypeVar, cast

from services.techfiles import document
from services.techfiles.document import SourceLine
from services.techfiles.findings import READ_COUNTS_FROM, SOURCES, Box, Finding, Origin, Row, Source
from shared.formats import figures
from shared.formats.fact_tables import LENGTH_UNITS

_SIGNS = {"supplied": "S", "confirmed": "C", "measured": "M", "read": "R", "found": "F"}
_WORDS = {
    "supplied": "supplied with a file",
    "confirmed": "confirmed",
    "measured": "measured in a picture",
    "read": "read in a picture",
    "found": "found by a model",
}
_KEYS = {
    "bill_of_materials": "bill of materials",
    "condition_details": "condition details",
    "origin": "country of origin",
    "ean": "EAN",
}
# What doesn't count when two rows are compared: where they are drawn and where they come from.
_NOT_COMPARED = frozenset({"start", "end", "at", "source", "mark", "picture", "colour_hex", "view"})
# A stated value of more characters is not repeated in the line of its source.
_MOST_REPEATED = 300

R = TypeVar("R", bound=Row)


@dataclass(frozen=True, slots=True)
class MerelyFound:
    """A value in print that nobody supplied or confirmed, and that wasn't measured or read."""

    key: str
    value: str
    model: str
    file: str


@dataclass(frozen=True, slots=True)
class Placed(Generic[R]):
    """A row with the view that it belongs to; "" for the whole product."""

    row: R
    view: str = ""


class Sourcing:
    """Merges findings into stated rows, key by key, and collects the lines of their sources.
    `fact_sources` are those of the stated values, by the fact's path."""

    def __init__(
        self, findings: Sequence[Finding], fact_sources: Mapping[str, Any] | None = None
    ) -> None:
        self._confirmed = {
            path.removeprefix("product."): source
            for path, source in (fact_sources or {}).items()
            if source.get("source") == "confirmed"
        }
        self._by_key: dict[str, list[Finding]] = {}
        for finding in sorted(findings, key=lambda each: SOURCES.index(each.origin.source)):
            self._by_key.setdefault(finding.key, []).append(finding)
        self._numbers = dict.fromkeys(_SIGNS.values(), 0)
        self.lines: list[SourceLine] = []
        self.merely_found: list[MerelyFound] = []

    def one(self, key: str, stated: str | None) -> document.Words:
        """Returns the values of a key that has one: the stated one, then those that differ."""
        values = self._texts(key, [stated] if stated else [], single=True)
        if not values:
            return None
        plain = len(values) == 1 and not values[0].mark
        return values[0].text if plain else document.Alternatives(values)

    def several(self, key: str, stated: Sequence[str] = ()) -> tuple[document.Marked, ...]:
        """Returns the items of a list, which can't disagree."""
        return self._texts(key, stated, single=False)

    def _texts(
        self, key: str, stated: Sequence[str], *, single: bool
    ) -> tuple[document.Marked, ...]:
        confirmed = self._list_stated(key, stated)
        standing = [document.Marked(each, confirmed) for each in stated]
        known = {_plain(each) for each in stated}
        for finding in self._by_key.get(key, ()):
            texts = {_plain(cast(str, row)): cast(str, row) for row, _ in finding.rows}
            added = [text for plain, text in texts.items() if plain not in known]
            sign = self._list(finding, added, conflict=single and bool(standing) and bool(added))
            if _counts(finding.origin):
                standing += [document.Marked(text, sign) for text in added]
                known |= texts.keys()
        return tuple(standing)

    def rows(
        self, key: str, stated: Sequence[Placed[R]], about: Callable[[Any], object]
    ) -> list[Placed[R]]:
        """Returns the stated rows and those that findings add, each after the rows about the same
        thing."""
        confirmed = self._list_stated(key, [_words(each.row) for each in stated])
        if confirmed:
            stated = [_confirmed(each, confirmed) for each in stated]
        standing = _Standing(stated, about)
        for finding in self._by_key.get(key, ()):
            placed = [Placed(cast(R, row), view) for row, view in finding.rows]
            added = [new for new in placed if not standing.says(new, finding.origin)]
            conflict = any(standing.differs(new) for new in added)
            sign = self._list(finding, [_words(each.row) for each in added], conflict=conflict)
            if _counts(finding.origin):
                for new in added:
                    standing.add(_signed(new, sign, finding.origin.source))
        return standing.rows()

    def _list_stated(self, key: str, stated: Sequence[str]) -> str:
        """Lists who confirmed what is stated under a key, and returns its sign; "" for none."""
        source = self._confirmed.get(key.replace(" ", "_"))
        if source is None or not stated:
            return ""
        sign = self._next_sign("confirmed")
        said = "; ".join(stated)
        if len(said) > _MOST_REPEATED:
            said = "as it is stated"
        where = f"phase {source['phase']:g} of the review" if "phase" in source else None
        self.lines.append(
            SourceLine(sign, _KEYS.get(key, key), said, _who_when(source), where, _shown(source))
        )
        return sign

    def _next_sign(self, source: Source) -> str:
        letter = _SIGNS[source]
        self._numbers[letter] += 1
        return f"{letter}{self._numbers[letter]}"

    def _list(self, finding: Finding, added: Sequence[str], *, conflict: bool) -> str:
        """Lists a finding and returns its sign, or "" if what it adds needs none. `added` is what
        no stated value and no surer finding says."""
        origin = finding.origin
        sign = self._next_sign(origin.source)
        key = _KEYS.get(finding.key, finding.key)
        said = "; ".join(added)
        if added and not _counts(origin):
            said = f"too unsure to be printed elsewhere: {said}"
        elif len(added) < len(finding.rows):
            said = f"{said}; the rest agrees" if said else "agrees"
        self.lines.append(
            SourceLine(sign, key, said, _by(origin), _where(origin), origin.note or None)
        )
        if origin.source == "found":
            self.merely_found += [MerelyFound(key, each, origin.by, origin.file) for each in added]
        return "" if origin.source == "supplied" and not conflict else sign


def _counts(origin: Origin) -> bool:
    return origin.source != "read" or (origin.confidence or 0) >= READ_COUNTS_FROM


class _Standing(Generic[R]):
    """The rows of one key, in groups: a stated row, and what was added about the same thing."""

    def __init__(self, stated: Sequence[Placed[R]], about: Callable[[Any], object]) -> None:
        self._about = about
        self._groups: list[list[Placed[R]]] = []
        self._of: dict[object, list[list[Placed[R]]]] = {}
        for each in stated:
            self._begin(each)

    def rows(self) -> list[Placed[R]]:
        return [each for group in self._groups for each in group]

    def says(self, new: Placed[R], origin: Origin) -> bool:
        """Returns whether a row already says all that `new` does."""
        return any(_says_all(each, new, origin) for group in self._like(new) for each in group)

    def differs(self, new: Placed[R]) -> bool:
        """Returns whether a row is about the same thing, which `new` says more or other of."""
        return any(
            each.view == new.view and not _is_empty(each.row)
            for group in self._like(new)
            for each in group
        )

    def add(self, new: Placed[R]) -> None:
        """Adds a row after those about the same thing, or last. It takes the place of a point of
        measure without a value."""
        groups = [group for group in self._like(new) if group[0].view == new.view]
        for group in groups:
            row: Any = group[0].row
            if _is_empty(row):
                group[0] = _filled(row, new)
                return
        if groups:
            groups[-1].append(new)
        else:
            self._begin(new)

    def _like(self, new: Placed[R]) -> Sequence[list[Placed[R]]]:
        return self._of.get(self._about(new.row), ())

    def _begin(self, row: Placed[R]) -> None:
        group = [row]
        self._groups.append(group)
        self._of.setdefault(self._about(row.row), []).append(group)


def _is_empty(row: object) -> bool:
    return isinstance(row, document.PointOfMeasure) and row.value is None


def _filled(row: document.PointOfMeasure, new: Placed[R]) -> Placed[R]:
    other: Any = new.row
    tolerance = row.tolerance if other.tolerance is None else other.tolerance
    start, end = row.start or other.start, row.end or other.end
    filled: Any = replace(other, tolerance=tolerance, start=start, end=end)
    return Placed(filled, new.view)


def _confirmed(placed: Placed[R], sign: str) -> Placed[R]:
    """Returns a stated row with the sign of who confirmed it. What was measured by a declared scale
    stays that."""
    stated = getattr(placed.row, "source", "supplied") == "supplied"
    return _signed(placed, sign, "confirmed") if stated else placed


def _signed(placed: Placed[R], sign: str, source: Source) -> Placed[R]:
    row: Any = placed.row
    changes: dict[str, Any] = {"mark": sign}
    if isinstance(row, document.Dimension | document.PointOfMeasure):
        changes["source"] = _WORDS[source]
    return replace(placed, row=replace(row, **changes))


def _says_all(standing: Placed[R], new: Placed[R], origin: Origin) -> bool:
    """Returns whether a row about the same thing already says all that a new one does."""
    a: Any = standing.row
    b: Any = new.row
    if standing.view and new.view and standing.view != new.view:
        return False
    if origin.source == "measured" and str(getattr(a, "source", "")).startswith("measured"):
        return True  # by the same scale, perhaps on a smaller copy of the picture
    names = [f.name for f in fields(b) if f.name not in _NOT_COMPARED]
    return all(
        _same(
            getattr(a, name), getattr(b, name), getattr(a, "unit", None), getattr(b, "unit", None)
        )
        for name in names
        if getattr(b, name) is not None and name != "unit"
    )


def _same(a: object, b: object, unit: str | None, other: str | None) -> bool:
    if isinstance(a, int | float) and isinstance(b, int | float):
        if unit != other:
            factors = LENGTH_UNITS.get(unit or ""), LENGTH_UNITS.get(other or "")
            if None in factors:
                return False
            a, b = a * cast(float, factors[0]), b * cast(float, factors[1])
        return math.isclose(a, b, rel_tol=1e-9)
    return isinstance(a, str) and isinstance(b, str) and _plain(a) == _plain(b)


def _plain(text: str | None) -> str:
    return " ".join((text or "").casefold().split())


def by_text(*names: str) -> Callable[[Any], object]:
    """Returns what a row is about: the words that it has under these names."""
    return lambda row: tuple(_plain(getattr(row, name)) for name in names)


def _words(row: Any) -> str:
    """Returns a row in one line."""
    if isinstance(row, document.Price):
        return f"{figures.money(row.amount, row.currency, grouped=False)} {row.currency}"
    named = getattr(row, "part", None) or getattr(row, "item", None) or getattr(row, "name", None)
    value = getattr(row, "material", None) or getattr(row, "note", None)
    if isinstance(row, document.Dimension | document.PointOfMeasure) and row.value is not None:
        value = f"{figures.number(row.value)} {row.unit or ''}".strip()
    return ": ".join(str(each) for each in (named, value) if each)


def _by(origin: Origin) -> str:
    words = _WORDS[origin.source]
    if origin.by:
        words = f"found by {origin.by}" if origin.source == "found" else f"{words} by {origin.by}"
    if origin.confidence is not None:
        words += f", {_percent(origin.confidence)}\u00a0sure"
    return words


def _who_when(source: Mapping[str, Any]) -> str:
    """Returns who confirmed or corrected a stated value, and when: to the minute, as the review has
    it."""
    did = "corrected" if source.get("corrected") else "confirmed"
    words = f"{did} by {source.get('by', '')}".removesuffix(" by ")
    if at := source.get("at"):
        words += f" on {at[:10]} {at[11:16]} UTC"
    return words


def _shown(source: Mapping[str, Any]) -> str | None:
    """Returns what the person decided about, and what was stated before."""
    words = []
    if model := source.get("model"):
        sure = source.get("confidence")
        percent = f", {_percent(sure)} sure" if sure is not None else ""
        words.append(f"asked about what {model} said{percent}")
    if earlier := source.get("instead_of"):
        before = earlier.get("value")
        short = isinstance(before, str) and len(before) <= _MOST_REPEATED
        words.append(f"instead of {before}" if short else "instead of what was stated before")
    return "; ".join(words) or None


def _percent(share: float) -> str:
    return f"{figures.number(round(100 * share, 1))}\u00a0%"


def _where(origin: Origin) -> str:
    words = [origin.file]
    if origin.picture:
        words.append(f"picture {origin.picture}")
    if origin.box:
        words.append(_place(origin.box))
    return ", ".join(words)


def _place(box: Box) -> str:
    x, y = round(100 * (box.left + box.width / 2)), round(100 * (box.top + box.height / 2))
    return f"{x}\u00a0% from the left, {y}\u00a0% from the top"

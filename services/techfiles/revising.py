"""What differs from the release before: the lines of a pack's page on it, and the marks of what
changed."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from atelier.techfiles.v1 import history_pb2 as pb

from services.techfiles import document
from services.techfiles.diffing import Changes, LengthChange, PlaceChange, RowChange, ValueChange
from services.techfiles.document import Alternatives, Marked, Pack, Revision
from services.techfiles.history_rows import KINDS
from services.techfiles.release_rows import Release
from services.techfiles.rules import slot_name
from services.techfiles.tech_file_rows import TYPES, VIEWS
from shared.formats import figures

_LISTS = {
    "materials": "Material",
    "dimensions": "Dimension",
    "points_of_measure": "Point of measure",
    "features": "Feature",
}
_FACTS = "facts."
_PRODUCT = "product."
_NOT_SAID = frozenset({"name", "part", "code", "view"})  # what a line says in its first column

_KINDS = {
    "added": "new",
    "removed": "gone",
    "changed": "changed",
    "rewritten": "written otherwise",
    "moved": "moved",
}
_MARK = "\u0394"
M = TypeVar(
    "M",
    document.Material,
    document.Dimension,
    document.Feature,
    document.PointOfMeasure,
    document.Price,
    document.Marked,
)


def printed(
    release: Release, previous: Release | None, *, draft: bool, revisions: tuple[Revision, ...]
) -> document.Release:
    """Returns a release in print. A draft's document says nothing of a later decision."""
    made = f"{release.created_by}, {_when(release.created_at)}"
    approved = f"{release.decided_by}, {_when(release.decided_at)}"
    source = release.source_product_id
    return document.Release(
        title="Draft" if draft else release.title,
        name=release.name,
        draft=draft,
        made=made,
        note=release.note or None,
        approved=None if draft else approved,
        decision=None if draft else release.decision_note or None,
        rests_on=f"pipeline/products/{source}" if source else None,
        facts=f"version {release.facts_number} of the collection's facts",
        merely_found=_merely_found(release),
        since=f"{previous.title}: {previous.name}" if previous else None,
        revisions=revisions,
    )


def _when(at: datetime | None) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if at else ""


def _merely_found(release: Release) -> str:
    if not release.merely_found_count:
        return "nothing is merely found by a model"
    many = "s" if release.merely_found_count > 1 else ""
    return f"{release.merely_found_count} value{many} that only a model says; see Sources"


def lines(changes: Changes, slots: Sequence[pb.SlotChange]) -> tuple[Revision, ...]:
    """Returns a line for each thing that differs: in the facts, then slot by slot."""
    return (
        *map(_material, changes.materials),
        *map(_length, changes.lengths),
        *map(_place, changes.places),
        *map(_value, changes.values),
        *map(_slot, slots),
    )


def _material(change: RowChange) -> Revision:
    return _row(change, None)


def _length(change: LengthChange) -> Revision:
    difference = change.not_comparable or None
    if change.kind == "rewritten":
        difference = "the same length, written otherwise"
    elif change.delta:
        sign = "+" if change.delta > 0 else "\u2212"
        amount = f"{figures.number(abs(change.delta))}\u00a0{change.unit}".rstrip()
        difference = f"{sign}{amount}"
    return _row(change, difference if change.kind in ("changed", "rewritten") else None)


def _place(change: PlaceChange) -> Revision:
    if change.moved is None:
        return _row(change, None)
    right, down = (round(100 * share, 1) for share in change.moved)
    words = [
        f"{figures.number(abs(far))}\u00a0% {way[far < 0]}"
        for far, way in ((right, ("right", "left")), (down, ("down", "up")))
        if far
    ]
    return _row(change, f"moved {', '.join(words)}" if words else None)


def _row(change: RowChange, difference: str | None) -> Revision:
    about = f"{_LISTS.get(change.list, change.list)}: {change.name or 'without a name'}"
    code = (change.after or change.before or {}).get("code")
    if code:
        about += f" ({code})"
    if change.view:
        about += f", {change.view}"
    fields = change.fields if change.kind in ("changed", "rewritten") else ()
    if change.kind == "moved":
        return Revision(about, _KINDS[change.kind], difference=difference)
    return Revision(
        about,
        _KINDS[change.kind],
        _row_words(change.before, fields),
        _row_words(change.after, fields),
        difference,
    )


def _row_words(row: Mapping[str, Any] | None, fields: Sequence[str]) -> str | None:
    """Returns what a row says: in these fields, or in all of them. A value and its unit are said
    together."""
    if row is None:
        return None
    together = {"value", "unit"}
    said = dict(row) if not fields else {name: row.get(name) for name in fields}
    words = []
    if together & said.keys() and row.get("value") is not None:
        words.append(f"{_words(row['value'])} {row.get('unit') or ''}".strip())
    for name, value in said.items():
        if name in together or value is None or (not fields and name in _NOT_SAID):
            continue
        plain = name in ("material", "note")
        words.append(_words(value) if plain else f"{name.replace('_', ' ')}: {_words(value)}")
    return "; ".join(words) or None


def _value(change: ValueChange) -> Revision:
    name = change.path.removeprefix(_FACTS).removeprefix(_PRODUCT)
    about = name.replace("_", " ").replace(".", ", ").capitalize()
    words = _amount if name == "price.msrp" else _words
    before, after = (
        None if value is None else words(value) for value in (change.before, change.after)
    )
    return Revision(about, _KINDS[change.kind], before, after)


def _amount(value: Any) -> str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return figures.money(value, "", grouped=False) if number else _words(value)


def _words(value: Any) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case int() | float():
            return figures.number(value)
        case list():
            return "; ".join(map(_words, value))
        case dict():
            return ", ".join(f"{name.replace('_', ' ')}: {_words(v)}" for name, v in value.items())
        case None:
            return "nothing"
    return str(value)


def _slot(slot: pb.SlotChange) -> Revision:
    named = [TYPES.word[slot.file_type].replace("_", " ").capitalize()]
    named += [VIEWS.word[slot.view_type]] if slot.view_type in VIEWS.word else []
    named += [slot.file_category] if slot.file_category else []
    found = []
    if slot.picture_changed:
        found.append("another picture")
    if slot.change_count:
        many = "s" if slot.change_count > 1 else ""
        found.append(f"{slot.change_count} change{many} in what is said of it")
    return Revision(
        ": ".join(named), _KINDS[KINDS.word[slot.kind]], difference="; ".join(found) or None
    )


def marked(pack: Pack, changes: Changes) -> Pack:
    """Returns the pack with a mark at what the facts say anew or otherwise."""
    materials = {slot_name(each.name) for each in changes.materials if each.after}
    lengths = {
        _length_key(_text(each.after, "code"), each.view, each.name)
        for each in changes.lengths
        if each.after
    }
    places = {(each.view, slot_name(each.name)) for each in changes.places if each.after}
    paths = {each.path.removeprefix(_FACTS) for each in changes.values if each.after is not None}

    def of_materials(rows: Iterable[document.Material]) -> tuple[document.Material, ...]:
        return tuple(_marked(row, slot_name(row.part or "") in materials) for row in rows)

    views = tuple(
        replace(
            view,
            dimensions=tuple(
                _marked(row, _length_key(row.code, view.view, row.name) in lengths)
                for row in view.dimensions
            ),
            materials=of_materials(view.materials),
            features=tuple(
                _marked(row, (view.view, slot_name(row.name or "")) in places)
                for row in view.features
            ),
        )
        for view in pack.views
    )
    priced = any(path.startswith("price") for path in paths)
    return replace(
        pack,
        product=_marked_product(pack.product, paths),
        care=_marked_items(pack.care, changes.values),
        views=views,
        materials=of_materials(pack.materials),
        points_of_measure=tuple(
            _marked(row, _length_key(row.code, row.view or "", row.name) in lengths)
            for row in pack.points_of_measure
        ),
        price=_marked(pack.price, priced) if pack.price else None,
    )


def _text(row: Mapping[str, Any] | None, name: str) -> str:
    value = (row or {}).get(name)
    return value if isinstance(value, str) else ""


def _length_key(code: str | None, view: str, name: str | None) -> tuple[str, ...]:
    return ("code", slot_name(code)) if code else (view, slot_name(name or ""))


def _marked(row: M, changed: bool) -> M:
    return replace(row, mark=f"{row.mark} {_MARK}".strip()) if changed else row


def _marked_items(
    items: tuple[str | Marked, ...], changes: Iterable[ValueChange]
) -> tuple[str | Marked, ...]:
    """Returns the instructions for care with a mark at those that are new."""
    change = next((each for each in changes if each.path == f"{_FACTS}care"), None)
    if change is None:
        return items
    before = change.before or []
    marked = (item if isinstance(item, Marked) else Marked(item) for item in items)
    return tuple(_marked(item, item.text not in before) for item in marked)


def _marked_product(product: document.Product, paths: Collection[str]) -> document.Product:
    marked: dict[str, Any] = {}
    for path in paths:
        name = path.removeprefix(_PRODUCT)
        value = getattr(product, name, None) if path.startswith(_PRODUCT) else None
        if isinstance(value, str):
            marked[name] = Alternatives((Marked(value, _MARK),))
        elif isinstance(value, Alternatives):
            first, *others = value.values
            marked[name] = Alternatives((_marked(first, True), *others))
    return replace(product, **marked)

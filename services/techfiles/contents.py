"""Builds the contents of a tech pack from stated facts and the files of a collection.

Every value comes from the facts, is computed here between two stated points by a declared scale, or
stands in a file's analysis; then it has the sign of its source, because a model may be wrong and
the reader must know who speaks. So has a fact that a person confirmed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any, TypeVar

from atelier.assets.v1 import asset_pb2

from services.techfiles import document, findings, rules
from services.techfiles.collection_rows import Collection
from services.techfiles.document import Point
from services.techfiles.findings import label
from services.techfiles.sourcing import MerelyFound, Placed, Sourcing, by_text
from services.techfiles.tech_file_rows import TechFile
from shared.formats import facts as stated
from shared.formats.facts import Facts
from shared.formats.lengths import by_scale

_WHOLE = "whole product"
# Facts that are stated once are printed again with each picture if they have at most so many
# characters; longer ones are printed in one place, to which the others refer.
_MOST_REPEATED = 3_000
_KINDS = ("category", "base_view", "sketch", "closeup")
# What analyses say beyond the facts, by its key.
_DETAILS = {
    "size": "Size",
    "composition": "Composition",
    "origin": "Country of origin",
    "ean": "EAN",
    "codes": "Codes",
    "colours": "Colours",
}

Assets = Mapping[str, asset_pb2.Asset]
R = TypeVar("R", bound=findings.Row)


@dataclass(frozen=True, slots=True)
class Contents:
    """A pack, what of it is merely found by a model, and what of the analyses isn't printed."""

    pack: document.Pack
    merely_found: tuple[MerelyFound, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Known:
    """The rows of the facts and what analyses add to them."""

    product: document.Product
    materials: tuple[document.Material, ...]
    bill_of_materials: tuple[document.BillItem, ...]
    dimensions: tuple[Placed[document.Dimension], ...]
    points_of_measure: tuple[document.PointOfMeasure, ...]
    features: tuple[Placed[document.Feature], ...]
    prices: tuple[document.Price, ...]
    care: tuple[document.Marked, ...]
    details: tuple[document.Detail, ...]


def pack_of(
    collection: Collection,
    files: Sequence[TechFile],
    facts: Facts,
    assets: Assets,
    as_of: datetime,
    version: str | None,
    fact_sources: Mapping[str, Any] | None = None,
) -> Contents:
    """Returns the contents. `files` are the collection's, in order. A picture's key in the pack is
    its asset's id; `assets` has the assets that exist. `fact_sources` are those of `facts`."""
    by_type = {kind: [file for file in files if file.file_type == kind] for kind in _KINDS}
    covers = (*by_type["category"], *by_type["base_view"])
    cover = next((picture for file in covers if (picture := _picture(file, assets))), None)
    reading = findings.Reading()
    reading.add(files)
    sourcing = Sourcing(reading.taken, fact_sources)
    known = _known(facts, _sizes(by_type["base_view"], assets), sourcing)
    pack = document.Pack(
        title=collection.name,
        created_at=as_of,
        product=known.product,
        collection=collection.name,
        version=version,
        owner=collection.owner,
        cover=cover,
        views=_views(by_type["base_view"], known, assets),
        sketches=_sketches(by_type["sketch"], known, assets),
        closeups=_closeups(by_type["closeup"], facts, assets),
        materials=known.materials,
        bill_of_materials=known.bill_of_materials,
        points_of_measure=known.points_of_measure,
        price=known.prices[0] if known.prices else None,
        other_prices=known.prices[1:],
        care=known.care,
        details=known.details,
        sources=tuple(sourcing.lines),
        credits=_credits(files),
        provenance=_provenances(files, assets),
    )
    return Contents(pack, tuple(sourcing.merely_found), tuple(reading.warnings()))


def as_of(collection: Collection, files: Sequence[TechFile]) -> datetime:
    """Returns the time of the last change of what a pack shows, so that two exports of the same
    content have the same date, and the same bytes."""
    return max(collection.updated_at, *(file.updated_at for file in files), collection.created_at)


def merely_found(said: Sequence[findings.Finding], facts: Facts) -> list[MerelyFound]:
    """Returns what a pack with these findings would print that only a model says: nobody supplied
    or confirmed the same, and nothing measured or read says it."""
    sourcing = Sourcing(said)
    _known(facts, {}, sourcing)
    return sourcing.merely_found


def _known(facts: Facts, sizes: Mapping[str, tuple[int, int]], sourcing: Sourcing) -> _Known:
    points = [
        Placed(_point_of_measure(p, facts, sizes), p.view or "") for p in facts.points_of_measure
    ]
    price = facts.price and document.Price(facts.price.msrp, facts.price.currency)
    details = ((label, sourcing.several(key)) for key, label in _DETAILS.items())
    return _Known(
        product=_product(facts, sourcing),
        materials=_rows(sourcing.rows("materials", _materials(facts), by_text("part"))),
        bill_of_materials=_rows(
            sourcing.rows("bill_of_materials", _bill_of_materials(facts), by_text("item"))
        ),
        dimensions=tuple(
            sourcing.rows(
                "dimensions",
                [
                    Placed(document.Dimension(d.name, d.value, d.unit), d.view or "")
                    for d in facts.dimensions
                ],
                by_text("name"),
            )
        ),
        points_of_measure=_rows(sourcing.rows("points of measure", points, by_text("code"))),
        features=tuple(
            sourcing.rows(
                "features",
                [
                    Placed(document.Feature(f.name, f.note, _point(f.at)), f.view or "")
                    for f in facts.features
                ],
                by_text("name"),
            )
        ),
        prices=_rows(sourcing.rows("price", [Placed(price)] if price else [], by_text())),
        care=sourcing.several("care", facts.care),
        details=tuple(document.Detail(label, values) for label, values in details if values),
    )


def _rows(placed: Sequence[Placed[R]]) -> tuple[R, ...]:
    return tuple(each.row for each in placed)


def _sizes(base_views: Sequence[TechFile], assets: Assets) -> dict[str, tuple[int, int]]:
    """Returns width and height of the picture of each view that has one."""
    return {
        file.view_type: (assets[picture].width, assets[picture].height)
        for file in base_views
        if (picture := _picture(file, assets))
    }


def pictures_of(files: Sequence[TechFile]) -> list[str]:
    """Returns the ids of the assets that a pack of these files shows, each once."""
    return list(dict.fromkeys(str(file.file_asset_id) for file in files if file.file_asset_id))


def _picture(file: TechFile, assets: Assets) -> str | None:
    key = str(file.file_asset_id)
    return key if key in assets and assets[key].mime_type.startswith("image/") else None


def _product(facts: Facts, sourcing: Sourcing) -> document.Product:
    p = facts.product
    return document.Product(
        sourcing.one("name", p.name),
        sourcing.one("model", p.model),
        sourcing.one("brand", p.brand),
        sourcing.one("category", p.category),
        sourcing.one("subcategory", p.subcategory),
        sourcing.one("condition", p.condition),
        sourcing.one("condition_details", p.condition_details),
        sourcing.one("description", p.description),
        sourcing.several("keywords", p.keywords),
    )


def _materials(facts: Facts) -> list[Placed[document.Material]]:
    return [
        Placed(document.Material(m.part, m.material, m.weight, m.colour, None, m.supplier))
        for m in facts.materials
    ]


def _bill_of_materials(facts: Facts) -> list[Placed[document.BillItem]]:
    return [
        Placed(
            document.BillItem(i.item, i.material, i.quantity, i.unit, i.colour, None, i.supplier)
        )
        for i in facts.bill_of_materials
    ]


def _credits(files: Sequence[TechFile]) -> tuple[document.CreditLine, ...]:
    return tuple(
        document.CreditLine(label(file), file.model or None, file.credits_used)
        for file in files
        if file.credits_used
    )


def _views(
    base_views: Sequence[TechFile], known: _Known, assets: Assets
) -> tuple[document.View, ...]:
    """Returns the views that have a picture, then those that something is said about. What is said
    about the whole product is printed with the first."""
    pictures = {file.view_type: _picture(file, assets) for file in base_views}
    rows: list[Placed[document.Dimension] | Placed[document.Feature]] = [
        *known.dimensions,
        *known.features,
    ]
    materials = known.materials
    repeated = len(materials) and _length(materials) <= _MOST_REPEATED
    names = list(dict.fromkeys([*pictures, *(row.view for row in rows if row.view)]))
    if not names and rows:
        names = [_WHOLE]
    return tuple(
        document.View(
            name,
            pictures.get(name),
            tuple(d.row for d in known.dimensions if (d.view or names[0]) == name),
            materials if repeated else (),
            tuple(f.row for f in known.features if (f.view or names[0]) == name),
            None if repeated or not materials else "Materials",
        )
        for name in names
    )


def _length(
    rows: Sequence[document.Material | document.Callout | document.Dimension],
) -> int:
    """Returns the number of characters in all texts of these rows."""
    values: Iterator[object] = (getattr(row, field.name) for row in rows for field in fields(row))
    return sum(len(value) for value in values if isinstance(value, str))


def _closeups(
    files: Sequence[TechFile], facts: Facts, assets: Assets
) -> tuple[document.Closeup, ...]:
    """Returns the close-ups by their full names: a file keeps the beginning of a name, the facts
    have all of it."""
    names = {rules.shot_of(closeup.name): closeup.name for closeup in facts.closeups}
    return tuple(
        document.Closeup(
            names.get(file.file_category, file.file_category),
            file.view_type or None,
            _picture(file, assets),
        )
        for file in files
    )


def _sketches(
    files: Sequence[TechFile], known: _Known, assets: Assets
) -> tuple[document.Sketch, ...]:
    made: list[document.Sketch] = []
    for file in files:
        sketch = _sketch(file, known, assets)
        again = any(other.view == sketch.view for other in made)
        if again and _length([*sketch.callouts, *sketch.measurements]) > _MOST_REPEATED:
            sketch = document.Sketch(
                sketch.view, sketch.picture, described_in=f"the first sketch of the {sketch.view}"
            )
        made.append(sketch)
    return tuple(made)


def _sketch(file: TechFile, known: _Known, assets: Assets) -> document.Sketch:
    """Returns a sketch. Its drawing keeps the frame of the photograph that it was made from, so
    that a place in one is the same place in the other."""
    features = [each.row for each in known.features if each.view == file.view_type]
    points = [p for p in known.points_of_measure if p.view == file.view_type]
    whole = sum(len(feature.note or "") for feature in features) <= _MOST_REPEATED
    return document.Sketch(
        file.view_type,
        _picture(file, assets),
        tuple(
            document.Callout(
                number,
                f.at.x if f.at else None,
                f.at.y if f.at else None,
                f.name,
                f.note if whole or not f.note else f"see Base views: {file.view_type}",
                f.mark,
            )
            for number, f in enumerate(features, 1)
        ),
        tuple(
            document.Dimension(
                p.name, p.value, p.unit, p.tolerance, p.source, p.start, p.end, p.code, p.mark
            )
            for p in points
        ),
    )


def _point_of_measure(
    point: stated.PointOfMeasure, facts: Facts, sizes: Mapping[str, tuple[int, int]]
) -> document.PointOfMeasure:
    """Returns the point as stated. Without a value it is measured, if its points and a scale of the
    same view are declared and the view's picture exists."""
    value, unit = point.value, point.unit
    source: document.Source = "supplied"
    if value is None:
        scale = next((each for each in facts.scales if each.view == point.view), None)
        value = by_scale(point, scale, sizes.get(point.view or ""))
        source = "measured from declared scale"
        unit = unit or (scale.unit if scale else None)
    return document.PointOfMeasure(
        point.code,
        point.name,
        value,
        unit,
        point.tolerance,
        point.view,
        source,
        _point(point.start),
        _point(point.end),
    )


def _point(point: stated.Point | None) -> Point | None:
    return Point(point.x, point.y) if point else None


def _provenances(files: Sequence[TechFile], assets: Assets) -> tuple[document.Provenance, ...]:
    return tuple(
        _provenance(label(file), assets[picture])
        for file in files
        if (picture := _picture(file, assets))
    )


def _provenance(label: str, asset: asset_pb2.Asset) -> document.Provenance:
    if asset.HasField("provenance"):
        made = asset.provenance
        origin = f"made by the model {made.model} {made.model_version}".rstrip()
        if made.source_asset_ids:
            origin += f" from asset {', '.join(made.source_asset_ids)}"
    else:
        origin = "uploaded by the owner"
    return document.Provenance(
        label, asset.id, asset.sha256, origin, asset.create_time.ToDatetime(tzinfo=UTC)
    )

"""Builds the contents of a tech pack from stated facts and the files of a collection.

Every figure comes from the facts, or is computed here between two stated points by a declared
scale. What a model found (a file's analysis) is never printed: a provider may make things up, and
the document must not.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime

from atelier.assets.v1 import asset_pb2

from services.techfiles import document, rules
from services.techfiles.collection_rows import Collection
from services.techfiles.document import Point
from services.techfiles.tech_file_rows import TechFile
from shared.formats import facts as stated
from shared.formats.facts import Facts
from shared.formats.lengths import by_scale

_WHOLE = "whole product"
# Facts that are stated once are printed again with each picture if they have at most so many
# characters; longer ones are printed in one place, to which the others refer.
_MOST_REPEATED = 3_000
_STEPS = {
    "category": "Category",
    "base_view": "Base view",
    "sketch": "Sketch",
    "closeup": "Close-up",
}

Assets = Mapping[str, asset_pb2.Asset]


def pack_of(
    collection: Collection,
    files: Sequence[TechFile],
    facts: Facts,
    assets: Assets,
    created_at: datetime,
    version: str | None,
) -> document.Pack:
    """Returns the pack. `files` are the collection's, in order. A picture's key in the pack is its
    asset's id; `assets` has the assets that exist."""
    by_type = {kind: [file for file in files if file.file_type == kind] for kind in _STEPS}
    sizes = _sizes(by_type["base_view"], assets)
    covers = [
        picture
        for file in (*by_type["category"], *by_type["base_view"])
        if (picture := _picture(file, assets))
    ]
    return document.Pack(
        title=collection.name,
        created_at=created_at,
        product=_product(facts),
        collection=collection.name,
        version=version,
        owner=collection.owner,
        cover=covers[0] if covers else None,
        views=_views(by_type["base_view"], facts, assets),
        sketches=_sketches(by_type["sketch"], facts, sizes, assets),
        closeups=_closeups(by_type["closeup"], facts, assets),
        materials=_materials(facts),
        bill_of_materials=_bill_of_materials(facts),
        points_of_measure=tuple(
            _point_of_measure(p, facts, sizes) for p in facts.points_of_measure
        ),
        price=document.Price(facts.price.msrp, facts.price.currency) if facts.price else None,
        care=facts.care,
        credits=_credits(files),
        provenance=_provenances(files, assets),
    )


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


def _label(file: TechFile) -> str:
    named = file.file_category or file.view_type
    return (
        f"{_STEPS.get(file.file_type, file.file_type)}: {named}"
        if named
        else _STEPS.get(file.file_type, "")
    )


def _product(facts: Facts) -> document.Product:
    p = facts.product
    return document.Product(
        p.name,
        p.model,
        p.brand,
        p.category,
        p.subcategory,
        p.condition,
        p.condition_details,
        p.description,
        p.keywords,
    )


def _materials(facts: Facts) -> tuple[document.Material, ...]:
    return tuple(
        document.Material(m.part, m.material, m.weight, m.colour, None, m.supplier)
        for m in facts.materials
    )


def _bill_of_materials(facts: Facts) -> tuple[document.BillItem, ...]:
    return tuple(
        document.BillItem(i.item, i.material, i.quantity, i.unit, i.colour, None, i.supplier)
        for i in facts.bill_of_materials
    )


def _credits(files: Sequence[TechFile]) -> tuple[document.CreditLine, ...]:
    return tuple(
        document.CreditLine(_label(file), file.model or None, file.credits_used)
        for file in files
        if file.credits_used
    )


def _views(
    base_views: Sequence[TechFile], facts: Facts, assets: Assets
) -> tuple[document.View, ...]:
    """Returns the views that have a picture, then those that something is stated about. What is
    stated about the whole product is printed with the first."""
    pictures = {file.view_type: _picture(file, assets) for file in base_views}
    rows: list[stated.Dimension | stated.Feature] = [*facts.dimensions, *facts.features]
    materials = _materials(facts)
    repeated = len(materials) and _length(facts.materials) <= _MOST_REPEATED
    names = list(dict.fromkeys([*pictures, *(row.view for row in rows if row.view)]))
    if not names and rows:
        names = [_WHOLE]
    return tuple(
        document.View(
            name,
            pictures.get(name),
            tuple(
                document.Dimension(d.name, d.value, d.unit)
                for d in facts.dimensions
                if _belongs(d, name, names)
            ),
            materials if repeated else (),
            tuple(
                document.Feature(f.name, f.note, _point(f.at))
                for f in facts.features
                if _belongs(f, name, names)
            ),
            None if repeated or not materials else "Materials",
        )
        for name in names
    )


def _belongs(row: stated.Dimension | stated.Feature, view: str, views: Sequence[str]) -> bool:
    return (row.view or views[0]) == view


def _length(
    rows: Sequence[stated.Material | document.Callout | document.Dimension],
) -> int:
    """Returns the number of characters in all texts of these facts."""
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
    files: Sequence[TechFile], facts: Facts, sizes: Mapping[str, tuple[int, int]], assets: Assets
) -> tuple[document.Sketch, ...]:
    made: list[document.Sketch] = []
    for file in files:
        sketch = _sketch(file, facts, sizes, assets)
        again = any(other.view == sketch.view for other in made)
        if again and _length([*sketch.callouts, *sketch.measurements]) > _MOST_REPEATED:
            sketch = document.Sketch(
                sketch.view, sketch.picture, described_in=f"the first sketch of the {sketch.view}"
            )
        made.append(sketch)
    return tuple(made)


def _sketch(
    file: TechFile, facts: Facts, sizes: Mapping[str, tuple[int, int]], assets: Assets
) -> document.Sketch:
    """Returns a sketch. Its drawing keeps the frame of the photograph that it was made from, so
    that a place in one is the same place in the other."""
    features = [feature for feature in facts.features if feature.view == file.view_type]
    points = [p for p in facts.points_of_measure if p.view == file.view_type]
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
                f.note if whole or not f.note else f"see Base views: {f.view}",
            )
            for number, f in enumerate(features, 1)
        ),
        tuple(
            document.Dimension(
                p.name, p.value, p.unit, p.tolerance, p.source, p.start, p.end, p.code
            )
            for p in (_point_of_measure(p, facts, sizes) for p in points)
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
        _provenance(_label(file), assets[picture])
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

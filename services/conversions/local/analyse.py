"""Runs named analyses: takes measured photographs and facts, returns structured facts with a
confidence and its evidence.

A result holds what the caller stated, what was measured in the pictures, and what follows from a
declared scale. Any other value is None, which is shown as "not supplied". The evidence has the
weights in _WEIGHTS: how well the pictures can be read, and how much of what the task wants was
stated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.conversions.local import colours, copywriting, lengths, quality
from services.conversions.local.evidence import Evidence
from services.conversions.local.quality import Quality
from shared.formats.facts import Facts, Feature

_WEIGHTS = {
    "product_analysis": (0.25, 0.10, 0.05, 0.15, 0.45),
    "base_view": (0.25, 0.10, 0.05, 0.15, 0.45),
    "category": (0.15, 0.05, 0.05, 0.15, 0.60),
    "sketch": (0.25, 0.05, 0.05, 0.25, 0.40),
    "seo": (0.10, 0.05, 0.05, 0.05, 0.75),
    "listing": (0.10, 0.05, 0.05, 0.05, 0.75),
}
"""By task: the weights of sharpness, exposure, resolution, separation and completeness; each row
adds up to 1."""

TASKS = tuple(_WEIGHTS)


@dataclass(frozen=True)
class Analysis:
    """result: plain values, ready for JSON; its keys depend on the task. needs: what the task wants
    to know, and whether it was stated. evidence: for a confidence; `completeness` is among it."""

    result: dict[str, Any]
    needs: dict[str, bool]
    evidence: tuple[Evidence, ...]


def analyse(task: str, pictures: Sequence[Quality], facts: Facts) -> Analysis:
    """Runs one of TASKS on measured pictures, and touches no pixel. Raises ValueError for another
    task.

    There may be no picture at all: every measure of the pictures then counts as 0.
    """
    if task not in _WEIGHTS:
        raise ValueError(f"task: {task!r} is not one of {', '.join(TASKS)}")
    *picture_weights, completeness_weight = _WEIGHTS[task]
    views = {picture.view for picture in pictures}
    needs = _wanted(task, facts, views)
    evidence = (
        *quality.evidence(pictures, picture_weights),
        _completeness(needs, completeness_weight),
    )
    return Analysis(_result(task, pictures, facts), needs, evidence)


def _product_analysis(pictures: Sequence[Quality], facts: Facts) -> dict[str, Any]:
    product = facts.product
    return {
        "name": product.name,
        "model": product.model,
        "condition": product.condition,
        "condition_details": product.condition_details,
        "categories": [kind for kind in (product.category, product.subcategory) if kind] or None,
        "brands": [product.brand] if product.brand else None,
        "colours": _colours(pictures),
        "image_quality": _image_quality(pictures),
    }


def _base_view(pictures: Sequence[Quality], facts: Facts) -> dict[str, Any]:
    materials = [
        {
            "part": m.part,
            "material": m.material,
            "weight": m.weight,
            "colour": m.colour,
            "supplier": m.supplier,
            "source": lengths.SUPPLIED,
        }
        for m in facts.materials
    ]
    return {
        "views": [picture.view for picture in pictures],
        "materials": materials or None,
        "dimensions": lengths.of_views(facts, _sizes(pictures)) or None,
        "features": [_place(feature) for feature in _features(facts, _views(pictures))] or None,
        "colours": _colours(pictures),
        "image_quality": _image_quality(pictures),
    }


def _sketch(pictures: Sequence[Quality], facts: Facts) -> dict[str, Any]:
    features = _features(facts, _views(pictures))
    call_outs = [
        {"number": number, **_place(feature)} for number, feature in enumerate(features, start=1)
    ]
    return {
        "views": [picture.view for picture in pictures],
        "call_outs": call_outs or None,
        "measurements": lengths.of_views(facts, _sizes(pictures)) or None,
    }


def _result(task: str, pictures: Sequence[Quality], facts: Facts) -> dict[str, Any]:
    match task:
        case "product_analysis":
            return _product_analysis(pictures, facts)
        case "base_view":
            return _base_view(pictures, facts)
        case "sketch":
            return _sketch(pictures, facts)
        case "seo":
            return copywriting.seo(facts)
        case "listing":
            return copywriting.listing(facts)
        case _:
            return {"category": facts.product.category, "subcategory": facts.product.subcategory}


def _wanted(task: str, facts: Facts, views: set[str]) -> dict[str, bool]:
    """Returns the facts that a task needs, and whether each was stated."""
    product = facts.product
    known = {
        "name": product.name,
        "model": product.model,
        "brand": product.brand,
        "category": product.category,
        "subcategory": product.subcategory,
        "condition": product.condition,
        "materials": facts.materials,
        "features": _features(facts, views),
        "dimensions": [
            view
            for view in (
                *(d.view for d in facts.dimensions),
                *(p.view for p in facts.points_of_measure),
            )
            if view is None or view in views
        ],
        "places of features": [feature for feature in _features(facts, views) if feature.at],
        "keywords": product.keywords,
        "description": product.description,
        "price": facts.price or facts.market,
    }
    needs = {
        "product_analysis": ("name", "model", "brand", "category", "condition"),
        "base_view": ("materials", "dimensions", "features"),
        "category": ("category", "subcategory"),
        "sketch": ("places of features", "dimensions"),
        "seo": ("name", "brand", "category", "keywords", "description", "materials"),
        "listing": ("name", "brand", "category", "description", "materials", "price"),
    }
    return {need: bool(known[need]) for need in needs[task]}


def _completeness(wanted: dict[str, bool], weight: float) -> Evidence:
    missing = [name for name, there in wanted.items() if not there]
    note = (
        f"not supplied: {', '.join(missing)}" if missing else f"all supplied: {', '.join(wanted)}"
    )
    return Evidence("completeness", round(sum(wanted.values()) / len(wanted), 3), weight, note)


def _views(pictures: Sequence[Quality]) -> set[str]:
    return {picture.view for picture in pictures}


def _sizes(pictures: Sequence[Quality]) -> dict[str, tuple[int, int]]:
    return {picture.view: (picture.width, picture.height) for picture in pictures}


def _features(facts: Facts, views: set[str]) -> list[Feature]:
    return [feature for feature in facts.features if feature.view is None or feature.view in views]


def _place(feature: Feature) -> dict[str, Any]:
    at = feature.at
    return {
        "view": feature.view,
        "name": feature.name,
        "note": feature.note,
        "x": at.x if at else None,
        "y": at.y if at else None,
        "source": lengths.SUPPLIED,
    }


def _colours(pictures: Sequence[Quality]) -> list[dict[str, Any]] | None:
    measured = [
        {
            "view": picture.view,
            "hex": colour.hex,
            "name": colours.name(colours.rgb(colour.hex)),
            "share": colour.share,
            "source": "measured",
        }
        for picture in pictures
        for colour in picture.colours
        if colour.share >= 0.04
    ]
    return measured or None


def _image_quality(pictures: Sequence[Quality]) -> dict[str, Any] | None:
    if not pictures:
        return None
    each = [
        {
            "view": p.view,
            "width": p.width,
            "height": p.height,
            "score": p.score,
            **{name: getattr(p, name) for name in quality.MEASURES},
        }
        for p in pictures
    ]
    return {"score": round(sum(p.score for p in pictures) / len(pictures), 3), "pictures": each}

"""Facts that a caller states about a product, parsed strictly.

The facts are the only source of names, materials, dimensions, prices and brands in print, so a
misspelt key must be an error and never a silently missing fact.

    facts = load_facts(Path("facts.yaml").read_text())      # YAML, for people
    facts = parse_facts({"product": {"name": "Harbour"}})   # plain values, for a request

Every field is optional; None or an empty tuple means "not supplied". Points are fractions (0..1) of
a picture's width and height after its orientation is applied, origin top left. Errors name the
field: `scales[0].from.x: ...`.
"""

import math
from dataclasses import dataclass

from shared.formats import yaml as plain_yaml
from shared.formats.fact_tables import FactsError, Table


@dataclass(frozen=True)
class Point:
    """A point in a picture, as fractions of its width and height."""

    x: float
    y: float


@dataclass(frozen=True)
class Product:
    name: str | None = None
    model: str | None = None
    brand: str | None = None
    category: str | None = None
    subcategory: str | None = None
    condition: str | None = None
    condition_details: str | None = None
    description: str | None = None
    keywords: tuple[str, ...] = ()


@dataclass(frozen=True)
class Material:
    part: str
    material: str
    weight: str | None = None
    colour: str | None = None
    supplier: str | None = None


@dataclass(frozen=True)
class Dimension:
    name: str
    value: float
    unit: str
    view: str | None = None


@dataclass(frozen=True)
class PointOfMeasure:
    """A measurement that a factory checks. It has a value, or two points between which it can be
    measured, or both."""

    code: str
    name: str
    value: float | None = None
    unit: str | None = None
    tolerance: float | None = None
    view: str | None = None
    start: Point | None = None
    end: Point | None = None


@dataclass(frozen=True)
class Scale:
    """A known length in one view's picture, from which other lengths in it are computed."""

    view: str
    value: float
    unit: str
    start: Point
    end: Point


@dataclass(frozen=True)
class BomItem:
    item: str
    material: str | None = None
    quantity: float | None = None
    unit: str | None = None
    supplier: str | None = None
    colour: str | None = None


@dataclass(frozen=True)
class Feature:
    name: str
    view: str | None = None
    note: str | None = None
    at: Point | None = None


@dataclass(frozen=True)
class Closeup:
    name: str
    view: str
    at: Point | None = None


@dataclass(frozen=True)
class Price:
    msrp: float
    currency: str


@dataclass(frozen=True)
class Market:
    """A result of market research, with at least one price."""

    currency: str
    marketplace: str | None = None
    price: float | None = None
    competitive_price: float | None = None
    link: str | None = None


@dataclass(frozen=True)
class Facts:
    product: Product = Product()
    materials: tuple[Material, ...] = ()
    dimensions: tuple[Dimension, ...] = ()
    points_of_measure: tuple[PointOfMeasure, ...] = ()
    scales: tuple[Scale, ...] = ()
    bill_of_materials: tuple[BomItem, ...] = ()
    features: tuple[Feature, ...] = ()
    closeups: tuple[Closeup, ...] = ()
    price: Price | None = None
    market: Market | None = None
    care: tuple[str, ...] = ()


def load_facts(text: str | bytes) -> Facts:
    """Reads facts from YAML. Raises FactsError, also for YAML that `plain_yaml` refuses."""
    try:
        value = plain_yaml.load(text)
    except plain_yaml.NotPlain as problem:
        raise FactsError("", str(problem)) from None
    return parse_facts({} if value is None else value)


def parse_facts(mapping: object) -> Facts:
    """Reads facts from plain values (dicts, lists, text, numbers). Raises FactsError with the path
    of the first bad field."""
    top = Table("", mapping)
    facts = Facts(
        product=top.table("product", _product) or Product(),
        materials=top.rows("materials", _material),
        dimensions=top.rows("dimensions", _dimension),
        points_of_measure=top.rows("points_of_measure", _point_of_measure),
        scales=top.rows("scales", _scale),
        bill_of_materials=top.rows("bill_of_materials", _bom_item),
        features=top.rows("features", _feature),
        closeups=top.rows("closeups", _closeup),
        price=top.table("price", _price),
        market=top.table("market", _market),
        care=top.lines("care"),
    )
    top.end()
    for name, keys in (
        ("points_of_measure", [pom.code for pom in facts.points_of_measure]),
        ("scales", [scale.view for scale in facts.scales]),
    ):
        for index, key in enumerate(keys):
            if key in keys[:index]:
                raise FactsError(f"{name}[{index}]", f"{key!r} is already used by an earlier entry")
    return facts


# One function per kind of row; together they define the file's format.


def _product(row: Table) -> Product:
    return Product(
        name=row.line("name"),
        model=row.line("model"),
        brand=row.line("brand"),
        category=row.line("category"),
        subcategory=row.line("subcategory"),
        condition=row.line("condition"),
        condition_details=row.text("condition_details"),
        description=row.text("description"),
        keywords=row.lines("keywords"),
    )


def _material(row: Table) -> Material:
    return Material(
        part=row.need(row.line, "part"),
        material=row.need(row.line, "material"),
        weight=row.line("weight"),
        colour=row.line("colour"),
        supplier=row.line("supplier"),
    )


def _dimension(row: Table) -> Dimension:
    return Dimension(
        view=row.view("view"),
        name=row.need(row.line, "name"),
        value=row.need(row.positive, "value"),
        unit=row.need(row.length_unit, "unit"),
    )


def _point_of_measure(row: Table) -> PointOfMeasure:
    pom = PointOfMeasure(
        code=row.need(row.line, "code"),
        name=row.need(row.line, "name"),
        value=row.positive("value"),
        unit=row.length_unit("unit"),
        tolerance=row.not_negative("tolerance"),
        view=row.view("view"),
        start=row.table("from", _point),
        end=row.table("to", _point),
    )
    if (pom.start is None) != (pom.end is None):
        raise FactsError(row.path, "'from' and 'to' go together")
    if pom.start is not None and pom.view is None:
        raise FactsError(
            f"{row.path}.view",
            "needed with 'from' and 'to': they are places in that view's picture",
        )
    if pom.value is None and pom.start is None:
        raise FactsError(f"{row.path}.value", "needed, or 'from' and 'to' to measure between")
    if pom.value is not None and pom.unit is None:
        raise FactsError(f"{row.path}.unit", "needed with a value")
    if pom.tolerance is not None and pom.unit is None:
        raise FactsError(f"{row.path}.unit", "needed with a tolerance")
    return pom


def _scale(row: Table) -> Scale:
    scale = Scale(
        view=row.need(row.view, "view"),
        value=row.need(row.positive, "value"),
        unit=row.need(row.length_unit, "unit"),
        start=row.need_table("from", _point),
        end=row.need_table("to", _point),
    )
    if math.dist((scale.start.x, scale.start.y), (scale.end.x, scale.end.y)) < 0.02:
        raise FactsError(row.path, "'from' and 'to' are too close together to measure by")
    return scale


def _bom_item(row: Table) -> BomItem:
    return BomItem(
        item=row.need(row.line, "item"),
        material=row.line("material"),
        quantity=row.positive("quantity"),
        unit=row.line("unit"),
        supplier=row.line("supplier"),
        colour=row.line("colour"),
    )


def _feature(row: Table) -> Feature:
    feature = Feature(
        view=row.view("view"),
        name=row.need(row.line, "name"),
        note=row.text("note"),
        at=row.table("at", _point),
    )
    if feature.at is not None and feature.view is None:
        raise FactsError(
            f"{row.path}.view", "needed with 'at': it is a place in that view's picture"
        )
    return feature


def _closeup(row: Table) -> Closeup:
    return Closeup(
        name=row.need(row.line, "name"), view=row.need(row.view, "view"), at=row.table("at", _point)
    )


def _price(row: Table) -> Price:
    return Price(msrp=row.need(row.money, "msrp"), currency=row.need(row.currency, "currency"))


def _market(row: Table) -> Market:
    market = Market(
        currency=row.need(row.currency, "currency"),
        marketplace=row.line("marketplace"),
        price=row.money("price"),
        competitive_price=row.money("competitive_price"),
        link=row.line("link"),
    )
    if market.price is None and market.competitive_price is None:
        raise FactsError(row.path, "needs 'price' or 'competitive_price'")
    return market


def _point(row: Table) -> Point:
    return Point(x=row.need(row.fraction, "x"), y=row.need(row.fraction, "y"))

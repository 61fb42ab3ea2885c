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
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from shared.formats import figures
from shared.formats import yaml as plain_yaml

MAX_ITEMS = 500
MAX_LINE = 300
MAX_TEXT = 5_000
MAX_NUMBER = 1e7
MAX_MONEY = 1e8  # in some currencies a coat costs tens of millions

VIEWS = ("front", "back", "side")
LENGTH_UNITS = {"mm": 0.1, "cm": 1.0, "m": 100.0, "in": 2.54}
"""Centimetres in one unit."""

T = TypeVar("T")


class FactsError(ValueError):
    """A fact is invalid. `path` is the field (`dimensions[1].value`), `reason` says why."""

    def __init__(self, path: str, reason: str) -> None:
        # Exception gets both arguments, because pickle passes its arguments to __init__ in another
        # process.
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else self.reason


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
    top = _Table("", mapping)
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


def _product(row: "_Table") -> Product:
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


def _material(row: "_Table") -> Material:
    return Material(
        part=row.need(row.line, "part"),
        material=row.need(row.line, "material"),
        weight=row.line("weight"),
        colour=row.line("colour"),
        supplier=row.line("supplier"),
    )


def _dimension(row: "_Table") -> Dimension:
    return Dimension(
        view=row.view("view"),
        name=row.need(row.line, "name"),
        value=row.need(row.positive, "value"),
        unit=row.need(row.length_unit, "unit"),
    )


def _point_of_measure(row: "_Table") -> PointOfMeasure:
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


def _scale(row: "_Table") -> Scale:
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


def _bom_item(row: "_Table") -> BomItem:
    return BomItem(
        item=row.need(row.line, "item"),
        material=row.line("material"),
        quantity=row.positive("quantity"),
        unit=row.line("unit"),
        supplier=row.line("supplier"),
        colour=row.line("colour"),
    )


def _feature(row: "_Table") -> Feature:
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


def _closeup(row: "_Table") -> Closeup:
    return Closeup(
        name=row.need(row.line, "name"), view=row.need(row.view, "view"), at=row.table("at", _point)
    )


def _price(row: "_Table") -> Price:
    return Price(msrp=row.need(row.money, "msrp"), currency=row.need(row.currency, "currency"))


def _market(row: "_Table") -> Market:
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


def _point(row: "_Table") -> Point:
    return Point(x=row.need(row.fraction, "x"), y=row.need(row.fraction, "y"))


class _Table:
    """A mapping that is being read: each key is taken once, and `end` refuses keys that are
    left."""

    def __init__(self, path: str, value: object) -> None:
        self.path = path
        if not isinstance(value, Mapping):
            raise FactsError(path, f"must be a table of keys and values, not {_kind(value)}")
        self._left: dict[object, object] = dict(value)
        self._known: list[str] = []

    def end(self) -> None:
        for key in self._left:
            known = ", ".join(sorted(self._known))
            raise FactsError(self._at(key), f"unknown key; known here: {known}")

    def need(self, take: Callable[[str], T | None], key: str) -> T:
        value = take(key)
        return self._missing(key) if value is None else value

    def need_table(self, key: str, build: Callable[["_Table"], T]) -> T:
        value = self.table(key, build)
        return self._missing(key) if value is None else value

    def table(self, key: str, build: Callable[["_Table"], T]) -> T | None:
        value = self._take(key)
        if value is None:
            return None
        row = _Table(self._at(key), value)
        built = build(row)
        row.end()
        return built

    def rows(self, key: str, build: Callable[["_Table"], T]) -> tuple[T, ...]:
        built = []
        for index, value in enumerate(self._list(key)):
            row = _Table(f"{self._at(key)}[{index}]", value)
            built.append(build(row))
            row.end()
        return tuple(built)

    def lines(self, key: str) -> tuple[str, ...]:
        return tuple(
            _text(f"{self._at(key)}[{index}]", value, MAX_LINE)
            for index, value in enumerate(self._list(key))
        )

    def line(self, key: str) -> str | None:
        value = self._take(key)
        return None if value is None else _text(self._at(key), value, MAX_LINE)

    def text(self, key: str) -> str | None:
        value = self._take(key)
        return None if value is None else _text(self._at(key), value, MAX_TEXT)

    def view(self, key: str) -> str | None:
        return self._one_of(key, VIEWS)

    def length_unit(self, key: str) -> str | None:
        return self._one_of(key, tuple(LENGTH_UNITS))

    def currency(self, key: str) -> str | None:
        value = self.line(key)
        if value is not None and not re.fullmatch("[A-Z]{3}", value):
            raise FactsError(
                self._at(key), f"{value!r} is not a currency code of three capitals, such as EUR"
            )
        return value

    def money(self, key: str) -> float | None:
        return self.positive(key, MAX_MONEY)

    def positive(self, key: str, most: float = MAX_NUMBER) -> float | None:
        value = self._number(key, most)
        if value is not None and value <= 0:
            raise FactsError(self._at(key), f"{figures.number(value)} must be greater than 0")
        return value

    def not_negative(self, key: str) -> float | None:
        value = self._number(key)
        if value is not None and value < 0:
            raise FactsError(self._at(key), f"{figures.number(value)} must not be negative")
        return value

    def fraction(self, key: str) -> float | None:
        value = self._number(key)
        if value is not None and not 0 <= value <= 1:
            raise FactsError(
                self._at(key), f"{figures.number(value)} is not a fraction of the picture (0..1)"
            )
        return value

    def _number(self, key: str, most: float = MAX_NUMBER) -> float | None:
        value = self._take(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise FactsError(self._at(key), f"must be a number, not {_kind(value)}")
        # The comparison comes before the conversion: a float can't hold an integer of a thousand
        # digits.
        if not -most <= value <= most:
            raise FactsError(self._at(key), f"must be a finite number of at most {most:,.0f}")
        return float(value)

    def _one_of(self, key: str, allowed: Sequence[str]) -> str | None:
        value = self.line(key)
        if value is not None and value not in allowed:
            raise FactsError(self._at(key), f"{value!r} is not one of {', '.join(allowed)}")
        return value

    def _list(self, key: str) -> Sequence[object]:
        value = self._take(key)
        if value is None:
            return ()
        if not isinstance(value, (list, tuple)):
            raise FactsError(self._at(key), f"must be a list, not {_kind(value)}")
        if len(value) > MAX_ITEMS:
            raise FactsError(
                self._at(key), f"has {len(value)} entries, at most {MAX_ITEMS} are read"
            )
        return value

    def _take(self, key: str) -> object:
        self._known.append(key)
        return self._left.pop(key, None)

    def _missing(self, key: str) -> NoReturn:
        raise FactsError(self._at(key), "is needed")

    def _at(self, key: object) -> str:
        name = _one_line(key)
        return f"{self.path}.{name}" if self.path else name


def _text(path: str, value: object, limit: int) -> str:
    if not isinstance(value, str):
        raise FactsError(path, f"must be text, not {_kind(value)}; put it in quotes")
    text = value.strip()
    if not text:
        raise FactsError(path, "is empty; leave the key out when it is not known")
    if len(text) > limit:
        raise FactsError(path, f"has {len(text)} characters, at most {limit} are read")
    if unprintable := re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", text):
        raise FactsError(path, f"holds the control character U+{ord(unprintable[0]):04X}")
    if limit == MAX_LINE and "\n" in text:
        raise FactsError(path, "must be one line")
    return text


def _kind(value: object) -> str:
    if isinstance(value, Mapping):
        return "a table"
    names = {
        str: "text",
        bool: "yes/no",
        int: "a number",
        float: "a number",
        list: "a list",
        type(None): "nothing",
    }
    return names.get(type(value), f"a {type(value).__name__}")


def _one_line(value: object) -> str:
    return " ".join(str(value).split())[:200]

"""What a tech pack says: the classes of its parts. services/techfiles/printing.py prints them.

A pack holds what the owner stated, what was measured from a scale that the owner declared, and what
analyses say; a value that the owner didn't state has a mark, which `sources` explains, and one that
differs from the release before has another. `None`, an empty string and an empty tuple mean "not
supplied" and are printed with those words.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from shared.formats.figures import Number

Source = Literal[
    "supplied",
    "measured from declared scale",
    "supplied with a file",
    "confirmed",
    "measured in a picture",
    "read in a picture",
    "found by a model",
]


@dataclass(frozen=True, slots=True)
class Point:
    """A place in a picture, as fractions of its width (x) and height (y) from the top left
    corner."""

    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Marked:
    """A text with the mark of its source, such as `F3`; "" if the owner stated it."""

    text: str
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Alternatives:
    """Values of one thing that disagree, or one that the owner didn't state, the surest first."""

    values: tuple[Marked, ...]


Words = str | Alternatives | None


@dataclass(frozen=True, slots=True)
class Product:
    name: Words = None
    model: Words = None
    brand: Words = None
    category: Words = None
    subcategory: Words = None
    condition: Words = None
    condition_details: Words = None
    description: Words = None
    keywords: tuple[str | Marked, ...] = ()


@dataclass(frozen=True, slots=True)
class Detail:
    """Something that analyses say about the product beyond its facts, such as its codes."""

    label: str
    values: tuple[Marked, ...]


@dataclass(frozen=True, slots=True)
class SourceLine:
    """One source: its sign, what it is about, what it says there, who or what says so, where, and
    what shows it."""

    sign: str
    key: str
    says: str | None
    source: str
    where: str | None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Dimension:
    """A length with its unit; the tolerance is in the same unit. The length is drawn if `start` and
    `end` are known.

    If more than five are drawn on one picture, `code` is printed on the line instead of the value;
    a length without a code gets a small letter (a, b, ...) there.
    """

    name: str | None
    value: Number | None = None
    unit: str | None = None
    tolerance: Number | None = None
    source: Source = "supplied"
    start: Point | None = None
    end: Point | None = None
    code: str | None = None
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Material:
    """A material. `colour` is the owner's word for its colour; a swatch is drawn from `colour_hex`
    (`#rrggbb`)."""

    part: str | None = None
    material: str | None = None
    weight: str | None = None
    colour: str | None = None
    colour_hex: str | None = None
    supplier: str | None = None
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Feature:
    name: str | None
    note: str | None = None
    at: Point | None = None
    mark: str = ""


@dataclass(frozen=True, slots=True)
class View:
    """A view of the product. `materials_in` names the section that lists the materials, if they are
    too many to be printed with each view."""

    view: str
    picture: str | None = None
    dimensions: tuple[Dimension, ...] = ()
    materials: tuple[Material, ...] = ()
    features: tuple[Feature, ...] = ()
    materials_in: str | None = None


@dataclass(frozen=True, slots=True)
class Callout:
    """A numbered mark. Without x and y it is only in the legend."""

    number: int
    x: float | None
    y: float | None
    label: str | None
    note: str | None = None
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Sketch:
    """A drawing of a view. `described_in` names the page that has its call-outs and measurements,
    if they would otherwise be printed again."""

    view: str
    picture: str | None = None
    callouts: tuple[Callout, ...] = ()
    measurements: tuple[Dimension, ...] = ()
    described_in: str | None = None


@dataclass(frozen=True, slots=True)
class Closeup:
    name: str
    view: str | None = None
    picture: str | None = None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class BillItem:
    item: str | None
    material: str | None = None
    quantity: Number | None = None
    unit: str | None = None
    colour: str | None = None
    colour_hex: str | None = None
    supplier: str | None = None
    mark: str = ""


@dataclass(frozen=True, slots=True)
class PointOfMeasure:
    """One row of the size specification.

    The row is drawn if `start` and `end` are known: on `picture` if that is given, otherwise on the
    picture of the base view that `view` names.
    """

    code: str | None
    name: str | None
    value: Number | None = None
    unit: str | None = None
    tolerance: Number | None = None
    view: str | None = None
    source: Source = "supplied"
    start: Point | None = None
    end: Point | None = None
    picture: str | None = None
    mark: str = ""


@dataclass(frozen=True, slots=True)
class Price:
    amount: Number
    currency: str
    mark: str = ""


@dataclass(frozen=True, slots=True)
class CreditLine:
    step: str
    model: str | None
    credits: int


@dataclass(frozen=True, slots=True)
class Provenance:
    """The origin of one file of the pack; `origin` is a sentence fit for print."""

    label: str
    asset_id: str
    sha256: str
    origin: str
    made_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Revision:
    """One thing that differs from the release before. `difference` is that of two figures, or how
    it differs in words."""

    about: str
    kind: str
    before: str | None = None
    after: str | None = None
    difference: str | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """What a pack is a release of. `title` is `Release 3` or `Draft`; a draft is stamped on each
    page. `since` names the release that `revisions` compares with; None: there is none before."""

    title: str
    name: str
    draft: bool
    made: str
    note: str | None = None
    approved: str | None = None
    decision: str | None = None
    rests_on: str | None = None
    facts: str | None = None
    merely_found: str | None = None
    since: str | None = None
    revisions: tuple[Revision, ...] = ()


@dataclass(frozen=True, slots=True)
class Pack:
    """Everything that one tech pack says. Pictures are keys of the mapping that `render_pdf` is
    given."""

    title: str
    created_at: datetime
    product: Product = Product()
    collection: str | None = None
    version: str | None = None
    owner: str | None = None
    cover: str | None = None
    views: tuple[View, ...] = ()
    sketches: tuple[Sketch, ...] = ()
    closeups: tuple[Closeup, ...] = ()
    materials: tuple[Material, ...] = ()
    bill_of_materials: tuple[BillItem, ...] = ()
    points_of_measure: tuple[PointOfMeasure, ...] = ()
    price: Price | None = None
    other_prices: tuple[Price, ...] = ()
    care: tuple[str | Marked, ...] = ()
    details: tuple[Detail, ...] = ()
    sources: tuple[SourceLine, ...] = ()
    credits: tuple[CreditLine, ...] = ()
    provenance: tuple[Provenance, ...] = ()
    release: Release | None = None

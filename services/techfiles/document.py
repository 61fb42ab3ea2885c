"""The document that leaves the house: a tech pack as a PDF.

`render_pdf` takes a `Pack` and its pictures and writes one PDF. It knows no database, network or clock: the same input
gives the same bytes.

A pack holds what the owner stated and what was measured from a scale the owner declared. `None`, an
empty string and an empty tuple mean "not supplied" and are printed with those words. No figure is
computed here, and a number is printed as it was given.
"""

import json
import math
import re
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from decimal import Decimal
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import filetype
import typst

# A float that is a whole number prints without a fraction (72.0 -> "72"); a Decimal or a string keeps its zeros.
Number = int | float | Decimal | str
Source = Literal["supplied", "measured from declared scale"]

# Characters kept of one value; what is cut ends in an ellipsis and is reported as a warning.
NAME_LIMIT = 200
TEXT_LIMIT = 4_000
_LONG_FIELDS = frozenset({"description", "note", "condition_details"})

# A run without a space that is longer than this may be broken anywhere, or it would leave its column; the narrow column
# of codes breaks sooner. That of origins is wide enough for an asset's id, which would be copied with the mark of the
# break in it.
_LONGEST_WORD = 28
_LONGEST_WORD_OF = {"code": 12, "origin": 37}
_UNBROKEN_FIELDS = frozenset({"sha256", "asset_id", "colour_hex", "picture", "cover"})

_PICTURE_TYPES = frozenset({"jpg", "png", "gif", "webp"})
_EPOCH = datetime.fromtimestamp(0, UTC)
_TEMPLATE = Path(__file__).with_name("pack.typ")


@dataclass(frozen=True, slots=True)
class Point:
    """A place in a picture, as fractions of its width (x) and height (y) from the top left corner."""

    x: float
    y: float


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Dimension:
    """A length with its unit; the tolerance is in the same unit. `start` and `end` let it be drawn.

    Where more than five are drawn on one picture, `code` stands on the line instead of the value; a length that has no
    code is given a small letter (a, b, ...) there.
    """

    name: str | None
    value: Number | None = None
    unit: str | None = None
    tolerance: Number | None = None
    source: Source = "supplied"
    start: Point | None = None
    end: Point | None = None
    code: str | None = None


@dataclass(frozen=True, slots=True)
class Material:
    """`colour` is the owner's word for it; `colour_hex` (`#rrggbb`) is what a swatch is drawn from."""

    part: str | None = None
    material: str | None = None
    weight: str | None = None
    colour: str | None = None
    colour_hex: str | None = None
    supplier: str | None = None


@dataclass(frozen=True, slots=True)
class Feature:
    name: str | None
    note: str | None = None
    at: Point | None = None


@dataclass(frozen=True, slots=True)
class View:
    view: str
    picture: str | None = None
    dimensions: tuple[Dimension, ...] = ()
    materials: tuple[Material, ...] = ()
    features: tuple[Feature, ...] = ()


@dataclass(frozen=True, slots=True)
class Callout:
    """A numbered mark; without x and y it stands in the legend only."""

    number: int
    x: float | None
    y: float | None
    label: str | None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Sketch:
    view: str
    picture: str | None = None
    callouts: tuple[Callout, ...] = ()
    measurements: tuple[Dimension, ...] = ()


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


@dataclass(frozen=True, slots=True)
class PointOfMeasure:
    """One row of the size specification.

    It is drawn when `start` and `end` are known: on `picture` if that is given, otherwise on the picture of
    the base view that `view` names.
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


@dataclass(frozen=True, slots=True)
class Price:
    amount: Number
    currency: str


@dataclass(frozen=True, slots=True)
class CreditLine:
    step: str
    model: str | None
    credits: int


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where one file of the pack came from; `origin` is a sentence fit for print."""

    label: str
    asset_id: str
    sha256: str
    origin: str
    made_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Pack:
    """Everything one tech pack says. Pictures are keys of the mapping that `render_pdf` is given."""

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
    care: tuple[str, ...] = ()
    credits: tuple[CreditLine, ...] = ()
    provenance: tuple[Provenance, ...] = ()


@dataclass(frozen=True, slots=True)
class DocumentWarning:
    """Something the PDF could not show as given.

    `missing glyphs`: detail is the characters that no available font has, each once.
    `shortened`: detail is the path of a value that was longer than its limit.
    `picture`: detail says which picture is not shown, and why.
    `position`: detail is the path of a point that lies outside its picture.
    """

    reason: Literal["missing glyphs", "shortened", "picture", "position"]
    detail: str


def render_pdf(
    pack: Pack, pictures: Mapping[str, Path], target: Path, font_directories: Sequence[Path] = ()
) -> list[DocumentWarning]:
    """Write `pack` to `target` as a PDF (A4 landscape) and return what could not be shown as given.

    `pictures` maps the keys used in the pack to JPEG, PNG, GIF or WebP files. A JPEG is embedded as it is, so
    about 2,000 pixels on the long side make a sharp page of moderate size; other types are decoded and compressed
    again. All pictures are in memory, decoded, at once: thirty of 1600 x 2000 take half a gigabyte.
    `font_directories` are searched for scripts that the bundled fonts lack (Chinese, Japanese, Korean, Thai, emoji).

    Runs in any worker process: blocking, no network, no system fonts, and the compiler reads nothing but a
    fresh directory with the template, the data and the pictures. Raises `typst.TypstError` if the template
    itself cannot be compiled.
    """
    with tempfile.TemporaryDirectory(prefix="techpack-") as name:
        root = Path(name)
        compiler = _Typst(root, font_directories)
        warnings: list[DocumentWarning] = []
        shown = _link_pictures(pictures, root, warnings)
        try:
            text = _write_data(pack, shown, root, warnings)
            compiler.compile("pack.typ", target, pack.created_at)
        except typst.TypstError:
            # A broken picture stops the whole compilation without saying which it was: find it, leave it out.
            broken = [key for key, file in shown.items() if not compiler.can_show(file)]
            if not broken:
                raise
            warnings = [w for w in warnings if w.reason == "picture"]
            warnings += [DocumentWarning("picture", f"{key}: it cannot be decoded") for key in broken]
            shown = {key: file for key, file in shown.items() if key not in broken}
            text = _write_data(pack, shown, root, warnings)
            compiler.compile("pack.typ", target, pack.created_at)
        missing = compiler.missing_glyphs(text)
        if missing:
            warnings.append(DocumentWarning("missing glyphs", missing))
        return warnings


class _Typst:
    """The compiler, shut into one directory."""

    def __init__(self, root: Path, font_directories: Sequence[Path]) -> None:
        self._root = root
        self._scratch = root / "scratch.pdf"
        bundled = str(files("ttf_opensans").joinpath("ttf"))
        extra = [str(directory) for directory in font_directories]
        self._fonts = typst.Fonts(include_system_fonts=False, font_paths=[bundled, *extra])
        own = typst.Fonts(include_system_fonts=False, include_embedded_fonts=False, font_paths=extra)
        # Serif and mono come with the compiler and have Hebrew and Arabic; the caller's fonts go before them.
        self._families = ["Open Sans", *sorted(set(own.families())), "Libertinus Serif", "DejaVu Sans Mono"]
        (root / "fonts.json").write_text(json.dumps(self._families), encoding="utf-8")
        (root / "pack.typ").write_bytes(_TEMPLATE.read_bytes())

    def compile(self, source: str, target: Path, made_at: datetime, archival: bool = False) -> None:
        packages = str(self._root / "no-packages")
        typst.compile(
            str(self._root / source),
            output=str(target),
            root=str(self._root),
            font_paths=self._fonts,
            ignore_system_fonts=True,
            format="pdf",
            pdf_standards="a-2u" if archival else [],
            timestamp=int(made_at.timestamp()),
            package_path=packages,
            package_cache_path=packages,
        )

    def can_show(self, picture: str) -> bool:
        (self._root / "one.typ").write_text(f'#image("{picture}")', encoding="utf-8")
        try:
            self.compile("one.typ", self._scratch, _EPOCH)
        except typst.TypstError:
            return False
        return True

    def missing_glyphs(self, text: str) -> str:
        """The characters of `text` that no font has.

        Only the archival profile of the compiler refuses a missing glyph, and it names it; so every character
        is set once in a document that is thrown away.
        """
        suspects = sorted(c for c in set(text) if not c.isascii() and not _is_invisible(c))
        if not suspects:
            return ""
        (self._root / "characters.json").write_text(json.dumps(suspects), encoding="utf-8")
        source = '#set text(font: json("fonts.json"))\n#for c in json("characters.json") { par(c) }'
        (self._root / "characters.typ").write_text(source, encoding="utf-8")
        try:
            self.compile("characters.typ", self._scratch, _EPOCH, archival=True)
        except typst.TypstError as error:
            named = re.findall(r'the text `"(.+?)"` could not be displayed', error.diagnostic)
            return "".join(c for c in suspects if c in "".join(named))
        return ""


def _is_invisible(character: str) -> bool:
    return unicodedata.category(character) in ("Cf", "Zs", "Zl", "Zp") or "\ufe00" <= character <= "\ufe0f"


def _link_pictures(pictures: Mapping[str, Path], root: Path, warnings: list[DocumentWarning]) -> dict[str, str]:
    """Give every usable picture a name of ours in `root`; a caller's name never reaches the template."""
    shown = {}
    for number, (key, path) in enumerate(sorted(pictures.items())):
        kind = filetype.guess(path) if path.is_file() else None
        if kind is None or kind.extension not in _PICTURE_TYPES:
            warnings.append(DocumentWarning("picture", f"{key}: not a JPEG, PNG, GIF or WebP file"))
            continue
        shown[key] = f"picture-{number:03}.{kind.extension}"
        (root / shown[key]).symlink_to(path.resolve())
    return shown


def _write_data(pack: Pack, shown: Mapping[str, str], root: Path, warnings: list[DocumentWarning]) -> str:
    """Write the pack as the JSON file that the template reads, and return its text."""
    text = json.dumps(_Plain(shown, warnings).value(pack, "", ""), ensure_ascii=False)
    (root / "pack.json").write_text(text, encoding="utf-8")
    return text


class _Plain:
    """Turns a pack into JSON values: text is data, cleaned and limited; numbers are text as given."""

    def __init__(self, shown: Mapping[str, str], warnings: list[DocumentWarning]) -> None:
        self._shown = shown
        self._warnings = warnings

    def value(self, value: Any, name: str, path: str) -> Any:
        match value:
            case None:
                return None
            case Point() | Callout():
                return self._placed(value, path)
            case str() if name in ("picture", "cover"):
                return self._picture(value)
            case str():
                return self._text(value, name, path)
            case int() | float() | Decimal():
                return _number(value)
            case datetime():
                return value.astimezone(UTC).strftime("%Y-%m-%d")
            case tuple():
                items = (self.value(item, name, f"{path}[{index}]") for index, item in enumerate(value))
                return [item for item in items if item is not None]
            case _:
                return self._record(value, path)

    def _record(self, value: Any, path: str) -> dict[str, Any]:
        names = [field.name for field in fields(value)]
        return {n: self.value(getattr(value, n), n, f"{path}.{n}".lstrip(".")) for n in names}

    def _placed(self, value: Point | Callout, path: str) -> dict[str, Any] | None:
        inside = all(v is not None and math.isfinite(v) and 0 <= v <= 1 for v in (value.x, value.y))
        place = {"x": value.x, "y": value.y} if inside else None
        if not inside and (value.x is not None or value.y is not None):
            self._warnings.append(DocumentWarning("position", path))
        if isinstance(value, Point):
            return place
        return {
            "number": str(value.number),
            "at": place,
            "label": self.value(value.label, "label", f"{path}.label"),
            "note": self.value(value.note, "note", f"{path}.note"),
        }

    def _picture(self, key: str) -> str:
        """The file that shows it, or an empty string: it was named, so it is not "not supplied"."""
        if key not in self._shown and not any(w.detail.startswith(f"{key}:") for w in self._warnings):
            self._warnings.append(DocumentWarning("picture", f"{key}: it was not given"))
        return self._shown.get(key, "")

    def _text(self, value: str, name: str, path: str) -> str | None:
        tidy = unicodedata.normalize("NFC", value).replace("\t", " ")
        if not tidy.isprintable():
            tidy = "".join(c for c in tidy if c == "\n" or _is_printable(c))
        text = tidy.strip()
        if not text:
            return None
        if name == "colour_hex":
            return text if re.fullmatch(r"#[0-9a-fA-F]{6}", text) else None
        limit = TEXT_LIMIT if name in _LONG_FIELDS else NAME_LIMIT
        if len(text) > limit:
            self._warnings.append(DocumentWarning("shortened", path))
            text = text[: limit - 1] + "…"
        if name in _UNBROKEN_FIELDS:
            return text
        longest = _LONGEST_WORD_OF.get(name, _LONGEST_WORD)
        return re.sub(rf"(\S{{{longest}}})(?=\S)", "\\1\u200b", text)


def _is_printable(character: str) -> bool:
    # Control characters and lone surrogates cannot be set; explicit bidi overrides can make a text read as another.
    return unicodedata.category(character) not in ("Cc", "Cs") and character not in "\u202a\u202b\u202d\u202e"


def _number(value: float | Decimal) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return format(Decimal(repr(value)) if isinstance(value, float) else Decimal(value), "f")

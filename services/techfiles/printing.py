"""Prints a tech pack as a PDF, the document for its receivers.

`render_pdf` takes a `Pack` and its pictures and writes one PDF. It uses no database, network or
clock: the same input gives the same bytes. No figure is computed here, nothing is cut, and numbers
are printed as shared.formats.figures writes them.
"""

import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from services.techfiles.document import Alternatives, Callout, Marked, Pack, Point, Price, Product
from shared.formats import figures, typesetting

# A longer run of characters without a space may be broken anywhere; the template breaks shorter
# ones in narrow columns. The column of origins is wide enough for an asset's id, which a reader
# would otherwise copy together with the mark of the break.
_LONGEST_WORD = 28
_LONGEST_WORD_OF = {"origin": 37}
_UNBROKEN_FIELDS = frozenset({"sha256", "asset_id", "colour_hex", "picture", "cover", "sign"})

# A mark stands in a text as private characters, one for its letter and one for each digit, which
# the template draws; none is taken from a caller. Δ is that of a revision.
_MARK_LETTERS = {letter: chr(0x10F001 + index) for index, letter in enumerate("CFMRSΔ")}
_MARK_DIGITS = 0x10F010
_PRIVATE = re.compile("[\U0010f001-\U0010f019]")
_BETWEEN = "\u2002/ "  # two values of one thing
# Numbers with their units, and figures in general, within a text that runs from right to left:
# isolated, so that they stay together and in their order.
_RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
_FIGURE = re.compile(
    r"(?:(?<!\w)[+\-\u2212\u00b1]\u00a0?)?\d(?:[\d.,:/\u00d7]*\d)?"
    r"(?:[ \u00a0]?(?:%|[A-Za-z\u00b0\u00b5]+(?:/[A-Za-z]+)?[23\u00b2\u00b3]?)(?![A-Za-z]))?"
)

# A line takes as much memory as a hundred letters. If a pack has more than _MOST_LINES lines, texts
# of more than _MANY_LINES lines are set as paragraphs, with a mark where each line ends.
_MOST_LINES = 30_000
_MANY_LINES = 50
_LINE_END = " \u00b6 "

_TEMPLATE = Path(__file__).with_name("pack.typ")


@dataclass(frozen=True, slots=True)
class DocumentWarning:
    """Something the PDF could not show as given.

    `missing glyphs`: detail is the characters that no available font has, each once, and how to
    give one. `picture`: detail says which picture is not shown, and why. `position`: detail is the
    path of a point that lies outside its picture.
    """

    reason: Literal["missing glyphs", "picture", "position"]
    detail: str


def render_pdf(
    pack: Pack, pictures: Mapping[str, Path], target: Path, fonts: Sequence[Path] = ()
) -> list[DocumentWarning]:
    """Writes `pack` to `target` as a PDF (A4 landscape) and returns what could not be shown as
    given.

    `pictures` maps the keys used in the pack to JPEG, PNG, GIF or WebP files. A JPEG is embedded as
    it is and takes no more memory than its file, so about 2,000 pixels on the long side make a
    sharp page of moderate size; other types are decoded and compressed again. `fonts` are folders
    or files that are searched for scripts that the bundled fonts lack (Chinese, Japanese, Korean,
    Thai, Devanagari, emoji; `make fonts` fetches some).

    Runs in any worker process: it blocks, uses no network and no system fonts, and its compiler
    reads nothing but a fresh directory with the template, the data and the pictures. Raises
    `typesetting.CannotPrint` if the template itself cannot be compiled.
    """
    with tempfile.TemporaryDirectory(prefix="techpack-") as name:
        root = Path(name)
        press = typesetting.Press(root, _TEMPLATE, fonts)
        shown = typesetting.link_pictures(pictures, root)
        unusable = [key for key in sorted(pictures) if key not in shown]
        warnings = _picture_warnings(unusable, "not a JPEG, PNG, GIF or WebP file")
        try:
            press.prefer_for(text := write_data(pack, shown, root, warnings))
            press.print(target, pack.created_at)
        except typesetting.CannotPrint:
            # A broken picture stops the whole compilation, and the error doesn't name it: finds it
            # and leaves it out.
            broken = [key for key, file in shown.items() if not press.can_show(file)]
            if not broken:
                raise
            warnings = [w for w in warnings if w.reason == "picture"]
            warnings += _picture_warnings(broken, "it cannot be decoded")
            shown = {key: file for key, file in shown.items() if key not in broken}
            text = write_data(pack, shown, root, warnings)
            press.print(target, pack.created_at)
        missing = press.missing_glyphs(text)
        if missing:
            warnings.append(DocumentWarning("missing glyphs", missing))
        return warnings


def _picture_warnings(keys: Sequence[str], reason: str) -> list[DocumentWarning]:
    return [DocumentWarning("picture", f"{key}: {reason}") for key in keys]


def write_data(
    pack: Pack, shown: Mapping[str, str], root: Path, warnings: list[DocumentWarning]
) -> str:
    """Writes the pack as the JSON file that the template reads, and returns its text."""
    lines = sum(text.count("\n") for text in _texts(asdict(pack)))
    plain = _Plain(shown, warnings, _MANY_LINES if lines > _MOST_LINES else lines)
    values = plain.value(pack, "", "")
    # The cover and the frame of each page have room for one value.
    values["style"] = plain.value(_first_of(pack.product), "", "style")
    text = json.dumps(values, ensure_ascii=False)
    (root / "pack.json").write_text(text, encoding="utf-8")
    return _PRIVATE.sub("", text)


def _first_of(product: Product) -> Product:
    """Returns the product with one value for each name."""
    firsts = {
        field.name: Alternatives(value.values[:1])
        for field in fields(product)
        if isinstance(value := getattr(product, field.name), Alternatives)
    }
    without: dict[str, Any] = {"description": None, "condition_details": None, "keywords": ()}
    return replace(product, **(firsts | without))


class _Plain:
    """Turns a pack into JSON values: a text is cleaned, a number becomes the text that is printed.
    A text of more than `most_lines` becomes a paragraph."""

    def __init__(
        self, shown: Mapping[str, str], warnings: list[DocumentWarning], most_lines: int
    ) -> None:
        self._shown = shown
        self._warnings = warnings
        self._most_lines = most_lines

    def value(self, value: Any, name: str, path: str) -> Any:
        match value:
            case None:
                return None
            case Point() | Callout():
                return self._placed(value, path)
            case Price(amount=int() | float() | Decimal()):
                amount = figures.money(value.amount, value.currency, grouped=False)
                return self._record(replace(value, amount=amount), path)
            case Marked():
                text = self._text(value.text, name, path)
                return None if text is None else text + _drawn(value.mark)
            case Alternatives():
                texts = [self.value(each, name, path) for each in value.values]
                known = [text for text in texts if text]
                if any(_RIGHT_TO_LEFT.search(text) for text in known):
                    known = [f"\u2068{text}\u2069" for text in known]
                return _BETWEEN.join(known) or None
            case str() if name == "mark":
                return _drawn(value)
            case str() if name in ("picture", "cover"):
                return self._picture(value)
            case str():
                return self._text(value, name, path)
            case bool():
                return value
            case int() | float() | Decimal():
                return typesetting.breakable(figures.number(value), _LONGEST_WORD)
            case datetime():
                return value.astimezone(UTC).strftime("%Y-%m-%d")
            case tuple():
                items = (
                    self.value(item, name, f"{path}[{index}]") for index, item in enumerate(value)
                )
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
            "mark": _drawn(value.mark),
        }

    def _picture(self, key: str) -> str:
        """Returns the file of a picture, or an empty string if it can't be shown: it was named, so
        it is not "not supplied"."""
        if key not in self._shown and not any(
            w.detail.startswith(f"{key}:") for w in self._warnings
        ):
            self._warnings.append(DocumentWarning("picture", f"{key}: it was not given"))
        return self._shown.get(key, "")

    def _text(self, value: str, name: str, path: str) -> str | None:
        text = _PRIVATE.sub("", typesetting.tidy(value))
        if not text:
            return None
        if name == "colour_hex":
            return text if re.fullmatch(r"#[0-9a-fA-F]{6}", text) else None
        if text.count("\n") > self._most_lines:
            text = _LINE_END.join(text.split("\n"))
        if name in _UNBROKEN_FIELDS:
            return text
        if _RIGHT_TO_LEFT.search(text):
            text = _FIGURE.sub("\u2066\\g<0>\u2069", text)
        return typesetting.breakable(text, _LONGEST_WORD_OF.get(name, _LONGEST_WORD))


def _drawn(mark: str) -> str:
    """Returns marks, such as `F3` or `C1 Δ3`, as the characters that the template draws; "" for
    none."""
    return "".join(
        _MARK_LETTERS[each[0]] + "".join(chr(_MARK_DIGITS + int(digit)) for digit in each[1:])
        for each in mark.split()
    )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)

"""What `local` reads in pictures: codes always, labels where the reading extra is installed
(requirements/reading.txt).

Whichever provider does the work, a value that was read stands beside what was found.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata, util
from typing import Any

import structlog

from services.conversions import rules
from services.conversions.local import label_text
from services.conversions.local.composition import fibres_in
from services.conversions.local.label_text import Stated
from services.conversions.local.reading import CHECKED, SUGGESTED, Code, Line
from services.conversions.providers.contract import Finding
from shared.formats.facts import Facts
from shared.imaging import ImagingPool
from shared.imaging.model import MEBIBYTE

# Of one photograph 500 MiB are used, whatever its size: more than a child may take that only
# decodes pictures.
_MEMORY = 1024 * MEBIBYTE
_PACKAGES = ("rapidocr", "onnxruntime", "cv2", "numpy")
_RETAIL = ("EAN-13", "EAN-8", "UPC-A", "UPC-E")
# Tasks for which labels are read: it takes a second for a photograph.
LABEL_TASKS = frozenset({"product", "base_view"})
_NOT_READ = "labels aren't read here: the reading extra isn't installed"


def _model(package: str, name: str = "") -> str:
    return f"{package} {metadata.version(package)} {name}".strip()


CODE_MODEL = _model("zxing-cpp")


@dataclass(frozen=True)
class PictureText:
    """What one picture says. `lines` None: its labels couldn't be read, or nobody tried."""

    view: str
    codes: tuple[Code, ...]
    lines: tuple[Line, ...] | None


def label_model() -> str:
    """Returns the model that reads labels; empty if the extra isn't installed."""
    if not all(util.find_spec(package) for package in _PACKAGES):
        return ""
    return _model("rapidocr", "PP-OCRv6")


def open_label_pool() -> ImagingPool | None:
    """Returns the pool in which labels are read, one picture at a time; None without the extra.
    Logs which it is. The first picture starts a process, which loads the models."""
    model = label_model()
    log = structlog.get_logger("reading")
    if not model:
        log.info("codes are read, labels aren't", codes=CODE_MODEL, labels="not installed")
        return None
    log.info("codes and labels are read", codes=CODE_MODEL, labels=model)
    return ImagingPool(workers=1, memory=_MEMORY)


def findings(task: str, pictures: Sequence[PictureText], facts: Facts) -> list[Finding]:
    """Returns what the pictures say that the task wants to know."""
    if task == "product":
        return [*_of_codes(pictures), *_of_labels(pictures, facts)]
    if task == "base_view":
        return [*_materials(pictures, facts)]
    return []


def note(task: str, pictures: Sequence[PictureText], installed: bool) -> str:
    """Says for a person whether labels were read. Empty: the task doesn't want them."""
    if task not in LABEL_TASKS or not pictures:
        return ""
    if not installed:
        return _NOT_READ
    return "labels: " + ", ".join(
        f"{each.view}: " + ("not read" if each.lines is None else _lines(len(each.lines)))
        for each in pictures
    )


def _lines(number: int) -> str:
    return "1 line" if number == 1 else f"{number} lines"


def _of_codes(pictures: Sequence[PictureText]) -> Iterator[Finding]:
    for number, picture in enumerate(pictures, start=1):
        for code in picture.codes:
            item = {"format": code.format, "text": code.text, "picture": number}
            whole = Finding(
                key="codes",
                value=[item],
                source=rules.READ,
                model=CODE_MODEL,
                confidence=1.0 if code.checked else SUGGESTED,
                note=f"{code.format} {code.text}"[:300],
                picture=number,
                box=code.box,
            )
            yield whole
            if code.format in _RETAIL:
                yield replace(whole, key="ean", value=code.text)


def _of_labels(pictures: Sequence[PictureText], facts: Facts) -> Iterator[Finding]:
    stated = Stated(facts.product.brand or "", facts.product.model or "")
    model = label_model()
    for number, picture in enumerate(pictures, start=1):
        for each in label_text.values(picture.lines or (), stated):
            yield Finding(
                key=each.key,
                value=each.value,
                source=rules.READ,
                model=model,
                confidence=each.confidence,
                note=each.note,
                picture=number,
                box=each.box,
            )


def _materials(pictures: Sequence[PictureText], facts: Facts) -> Iterator[Finding]:
    """Returns the compositions on labels as materials, unless the caller states materials with the
    same fibres: percentages and words of a label would always differ from them."""
    stated = fibres_in(" / ".join(each.material for each in facts.materials))
    for each in _of_labels(pictures, facts):
        if each.key != "composition" or each.confidence < CHECKED:
            continue
        if not fibres_in(" / ".join(share["material"] for share in each.value)) <= stated:
            yield replace(each, key="materials", value=_as_materials(each.value))


def _as_materials(shares: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    parts: dict[str, list[str]] = {}
    for share in shares:
        material = f"{share['percent']:g}% {share['material']}"
        parts.setdefault(share.get("part", ""), []).append(material)
    return [
        {**({"part": part} if part else {}), "material": ", ".join(materials)}
        for part, materials in parts.items()
    ]

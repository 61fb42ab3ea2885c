"""Rules of documents as pure functions and tables: states, limits, names, valid content."""

import math
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any

STATES: Mapping[str, frozenset[str]] = {
    "pending": frozenset({"processing", "failed"}),
    "processing": frozenset({"processing", "pending", "ready", "failed"}),
    "ready": frozenset({"failed"}),  # the store may lose it
    "failed": frozenset(),
}
KINDS = frozenset({"checklist", "renovation_plan"})
ENDED = frozenset({"ready", "failed"})
KEEP_DAYS = 365  # unless the request says otherwise

_MOST_ITEMS = 2000
# Characters, which fill 100 to 400 pages. Twice as many don't fit into a child process's memory.
MOST_TEXT = 300_000
_LINE_BREAK = 20  # characters that take as much memory as a line break
MOST_PICTURES = 40
# A picture over the full width is 170 mm wide: 2,000 pixels are 300 per inch. All pictures are
# decoded in memory at once, beside the text, so that each of many gets fewer pixels: each of forty
# gets 1,100, which is 300 per inch for three in a row, and 550 beside the most text.
_PAGE_SIDE = 2000
_PAGE_PIXELS = 48_000_000
_PIXELS_OF_CHARACTER = 120  # by which each character lowers `_PAGE_PIXELS`


def content_problems(kind: str, body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields (field path below the content, what is wrong) for each broken rule that constraints on
    fields can't express."""
    amount = amount_of_text(body)
    if amount > MOST_TEXT:
        counting = f"characters in all, a line break counting as {_LINE_BREAK}"
        yield kind, f"may have at most {MOST_TEXT:,} {counting}; these are {amount:,}"
    if kind == "checklist":
        items = sum(len(section.get("items", ())) for section in body["sections"])
        if items > _MOST_ITEMS:
            yield (
                "checklist.sections",
                f"may have at most {_MOST_ITEMS} items in all; these have {items}",
            )
        return
    tasks = sum(len(phase.get("tasks", ())) for phase in body.get("phases", ()))
    if tasks > _MOST_ITEMS:
        yield (
            "renovation_plan.phases",
            f"may have at most {_MOST_ITEMS} tasks in all; these have {tasks}",
        )
    yield from _phase_problems(body.get("phases", ()))
    for index, milestone in enumerate(body.get("milestones", ())):
        if day_of(milestone["date"]) is None:
            yield f"renovation_plan.milestones[{index}].date", _no_day(milestone["date"])
    pictures = sum(len(room.get("picture_asset_ids", ())) for room in body.get("rooms", ()))
    if pictures > MOST_PICTURES:
        yield (
            "renovation_plan.rooms",
            f"may have at most {MOST_PICTURES} pictures in all; these have {pictures}",
        )


def named_pictures(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields (field path below the content, asset id) of every picture: the logo, then the rooms'
    in order."""
    if logo := content["cover"].get("logo_asset_id"):
        yield "cover.logo_asset_id", logo
    for index, room in enumerate(content.get("renovation_plan", {}).get("rooms", ())):
        for number, asset_id in enumerate(room.get("picture_asset_ids", ())):
            yield f"renovation_plan.rooms[{index}].picture_asset_ids[{number}]", asset_id


def picture_ids(content: Mapping[str, Any]) -> list[str]:
    """Returns the asset ids that the content names, each once, in the order of `named_pictures`."""
    return list(dict.fromkeys(asset_id for _, asset_id in named_pictures(content)))


def amount_of_text(content: Mapping[str, Any]) -> int:
    """Returns the memory that the texts take when they are typeset, in characters."""
    return sum(
        len(text) + _LINE_BREAK * max(0, len(text.splitlines()) - 1) for text in _texts(content)
    )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _texts(item)


def _phase_problems(phases: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for index, phase in enumerate(phases):
        path = f"renovation_plan.phases[{index}]"
        days = {name: day_of(phase[name]) for name in ("start_date", "end_date") if name in phase}
        for name, day in days.items():
            if day is None:
                yield f"{path}.{name}", _no_day(phase[name])
        first, last = days.get("start_date"), days.get("end_date")
        if first and last and last < first:
            yield f"{path}.end_date", f"{last} is before the start {first}"


def day_of(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _no_day(text: str) -> str:
    return f"{text!r} is no day of the calendar; write it like 2026-03-02"


def page_side(pictures: int, text: int) -> int:
    """Returns the longer side, in pixels, of each of so many pictures in one document with so much
    text (`amount_of_text`)."""
    pixels = _PAGE_PIXELS - _PIXELS_OF_CHARACTER * min(text, MOST_TEXT)
    return min(_PAGE_SIDE, int(math.sqrt(pixels / max(pictures, 1))))


def holder(document_id: object) -> str:
    """Returns the holder of a document's references to its pictures."""
    return f"assets/documents/{document_id}"

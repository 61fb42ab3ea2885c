"""Makes A4 PDFs of checklists and renovation plans: the same input gives the same bytes.

Nothing here uses a database, the network or a clock. `content` is a DocumentContent as JSON, with
the proto's field names; empty fields have no key. Only two things are computed: the sums of a
budget, exactly and each currency by itself, and the place of a phase in the schedule.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Context, Decimal
from pathlib import Path
from typing import Any

from shared.formats import figures, typesetting

TEMPLATE = Path(__file__).with_name("document_template.typ")
KINDS = {"checklist": "Checklist", "renovation_plan": "Renovation plan"}

# A run without a space that has more characters may be broken anywhere. Narrow columns allow fewer
# than a line of text.
_LONGEST_WORD = 40
_LONGEST_WORD_OF = {
    "title": 28,
    "room": 11,
    "responsible": 11,
    "prepared_for": 20,
    "prepared_by": 20,
}
_LONGEST_WORD_IN_COLUMN = 16  # in the schedule and the budget
_EXACT = Context(prec=100)  # more digits than a thousand of the longest amounts need
# A schedule of up to so many days is divided into weeks, or months; a longer one into years.
_WEEKS_UP_TO = 70
_MONTHS_UP_TO = 900
_LABEL_SHARE = 0.12  # of the line; a tick's label takes as much
_MOST_TICKS = 7


@dataclass(frozen=True)
class Imprint:
    """The kind, number and time of a version, printed beside its content. `made_at` is printed as a
    date."""

    kind: str
    number: int
    made_at: datetime


def render_pdf(
    content: Mapping[str, Any],
    imprint: Imprint,
    pictures: Mapping[str, Path],
    target: Path,
    fonts: Sequence[Path] = (),
) -> Sequence[str]:
    """Writes the PDF, and returns a warning for what it could not show as given: `missing glyphs:
    ..`, `picture: ..`.

    `pictures` maps asset ids to JPEG, PNG, GIF or WebP files. It blocks: run it in a child process.
    """
    with tempfile.TemporaryDirectory(prefix="document-") as name:
        root = Path(name)
        press = typesetting.Press(root, TEMPLATE, fonts)
        shown = typesetting.link_pictures(pictures, root)
        text = _write(content, imprint, shown, root)
        try:
            press.print(target, imprint.made_at)
        except typesetting.CannotPrint:
            # A broken picture makes printing fail without a hint which one it is: find it, and
            # leave it out.
            broken = {key for key, file in shown.items() if not press.can_show(file)}
            if not broken:
                raise
            shown = {key: file for key, file in shown.items() if key not in broken}
            text = _write(content, imprint, shown, root)
            press.print(target, imprint.made_at)
        warnings = [
            f"picture: {key}: it cannot be shown" for key in sorted(pictures) if key not in shown
        ]
        if missing := press.missing_glyphs(text):
            warnings.append(f"missing glyphs: {missing}")
        return warnings


def _write(
    content: Mapping[str, Any], imprint: Imprint, shown: Mapping[str, str], root: Path
) -> str:
    """Writes the JSON that the template reads, and returns its text."""
    said = _clean(content, "")
    cover = said["cover"]
    data = {
        "kind": imprint.kind,
        "kind_name": KINDS[imprint.kind],
        "version": f"v{imprint.number}",
        "date": _day(imprint.made_at.date()),
        "cover": {**cover, "logo": shown.get(cover.get("logo_asset_id", ""))},
        "checklist": _checklist(said.get("checklist")),
        "plan": _plan(said.get("renovation_plan"), shown),
    }
    text = json.dumps(data, ensure_ascii=False)
    (root / "document.json").write_text(text, encoding="utf-8")
    return text


def _clean(value: Any, name: str) -> Any:
    """Tidies every text, and makes it breakable where it would leave its column. Drops the key of a
    text with nothing to show."""
    match value:
        case str() if name.endswith("asset_id") or name == "picture_asset_ids":
            return value
        case str():
            return typesetting.breakable(
                typesetting.tidy(value), _LONGEST_WORD_OF.get(name, _LONGEST_WORD)
            )
        case list():
            return [_clean(item, name) for item in value]
        case dict():
            cleaned = {key: _clean(item, key) for key, item in value.items()}
            return {key: item for key, item in cleaned.items() if item != ""}
        case _:
            return value


def _checklist(checklist: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if checklist is None:
        return None
    sections = [_section(section) for section in checklist["sections"]]
    items = [item for section in sections for item in section["items"]]
    return {"sections": sections, "count": len(items), "done": sum(item["done"] for item in items)}


def _section(section: Mapping[str, Any]) -> dict[str, Any]:
    items = [
        {
            "text": item.get("text", ""),
            "note": item.get("note"),
            "quantity": _quantity(item),
            "done": item.get("done", False),
        }
        for item in section.get("items", ())
    ]
    return {
        "title": section.get("title", ""),
        "description": section.get("description"),
        "items": items,
    }


def _quantity(item: Mapping[str, Any]) -> str | None:
    """Returns the quantity as given, with its unit; None if there is none."""
    if "quantity" not in item:
        return None
    return " ".join(part for part in (item["quantity"], item.get("unit")) if part)


def _plan(plan: Mapping[str, Any] | None, shown: Mapping[str, str]) -> dict[str, Any] | None:
    if plan is None:
        return None
    phases = [_phase(phase) for phase in plan.get("phases", ())]
    return {
        "rooms": [_room(room, shown) for room in plan.get("rooms", ())],
        "phases": phases,
        "schedule": schedule(phases, plan.get("milestones", ())),
        "budget": budget(plan.get("budget", ())),
    }


def _room(room: Mapping[str, Any], shown: Mapping[str, str]) -> dict[str, Any]:
    named = room.get("picture_asset_ids", ())
    return {
        "name": room.get("name", ""),
        "description": room.get("description"),
        "area": room.get("area_square_metres"),
        "pictures": [shown[each] for each in named if each in shown],
    }


def _phase(phase: Mapping[str, Any]) -> dict[str, Any]:
    first, last = (
        date.fromisoformat(phase[name]) if name in phase else None
        for name in ("start_date", "end_date")
    )
    tasks = [
        {
            "text": task.get("text", ""),
            "done": task.get("done", False),
            **{name: task.get(name) for name in ("note", "room", "responsible")},
        }
        for task in phase.get("tasks", ())
    ]
    return {
        "name": phase.get("name", ""),
        "description": phase.get("description"),
        "tasks": tasks,
        "first": first and first.isoformat(),
        "last": last and last.isoformat(),
        "dates": _dates(first, last),
    }


def _narrow(text: str) -> str:
    return typesetting.breakable(text.replace("\u200b", ""), _LONGEST_WORD_IN_COLUMN)


def _day(day: date) -> str:
    return f"{day.day} {day:%b} {day.year:04}"


def _dates(first: date | None, last: date | None) -> str | None:
    if first and last:
        return _day(first) if first == last else f"{_day(first)} – {_day(last)}"
    if first:
        return f"from {_day(first)}"
    return f"until {_day(last)}" if last else None


# Schedule


def schedule(
    phases: Sequence[Mapping[str, Any]], milestones: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Returns bars, milestones and ticks as fractions 0..1 of the time from the first day to the
    end of the last; None without any day. `phases` have first and last as ISO days, or None."""
    bars = [_span(phase) for phase in phases]
    days = [day for span in bars if span for day in span] + [
        date.fromisoformat(each["date"]) for each in milestones
    ]
    if not days:
        return None
    begin, length = min(days), (max(days) - min(days)).days + 1

    def at(day: date, further: int = 0) -> float:
        return ((day - begin).days + further) / length

    return {
        "first": _day(begin),
        "last": _day(max(days)),
        "ticks": [{"at": at(day), "label": label} for day, label in _ticks(begin, length)],
        "bars": [
            {
                "name": _narrow(phase["name"]),
                "dates": phase["dates"],
                "from": at(span[0]),
                "to": at(span[1], 1),
            }
            for phase, span in zip(phases, bars, strict=True)
            if span
        ],
        "milestones": [
            {
                "date": _day(date.fromisoformat(each["date"])),
                "text": _narrow(each.get("text", "")),
                "at": at(date.fromisoformat(each["date"])) + 0.5 / length,
            }
            for each in milestones
        ],
    }


def _span(phase: Mapping[str, Any]) -> tuple[date, date] | None:
    first, last = phase["first"] or phase["last"], phase["last"] or phase["first"]
    return (date.fromisoformat(first), date.fromisoformat(last)) if first else None


def _ticks(begin: date, length: int) -> list[tuple[date, str]]:
    """Returns the first days of weeks, months or years with labels, as many as there is room
    for."""
    if length <= _WEEKS_UP_TO:
        found = list(_mondays(begin, length))
    else:
        found = [
            (day, label)
            for day, label in _months(begin, length)
            if day.month == 1 or length <= _MONTHS_UP_TO
        ]
    shown = found[:: -(-len(found) // _MOST_TICKS)] if found else []
    roomy = not shown or (
        len(shown) < _MOST_TICKS and (shown[0][0] - begin).days > length * _LABEL_SHARE
    )
    if length > _WEEKS_UP_TO and roomy:  # names the month or year that had begun before
        shown.insert(0, (begin, f"{begin:%b}" if length <= _MONTHS_UP_TO else f"{begin.year:04}"))
    return shown


def _mondays(begin: date, length: int) -> Iterator[tuple[date, str]]:
    for offset in range(-begin.weekday() % 7, length, 7):
        day = begin + timedelta(days=offset)
        yield day, f"{day.day} {day:%b}"


def _months(begin: date, length: int) -> Iterator[tuple[date, str]]:
    for number in range(
        begin.year * 12 + begin.month - (begin.day == 1), begin.year * 12 + length // 28 + 13
    ):
        if number >= 12 * date.max.year:
            return
        day = date(number // 12, number % 12 + 1, 1)
        if (day - begin).days < length:
            yield day, f"{day.year:04}" if day.month == 1 else f"{day:%b}"


# Budget


def budget(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Returns the groups by category with their sums, and the totals; amounts are texts. Returns
    None without a line."""
    if not lines:
        return None
    grouped = any("category" in line for line in lines)
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        groups.setdefault(line.get("category", "Other") if grouped else "", []).append(line)
    return {
        "groups": [
            {"name": name, "lines": [_line(line) for line in found], "sums": _sums(found)}
            for name, found in groups.items()
        ],
        "grouped": grouped,
        "totals": _sums(lines),
    }


def _amount(line: Mapping[str, Any]) -> Decimal:
    return _EXACT.multiply(Decimal(line.get("quantity", "1")), Decimal(line["unit_price"]))


def _line(line: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "description": _narrow(line.get("description", "")),
        "quantity": _quantity(line),
        "currency": line["currency"],
        "price": figures.money(line["unit_price"], line["currency"], grouped=True),
        "amount": figures.money(_amount(line), line["currency"], grouped=True),
    }


def _sums(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Returns one exact sum per currency, in the order in which the currencies first occur."""
    totals: dict[str, Decimal] = {}
    add: Callable[[Decimal, Decimal], Decimal] = _EXACT.add
    for line in lines:
        totals[line["currency"]] = add(totals.get(line["currency"], Decimal()), _amount(line))
    return [
        {"currency": currency, "amount": figures.money(total, currency, grouped=True)}
        for currency, total in totals.items()
    ]

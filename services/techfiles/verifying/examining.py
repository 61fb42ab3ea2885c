"""Examines slots: reads what their rows say of numbers, latest files, parents and names, and finds
what contradicts.

The database compares the rows of a slot and returns what is wrong with it, so that memory doesn't
grow with histories. A check and a repair examine alike.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from services.techfiles import rules
from shared.database.db import Mutation
from shared.database.rows import Statement

SHOWN = 20  # numbers and ids that a finding's text names
_MOST_PARENTS = 50  # of one slot, with two values each


@dataclass(slots=True)
class Slot:
    """A slot, and what its rows say. Arrays are None where there is nothing to name."""

    id: UUID
    product_id: str
    file_type: str
    view_type: str
    file_category: str
    last_number: int
    rows: int
    highest: int
    missing: int  # numbers below the highest that no row has
    missing_ranges: list[str] | None
    repeated: int
    repeated_numbers: list[int] | None
    latest: list[UUID] | None  # those that say so
    top: UUID | None  # the live file with the highest number


@dataclass(slots=True)
class _Parent:
    """A file whose parent is missing, of another slot, or itself. `place`: the file's place among
    such files of its slot."""

    slot_id: UUID
    id: UUID
    number: int
    parent_file_id: UUID | None  # never None here: the statement asks for it
    parent_purged: bool
    missing: bool
    purged: bool  # a purge has noted the parent
    place: int
    total: int


@dataclass(slots=True)
class _Named:
    """The name of a slot, with the place that names are compared in."""

    id: UUID
    product_id: str
    file_type: str
    view_type: str
    file_category: str
    last_number: int


@dataclass(frozen=True, slots=True)
class Repair:
    """One value that a repair writes, as JSON."""

    row: str
    column: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault in one slot. Without `repair` it can't be repaired without a loss."""

    kind: str
    message: str
    advice: str
    repair: tuple[Repair, ...] = ()


_EXAMINE = Statement(
    Slot,
    f"""
    SELECT s.id, s.product_id, s.file_type, s.view_type, s.file_category, s.last_number,
        n.rows, n.highest, n.missing, n.missing_ranges, n.repeated, n.repeated_numbers,
        f.latest, f.top
    FROM slots s
    CROSS JOIN LATERAL (
        SELECT count(*) AS rows, coalesce(max(number), 0) AS highest,
            coalesce(sum(number - before - 1) FILTER (WHERE number > before + 1), 0)::bigint
                AS missing,
            (array_agg(CASE WHEN number = before + 2 THEN (before + 1)::text
                    ELSE (before + 1)::text || '-' || (number - 1)::text END ORDER BY number)
                FILTER (WHERE number > before + 1))[1:{SHOWN}] AS missing_ranges,
            count(*) FILTER (WHERE number <= before) AS repeated,
            (array_agg(number ORDER BY number) FILTER (WHERE number <= before))[1:{SHOWN}]
                AS repeated_numbers
        FROM (
            SELECT number, lag(number, 1, 0) OVER (ORDER BY number) AS before FROM (
                SELECT number FROM tech_files WHERE slot_id = s.id
                UNION ALL SELECT number FROM tech_file_versions WHERE slot_id = s.id
                UNION ALL SELECT number FROM purged_numbers WHERE slot_id = s.id) AS given
        ) AS steps
    ) AS n
    CROSS JOIN LATERAL (
        SELECT (array_agg(id ORDER BY number) FILTER (WHERE is_latest))[1:{SHOWN}] AS latest,
            (array_agg(id ORDER BY number DESC)
                FILTER (WHERE archived_at IS NULL AND deleted_at IS NULL))[1] AS top
        FROM tech_files WHERE slot_id = s.id
    ) AS f
    WHERE s.id = ANY(%(slots)s) ORDER BY s.id
    """,
)
_SELECT_PARENTS = Statement(
    _Parent,
    f"""
    SELECT slot_id, id, number, parent_file_id, parent_purged, missing, purged, place, total FROM (
        SELECT c.slot_id, c.id, c.number, c.parent_file_id, c.parent_purged,
            p.id IS NULL AS missing,
            EXISTS (SELECT FROM purged_numbers g
                WHERE g.slot_id = c.slot_id AND g.tech_file_id = c.parent_file_id) AS purged,
            row_number() OVER (PARTITION BY c.slot_id, p.id IS NULL ORDER BY c.number, c.id)
                AS place,
            count(*) OVER (PARTITION BY c.slot_id, p.id IS NULL) AS total
        FROM tech_files c LEFT JOIN tech_files p ON p.id = c.parent_file_id
        WHERE c.slot_id = ANY(%(slots)s) AND c.parent_file_id IS NOT NULL
            AND (p.id IS NULL OR p.slot_id <> c.slot_id OR p.id = c.id)) AS wrong
    WHERE place <= {_MOST_PARENTS} ORDER BY slot_id, number, id
    """,
)
_SELECT_NAMES = Statement(
    _Named,
    """
    SELECT o.id, o.product_id, o.file_type, o.view_type, o.file_category, o.last_number
    FROM (SELECT DISTINCT product_id, file_type, view_type FROM slots
        WHERE id = ANY(%(slots)s) AND file_category <> '') AS places
    JOIN slots o ON o.owner = %(owner)s AND o.product_id = places.product_id
        AND o.file_type = places.file_type AND o.view_type = places.view_type
    WHERE o.file_category <> ''
    """,
)
_LOCK = Statement(UUID, "SELECT id FROM slots WHERE id = ANY(%(slots)s) ORDER BY id FOR UPDATE")


async def lock(m: Mutation, slots: Sequence[UUID]) -> None:
    """Locks slots until the commit: nobody gives a number of theirs, or changes their latest."""
    await m.all(_LOCK, {"slots": list(slots)})


async def examine(m: Mutation, slots: Sequence[UUID]) -> list[tuple[Slot, list[Fault]]]:
    """Returns the owner's slots with their faults, in the order of their ids. Unless they are
    locked, what others write meanwhile may look like a fault."""
    named = {"owner": m.owner, "slots": list(slots)}
    rows = await m.all(_EXAMINE, named)
    parents = await m.all(_SELECT_PARENTS, named)
    alike = _alike(await m.all(_SELECT_NAMES, named)) if any(r.file_category for r in rows) else {}
    return [
        (
            row,
            [
                *_numbers(row),
                *_latest(row),
                *_parents([each for each in parents if each.slot_id == row.id]),
                *_names(row, alike),
            ],
        )
        for row in rows
    ]


def changed_snapshots(numbers: Sequence[int], total: int) -> Fault:
    """Returns the fault of snapshots that don't match their digests any more."""
    return Fault(
        "changed_snapshot",
        f"{total} snapshots aren't what was stored, by their SHA-256: numbers"
        f" {_few(numbers, total)}",
        "restore these rows from a backup; a new digest would only hide that they were changed",
    )


def _numbers(slot: Slot) -> Iterator[Fault]:
    ranges, missing = list(slot.missing_ranges or ()), slot.missing
    if slot.last_number > slot.highest:
        missing += slot.last_number - slot.highest
        first, last = slot.highest + 1, slot.last_number
        ranges.append(str(last) if first == last else f"{first}-{last}")
    if missing:
        yield Fault(
            "missing_numbers",
            f"{missing} numbers up to {max(slot.last_number, slot.highest)} have no version, and no"
            f" purge has noted them: {', '.join(ranges[:SHOWN])}",
            "restore their rows from a backup; the numbers aren't given again, and the others"
            " stay as they are",
        )
    if slot.repeated:
        yield Fault(
            "repeated_numbers",
            f"{slot.repeated} numbers were given again:"
            f" {_few(slot.repeated_numbers or (), slot.repeated)}",
            "compare the versions; which of them keeps its number is for a person to decide, with"
            " a backup at hand",
        )
    if slot.last_number < slot.highest:
        line = _line("slots", slot.id, "last_number", slot.last_number, slot.highest)
        yield Fault(
            "last_number_low",
            f"the last number is {slot.last_number}, and a version has {slot.highest}; the next"
            " versions would be refused",
            "repair it: RepairHistory sets the last number to the highest",
            (line,),
        )


def _latest(slot: Slot) -> Iterator[Fault]:
    latest, top = slot.latest or [], slot.top
    if latest == ([top] if top else []):
        return
    lines = [
        _line("tech_files", each, "is_latest", "true", "false") for each in latest if each != top
    ]
    if top and top not in latest:
        lines.append(_line("tech_files", top, "is_latest", "false", "true"))
    highest = f"the live one with the highest number is {top}" if top else "none is live"
    if len(latest) > 1:
        kind, message = "several_latest", f"{_few(latest, len(latest))} are latest; {highest}"
    elif latest:
        kind, message = "wrong_latest", f"{latest[0]} is latest; {highest}"
    else:
        kind, message = "no_latest", f"no file is latest; {highest}"
    advice = "repair it: RepairHistory makes the live file with the highest number the only latest"
    yield Fault(kind, message, advice, tuple(lines))


def _parents(parents: Sequence[_Parent]) -> Iterator[Fault]:
    missing = [each for each in parents if each.missing]
    if missing:
        lines: list[Repair] = []
        for each in missing:
            lines.append(
                _line("tech_files", each.id, "parent_file_id", f'"{each.parent_file_id}"', "null")
            )
            if not each.parent_purged:
                lines.append(_line("tech_files", each.id, "parent_purged", "false", "true"))
        noted = sum(each.purged for each in missing)
        rest = missing[0].total - len(missing)
        yield Fault(
            "missing_parent",
            f"{missing[0].total} files name a parent that isn't there; a purge has noted {noted} of"
            f" the first {len(missing)}; numbers"
            f" {_few([each.number for each in missing], missing[0].total)}",
            "repair it: RepairHistory says of them that their parents were purged; the finding"
            " keeps the parents' ids" + (f"; then check again for {rest} more" if rest else ""),
            tuple(lines),
        )
    foreign = [each for each in parents if not each.missing]
    if foreign:
        shown = [f"{each.id} names {each.parent_file_id}" for each in foreign]
        yield Fault(
            "foreign_parent",
            f"{foreign[0].total} files name a parent of another slot, or themselves:"
            f" {_few(shown, foreign[0].total)}",
            "restore the column from a backup; which file was latest before can't be told from"
            " the rows",
        )


_Place = tuple[str, str, str, str]


def _place(row: Slot | _Named) -> _Place:
    return row.product_id, row.file_type, row.view_type, rules.slot_name(row.file_category)


def _alike(names: Sequence[_Named]) -> Mapping[_Place, list[_Named]]:
    """Returns the slots of each name, that first which new files go to: as
    `tech_file_rows.create` finds it."""
    found: dict[_Place, list[_Named]] = {}
    for row in names:
        found.setdefault(_place(row), []).append(row)
    for place, rows in found.items():
        rows.sort(key=lambda row: (row.file_category != place[3], -row.last_number, row.id))
    return found


def _names(slot: Slot, alike: Mapping[_Place, list[_Named]]) -> Iterator[Fault]:
    if not slot.file_category:
        return
    others = alike.get(_place(slot), [])
    if len(others) < 2 or others[0].id == slot.id:
        return
    kept = others[0]
    first = kept.last_number + 1
    yield Fault(
        "same_name",
        f"its name is one with {kept.file_category!r} of the slot {kept.id}, which new files of"
        " that name go to",
        f"nothing needs to be done: both keep their versions. They aren't merged: both count from"
        f" 1, so that the numbers 1 to {slot.last_number} here would become {first} to"
        f" {kept.last_number + slot.last_number} there, and who noted one would find another"
        " version; to carry one over, create a file with its content",
    )


def _few(each: Sequence[object], total: int) -> str:
    shown = ", ".join(str(one) for one in each[:SHOWN])
    return f"{shown} and {total - SHOWN} more" if total > SHOWN else shown


def _line(table: str, row_id: UUID, column: str, before: object, after: object) -> Repair:
    return Repair(f"{table}/{row_id}", column, str(before), str(after))

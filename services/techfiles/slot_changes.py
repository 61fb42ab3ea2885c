"""What differs between two sets of files, slot by slot: of two collections, or of two releases."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from atelier.techfiles.v1 import history_pb2 as pb

from services.techfiles import diffing, rules
from services.techfiles.history_rows import KINDS, content_of
from services.techfiles.tech_file_rows import TYPES, VIEWS, TechFile

_PAIRS = 10  # contents in memory at once, twice


@dataclass(frozen=True, slots=True)
class Placed:
    """A file of a set, without its content."""

    id: UUID
    file_type: str
    view_type: str
    file_category: str
    number: int


Read = Callable[[Sequence[UUID]], Awaitable[Mapping[UUID, TechFile]]]
"""Returns files of a set, by id."""
_Place = tuple[str, str, str]
_Pair = tuple[Placed | None, Placed | None]


async def of_sets(
    before: Sequence[Placed], after: Sequence[Placed], read_before: Read, read_after: Read
) -> list[pb.SlotChange]:
    """Returns the slots that differ between two sets, in the order of type, view and name. Contents
    are read a few at a time: they may have 256 KiB each."""
    earlier, later = _by_slot(before), _by_slot(after)
    places = sorted(earlier.keys() | later.keys())
    pairs = [(earlier.get(place), later.get(place)) for place in places]
    pairs = [(one, other) for one, other in pairs if one != other]
    changed: list[pb.SlotChange] = []
    for start in range(0, len(pairs), _PAIRS):
        some = pairs[start : start + _PAIRS]
        both = [(one, other) for one, other in some if one and other]
        old = await read_before([one.id for one, _ in both])
        new = await read_after([other.id for _, other in both])
        changed += await asyncio.to_thread(_slot_changes, some, old, new)
    return changed


def picture_of(file: TechFile) -> str:
    return str(file.file_asset_id or "")


def _by_slot(files: Sequence[Placed]) -> dict[_Place, Placed]:
    """Returns the file of each slot, of several that with the highest number."""
    return {
        (file.file_type, file.view_type, rules.slot_name(file.file_category)): file
        for file in sorted(files, key=lambda file: file.number)
    }


def _slot_changes(
    pairs: list[_Pair], old: Mapping[UUID, TechFile], new: Mapping[UUID, TechFile]
) -> list[pb.SlotChange]:
    slots = [_slot_change(before, after, old, new) for before, after in pairs]
    return [slot for slot in slots if slot]


def _slot_change(
    before: Placed | None,
    after: Placed | None,
    old: Mapping[UUID, TechFile],
    new: Mapping[UUID, TechFile],
) -> pb.SlotChange | None:
    """Returns what differs between the files of a slot, or None if they say the same."""
    shown = after or before
    if shown is None:
        return None
    slot = pb.SlotChange(
        kind=KINDS.number["removed" if after is None else "added" if before is None else "changed"],
        file_type=TYPES.number[shown.file_type],
        view_type=VIEWS.number.get(shown.view_type),
        file_category=shown.file_category,
        before_tech_file_id=str(before.id) if before else "",
        after_tech_file_id=str(after.id) if after else "",
    )
    if before and after and before.id in old and after.id in new:
        one, other = old[before.id], new[after.id]
        slot.change_count = len(diffing.compare(content_of(one), content_of(other)))
        pictures = picture_of(one), picture_of(other)
        slot.picture_changed = pictures[0] != pictures[1]
        if slot.picture_changed:
            slot.before_asset_id, slot.after_asset_id = pictures
        if not slot.change_count and not slot.picture_changed:
            return None
    return slot

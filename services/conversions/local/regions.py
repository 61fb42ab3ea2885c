"""Connected regions of a mask."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyvips

_MAX_REGIONS = 60_000


@dataclass(frozen=True)
class Regions:
    """labels: per pixel the number of its region (ushort). areas, inside: per region its pixels,
    and whether it is set in the mask."""

    labels: pyvips.Image
    areas: list[int]
    inside: list[bool]


def bounds(mask: pyvips.Image) -> tuple[int, int, int, int]:
    """Returns left, top, width and height of what is set, in pixels; all zero for an empty mask."""
    left, top, width, height = mask.find_trim(background=[0], threshold=64, line_art=True)
    return int(left), int(top), int(width), int(height)


def label(mask: pyvips.Image) -> Regions | None:
    """Returns the connected regions of a mask of 0 and 255, or None if there are too many to be
    anything but noise."""
    labels, found = mask.labelregions(segments=True)
    if found["segments"] > _MAX_REGIONS:
        return None
    labels = labels.cast("ushort").copy_memory()
    areas = memoryview(labels.hist_find().cast("uint").write_to_memory()).cast("I")
    inside = memoryview(
        mask.hist_find_indexed(labels, combine="max").cast("uchar").write_to_memory()
    )
    return Regions(labels, list(areas), [value > 0 for value in inside])


def mean(found: Regions, values: pyvips.Image) -> list[float]:
    """Returns the mean of a one-band picture in each region."""
    sums = memoryview(
        values.hist_find_indexed(found.labels, combine="sum").cast("float").write_to_memory()
    ).cast("f")
    return [total / max(1, area) for total, area in zip(sums, found.areas, strict=True)]


def select(found: Regions, keep: Sequence[bool]) -> pyvips.Image:
    """Returns the mask of those regions that are to be kept."""
    table = bytes(255 if kept else 0 for kept in keep)
    return found.labels.maplut(pyvips.Image.new_from_memory(table, len(table), 1, 1, "uchar"))

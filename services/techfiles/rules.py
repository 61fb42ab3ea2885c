"""Decisions of `techfiles` as pure functions and constants: states, the fields that each file type
needs, the steps of a run, names, lengths."""

import hashlib
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote

FILE_STATES: Mapping[str, frozenset[str]] = {
    "pending": frozenset({"processing", "completed", "failed"}),
    "processing": frozenset({"completed", "failed"}),
    "completed": frozenset(),
    "failed": frozenset(),
}
RUN_STATES: Mapping[str, frozenset[str]] = {
    "pending": frozenset({"processing", "failed", "cancelled"}),
    "processing": frozenset(
        {"processing", "pending", "completed", "completed_with_failures", "failed", "cancelled"}
    ),
    "completed": frozenset(),
    "completed_with_failures": frozenset({"pending"}),  # by RetryTechPackRun, like the next two
    "failed": frozenset({"pending"}),
    "cancelled": frozenset({"pending"}),
}
# How RetryTechPackRun moves a file of its run. Nothing else makes a FAILED file PENDING.
REOPENED: Mapping[str, frozenset[str]] = {"failed": frozenset({"pending"})}
EXPORT_STATES: Mapping[str, frozenset[str]] = {
    "pending": frozenset({"processing", "failed"}),
    "processing": frozenset({"processing", "pending", "completed", "failed"}),
    "completed": frozenset(),
    "failed": frozenset(),
}
RELEASE_STATES: Mapping[str, frozenset[str]] = {
    "draft": frozenset({"approved", "rejected"}),
    "approved": frozenset({"withdrawn"}),
    "rejected": frozenset(),
    "withdrawn": frozenset(),
}
# States of walks over the older application's table.
WALK_STATES: Mapping[str, frozenset[str]] = {
    "pending": frozenset({"running", "failed", "cancelled"}),
    "running": frozenset({"running", "pending", "done", "failed", "cancelled"}),
    "done": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
STEP_STATES: Mapping[str, frozenset[str]] = {
    "pending": frozenset({"processing", "failed"}),
    "processing": frozenset({"processing", "completed", "failed"}),
    "completed": frozenset(),
    "failed": frozenset(),
    "skipped": frozenset(),
}
ENDED = frozenset({"completed", "completed_with_failures", "failed", "cancelled"})

ANALYSIS_BYTES = 256 * 1024
LIST_BYTES = 2 * 1024 * 1024
MOST_ITEMS = 1000
MOST_CLOSEUPS = 60
SECTIONS = {
    "category": "category",
    "base_view": "base_views",
    "closeup": "closeups",
    "sketch": "sketches",
}

# All pictures of one document together have at most this many pixels: the renderer keeps a picture
# that it has to decode in memory, and its process may have 512 MB.
_PAGE_PIXELS = 80_000_000
_PAGE_SIDE = 1600


def file_problem(
    file_type: str, *, revision_id: str, view: str, shot: str, collection_id: str
) -> tuple[str, str] | None:
    """Returns (field, what is wrong) for the fields of a file of this type, or None."""
    given = {
        "revision_id": revision_id,
        "view_type": view,
        "file_category": shot,
        "collection_id": collection_id,
    }
    needed = {
        "base_view": {"revision_id", "view_type"},
        "closeup": {"file_category"},
        "sketch": {"view_type"},
        "category": set(),
        "complete_pack": {"collection_id"},
    }[file_type]
    allowed = needed | {"closeup": {"view_type"}, "sketch": {"revision_id"}}.get(file_type, set())
    for field, value in given.items():
        if field in needed and not value:
            return field, f"is needed for a {file_type}"
        if value and field not in allowed:
            return field, f"a {file_type} has none; leave it empty"
    return None


def progress(states: Mapping[str, int]) -> tuple[str, int]:
    """Returns (state, percent) of a collection from the number of its live files in each state."""
    total = sum(states.values())
    ended = states.get("completed", 0) + states.get("failed", 0)
    if total == states.get("pending", 0):
        return "pending", 0
    if ended < total:
        return "processing", ended * 100 // total
    return ("failed" if states.get("failed") else "completed"), 100


@dataclass(frozen=True)
class Step:
    """One step of a run, as it was planned. `tech_file_id`: the file that it makes, '' if it makes
    none.

    `reason`: why it is skipped; '' if the request asked for that.
    """

    name: str
    kind: str
    skipped: bool = False
    view: str = ""
    revision_id: str = ""
    asset_id: str = ""
    shot: str = ""
    at: tuple[float, float] | None = None
    tech_file_id: str = ""
    reason: str = ""

    def stored(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> "Step":
        at = stored["at"]
        return cls(**{**stored, "at": (at[0], at[1]) if at else None})


@dataclass(frozen=True)
class Revision:
    """A picture of the product from one side."""

    revision_id: str
    view: str
    asset_id: str


@dataclass(frozen=True)
class Shot:
    """A close-up of a view: what it shows, and where in the view's picture, if that is stated."""

    name: str
    view: str
    at: tuple[float, float] | None = None


def plan(
    revisions: Sequence[Revision], shots: Sequence[Shot], *, primary: str, skip: Sequence[str]
) -> list[Step]:
    """Returns the steps of a run in the order of the pack. `shots` are the close-ups that the facts
    name; without any, each view gets one. `skip` names the kinds to skip.

    A base view that is skipped still has a file, because its picture is in the pack. A close-up of
    a view that no revision shows is skipped: there is no picture to take it from.
    """
    steps = [Step("category", "category", asset_id=primary)]
    steps += [
        _of_view("base_view", revision, skipped="base_view" in skip) for revision in revisions
    ]
    if "closeup" in skip:
        steps.append(Step("closeups", "closeup", skipped=True))
    else:
        steps += _closeups(shots, {revision.view: revision.asset_id for revision in revisions})
    if "sketch" in skip:
        steps.append(Step("sketches", "sketch", skipped=True))
    else:
        steps += [_of_view("sketch", revision) for revision in revisions]
    return [*steps, Step("pack", "complete_pack")]


def _of_view(kind: str, revision: Revision, *, skipped: bool = False) -> Step:
    return Step(
        f"{kind}/{revision.view}",
        kind,
        skipped,
        revision.view,
        revision.revision_id,
        revision.asset_id,
    )


def _closeups(shots: Sequence[Shot], pictures: Mapping[str, str]) -> list[Step]:
    """Returns the steps for close-ups. `pictures`: the asset of each view that a revision shows."""
    wanted = list(shots) or [Shot(f"{view} detail", view) for view in pictures]
    return [
        Step(
            f"closeup/{number}",
            "closeup",
            shot.view not in pictures,
            shot.view,
            asset_id=pictures.get(shot.view, ""),
            shot=shot_of(shot.name),
            at=shot.at,
            reason=(
                ""
                if shot.view in pictures
                else f"no revision shows the {shot.view}, where it is to be taken"
            ),
        )
        for number, shot in enumerate(wanted, 1)
    ]


def shot_of(name: str) -> str:
    """Returns the part of a close-up's name that a file keeps."""
    return name[:200]


def page_side(pictures: int) -> int:
    """Returns the longer side, in pixels, of each of so many pictures in one document."""
    return min(_PAGE_SIDE, int(math.sqrt(_PAGE_PIXELS / max(pictures, 1))))


def object_key(owner: str, collection_id: str, export_id: str, unique: str, suffix: str) -> str:
    """Returns the key of an export in the store. `unique` keeps two attempts apart."""
    return f"{owner_prefix(owner)}{collection_id}/{export_id}/{unique}.{suffix}"


def owner_prefix(owner: str) -> str:
    """Returns the prefix of the keys of all objects of an owner. The owner is quoted, because it
    comes from outside; one that is too long is cut, and has a digest, so that no other owner has
    the same prefix: an erasure removes everything below it."""
    quoted = quote(owner, safe="")
    if len(quoted) > 200:
        quoted = f"{quoted[:159]}.{hashlib.sha256(owner.encode()).hexdigest()[:40]}"
    return f"techfiles/{quoted}/"


def holder(product_id: str) -> str:
    """Returns the holder of the references that a product's files and runs have to assets. A
    reference is released once nothing of the product has the picture any more."""
    return f"techfiles/products/{product_id}"


def completeness(findings: Mapping[str, Any]) -> float:
    """Returns the fraction of the fields of findings, two levels deep, that hold something. 0 and
    False are something; an empty text or list isn't."""
    fields: list[Any] = []
    for value in findings.values():
        fields += value.values() if isinstance(value, Mapping) and value else [value]
    held = sum(value not in (None, "", [], {}) for value in fields)
    return held / len(fields) if fields else 0.0


def slot_name(name: str) -> str:
    """Returns the form in which names are compared: `Zipper Detail` and `zipper  detail ` name one
    slot. It is composed (NFC), folded in case, with single spaces."""
    folded = unicodedata.normalize("NFC", name).casefold()
    return unicodedata.normalize("NFC", " ".join(folded.split()))

"""Rules of `assets` as pure functions and tables: kinds, states, limits, names."""

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from functools import lru_cache
from urllib.parse import quote

from shared.formats import names

ASSET_STATES: Mapping[str, frozenset[str]] = {
    "pending": frozenset({"ready", "rejected"}),
    "ready": frozenset(),
    "rejected": frozenset(),
}
# States of renditions, imports, backfills and runs.
JOB_STATES: Mapping[str, frozenset[str]] = {
    "pending": frozenset({"running", "failed", "cancelled"}),
    "running": frozenset({"running", "pending", "done", "failed", "cancelled"}),
    "done": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}
VARIANT_STATES: Mapping[str, frozenset[str]] = {
    "pending": frozenset({"processing", "failed"}),
    "processing": frozenset({"processing", "pending", "ready", "failed"}),
    "ready": frozenset({"pending"}),
    "failed": frozenset({"pending"}),
}

_PEOPLE = frozenset({"user", "vendor", "anonymous"})
# The roles that may upload a kind from outside. Services upload SERVICE_KINDS; a render may also
# come from an operator.
KIND_ROLES: Mapping[str, frozenset[str]] = {
    "photo": _PEOPLE,
    "floorplan": _PEOPLE,
    "document": frozenset({"user", "vendor"}),
    "user": _PEOPLE,
    "cloth": _PEOPLE,
    "product": frozenset({"user", "vendor"}),
    "reference": _PEOPLE,
    "style": frozenset({"admin"}),
    "logo": frozenset({"user", "vendor"}),
    "dataset": frozenset({"user", "vendor"}),
    "render": frozenset({"admin"}),
}
SERVICE_KINDS = frozenset({"render", "result", "generated", "closeup", "sketch", "export"})
# Photographs of people: public only if their owner says so.
_NEVER_PUBLIC_BY_ITSELF = frozenset({"user"})
PDF_KINDS = frozenset({"document", "floorplan", "export"})

PDF = "application/pdf"
IMAGE_TYPES = frozenset(
    {"image/jpeg", "image/png", "image/webp", "image/avif", "image/gif", "image/tiff", "image/heic"}
)

PART_BYTES = 8 * 1024 * 1024
MOST_PARTS = 1000


def public_kinds(names: Sequence[str]) -> frozenset[str]:
    """Returns the kinds of the setting `public_kinds`. Raises ValueError for one that doesn't exist
    or can't be public by itself."""
    possible = (KIND_ROLES.keys() | SERVICE_KINDS) - _NEVER_PUBLIC_BY_ITSELF
    for name in names:
        if name not in possible:
            raise ValueError(
                f"public_kinds: {name!r} can't be public by itself; these can:"
                f" {', '.join(sorted(possible))}"
            )
    return frozenset(names)


def type_problem(kind: str, mime_type: str) -> str | None:
    """Returns why a declared type is not accepted for the kind, or None."""
    if mime_type.startswith("video/"):
        return "video is not supported; send a still picture"
    if mime_type == PDF:
        return None if kind in PDF_KINDS else f"a {kind} is a picture, not a PDF"
    if mime_type not in IMAGE_TYPES:
        return f"{mime_type[:60]!r} is not accepted; send JPEG, PNG, WebP, AVIF, GIF, TIFF or PDF"
    return None


def may_upload(kind: str, role: str, through_service: bool) -> bool:
    return through_service or role in KIND_ROLES.get(kind, ())


def who_uploads(kind: str) -> str:
    """Returns who may upload the kind, as the end of an error message."""
    roles = [*sorted(KIND_ROLES.get(kind, ())), *(["services"] if kind in SERVICE_KINDS else [])]
    return f"it is for {', '.join(roles)}"


def provenance_problem(kind: str, given: Mapping[str, object] | None) -> tuple[str, str] | None:
    """Returns (field below the declaration, what is wrong) for the provenance of a file of this
    kind, or None if it is right. `given` is None if the caller sent no provenance."""
    if given is not None and kind not in SERVICE_KINDS:
        return "provenance", f"a {kind} was not made by a model"
    if kind == "render":
        for name in ("prompt", "model", "model_version"):
            if not (given or {}).get(name):
                return (
                    f"provenance.{name}",
                    "is required of a render: what was asked of which model",
                )
    return None


def part_bytes(size: int) -> int:
    """Returns the size in bytes of every part but the last, for a file of `size` bytes: 8 MiB, or
    as many whole MiB as keep the file to 1,000 parts."""
    mebibyte = 1024 * 1024
    return max(PART_BYTES, -(-size // (MOST_PARTS * mebibyte)) * mebibyte)


def part_sizes(size: int, each: int) -> dict[int, int]:
    """Returns the size in bytes of each part, by its number from 1."""
    count = -(-size // each)
    return {number: min(each, size - (number - 1) * each) for number in range(1, count + 1)}


def plain_text(text: str) -> str:
    """Returns the text in NFC, on one line, with single spaces and without invisible characters;
    empty if nothing is left."""
    one_line = "".join(" " if c.isspace() else c for c in text)
    return names.trimmed(" ".join(names.without_hidden(one_line).split()))


def name_key(name: str) -> str:
    """Returns a key that is equal for names that a person takes for the same one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


_LABEL_BYTES = 120


@lru_cache(4096)
def _segment(label: str) -> str:
    """Quotes a label as part of a key: at most 120 bytes, and never `.` or `..`, which `quote`
    leaves alone."""
    return (
        quote(label, safe="")[:_LABEL_BYTES].replace(".", "%2E")
        if label in (".", "..")
        else quote(label, safe="")[:_LABEL_BYTES]
    )


def object_key(
    owner: str, scope: Mapping[str, str], asset_id: str, unique: str, *, folder: str, public: bool
) -> str:
    """Returns the storage key `assets/<owner>/<scope>/<asset>/<folder>/<unique>`, or for a public
    object `public/assets/<asset>/<folder>/<unique>`: a public object's URL is its key and must not
    reveal its owner or scope.

    The scope is the labels that are set, as session/room/product/dataset, so that a person finds
    objects in a bucket. Labels are quoted: they come from outside.
    """
    named = [
        scope[name]
        for name in ("session_id", "room_id", "product_id", "dataset_id")
        if scope.get(name)
    ]
    parts = ["public", "assets"] if public else ["assets", _owner_label(owner), *named]
    return "/".join(_segment(part) for part in [*parts, asset_id, folder, unique])


def _owner_label(owner: str) -> str:
    """Returns the owner as a label of a key. One that is too long has a digest at its end, so that
    no other owner has the same prefix: an erasure removes everything below it."""
    if len(quote(owner, safe="")) <= _LABEL_BYTES:
        return owner
    return f"{owner[:26]}.{hashlib.sha256(owner.encode()).hexdigest()[:40]}"


def owner_prefix(owner: str) -> str:
    """Returns the prefix of the keys of all private objects of an owner."""
    return f"assets/{_segment(_owner_label(owner))}/"


# Which call of a service lets go of the pictures that a thing holds, by how the holder begins.
_LETS_GO: Mapping[str, str] = {
    "conversions/conversions/": "CancelConversion lets go, DeleteConversion once it has ended",
    "conversions/generations/": "CancelGeneration lets go, DeleteGeneration once it has ended",
    "conversions/analyses/": "CancelAnalysis lets go, DeleteAnalysis once it has ended",
    "conversions/datasets/": "RemoveDatasetImages, UpdateDataset or PurgeDataset lets go of it",
    "pipeline/products/": "RemoveProductImages or PurgeProduct lets go of it",
    "techfiles/products/": (
        "PurgeTechFile of the product's files that show it lets go, and PurgeTechPackRun of the"
        " runs that were made from it"
    ),
    "assets/documents/": "PurgeDocument lets go of it",
    "assets/comparisons/": "DeleteComparison lets go of it",
}


def lets_go(holder: str) -> str:
    """Returns what lets go of the references of a service's holder."""
    for beginning, how in _LETS_GO.items():
        if holder.startswith(beginning):
            return how
    return "it is held for good"

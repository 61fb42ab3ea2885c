"""Freezes what a collection holds as a release, in one transaction."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from psycopg.types.json import Jsonb

from services.techfiles import collection_rows, contents, pack_rows, release_rows
from services.techfiles.collection_rows import COLLECTIONS, Collection
from services.techfiles.findings import Reading
from services.techfiles.release_rows import RELEASES, Release
from services.techfiles.sourcing import MerelyFound
from services.techfiles.tech_file_rows import TECH_FILES, TechFile
from shared.database.db import Mutation
from shared.database.ids import new_id
from shared.database.rows import Command, Statement
from shared.formats.facts import parse_facts
from shared.rpc import errors

_CHUNK = 20  # files in memory at once: each may have 256 KiB
_MOST_LISTED = 200
_MOST_CHARACTERS = 500
_MOST_NAMED = 5


@dataclass(slots=True)
class FinishedFile:
    """A finished file of a collection."""

    id: UUID
    file_asset_id: UUID | None


_SHARE_COLLECTION = Statement(
    Collection, f"SELECT {COLLECTIONS.columns} FROM collections WHERE id = %(id)s FOR SHARE"
)
SELECT_FINISHED = Statement(
    FinishedFile,
    """
    SELECT f.id, f.file_asset_id
    FROM collection_items i JOIN tech_files f ON f.id = i.tech_file_id
    WHERE i.collection_id = %(id)s AND f.state = 'completed' AND f.archived_at IS NULL
        AND f.deleted_at IS NULL
    ORDER BY i.section, i.display_order
    """,
)
_HOLD_FILES = Statement(FinishedFile, f"{SELECT_FINISHED.text} FOR SHARE OF f")
_SELECT_FILES = Statement(
    TechFile, f"SELECT {TECH_FILES.columns} FROM tech_files WHERE id = ANY(%(ids)s)"
)
# It can't be withdrawn meanwhile.
_SHARE_LATEST = Statement(Release, f"{release_rows.SELECT_LATEST.text} FOR SHARE")
_INSERT = Statement(
    Release,
    f"""
    INSERT INTO releases (id, owner, created_by, product_id, collection_id, name, note, previous_id,
        previous_number, facts_number, file_count, source_product_id, nothing_merely_found,
        merely_found, merely_found_count)
    VALUES (%(id)s, %(owner)s, %(actor)s, %(product_id)s, %(collection_id)s, %(name)s, %(note)s,
        %(previous_id)s, %(previous_number)s, %(facts_number)s, %(file_count)s,
        (SELECT source_product_id FROM runs
         WHERE collection_id = %(collection_id)s AND source_product_id IS NOT NULL
         ORDER BY created_at DESC LIMIT 1),
        %(nothing_merely_found)s, %(merely_found)s, %(merely_found_count)s)
    RETURNING {RELEASES.columns}
    """,
)
_FREEZE_COLLECTION = Command("""
    INSERT INTO release_contents (release_id, owner, collection)
    SELECT %(id)s, owner, to_jsonb(c) FROM collections c WHERE id = %(collection_id)s
""")
# With the jobs of the last run that made the file.
_FREEZE_FILES = Command("""
    WITH made AS (
        SELECT DISTINCT ON (p.step ->> 'tech_file_id') p.step ->> 'tech_file_id' AS file_id,
            s.generation_id, s.analysis_id
        FROM runs r, jsonb_array_elements(r.plan) AS p (step), run_steps s
        WHERE r.collection_id = %(collection_id)s AND s.run_id = r.id
            AND s.name = p.step ->> 'name' AND s.state = 'completed'
        ORDER BY p.step ->> 'tech_file_id', s.created_at DESC)
    INSERT INTO release_files (release_id, owner, position, tech_file_id, product_id, file_type,
        view_type, file_category, number, section, asset_id, asset_sha256, generation_id,
        analysis_id, snapshot)
    SELECT %(id)s, f.owner, row_number() OVER (ORDER BY i.section, i.display_order), f.id,
        f.product_id, f.file_type, f.view_type, f.file_category, f.number, i.section,
        f.file_asset_id, coalesce(%(sha256)s::jsonb ->> f.file_asset_id::text, ''),
        coalesce(made.generation_id, ''), coalesce(made.analysis_id, ''), to_jsonb(f)
    FROM collection_items i JOIN tech_files f ON f.id = i.tech_file_id
    LEFT JOIN made ON made.file_id = f.id::text
    WHERE i.collection_id = %(collection_id)s AND f.id = ANY(%(file_ids)s)
""")


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller wants of a release. `sha256`: of the pictures' bytes, by asset."""

    collection_id: UUID
    collection_etag: str
    name: str
    note: str
    nothing_merely_found: bool
    sha256: Mapping[str, str]


async def freeze(m: Mutation, wish: Wish) -> tuple[Release, Collection]:
    """Adds a draft with all that the collection holds, and publishes it. Raises NOT_FOUND,
    ETAG_MISMATCH and FAILED_PRECONDITION as CreateRelease says, and ABORTED if files were added
    after `wish.sha256` was read."""
    collection = await m.first(_SHARE_COLLECTION, {"id": wish.collection_id})
    if collection is None:
        raise errors.not_found("collection", wish.collection_id)
    errors.check_etag(wish.collection_etag, collection.version, "collection", collection.id)
    collection_rows.refuse_deleted(collection)
    await _refuse_open_run(m, collection.id)
    held = await m.all(_HOLD_FILES, {"id": collection.id})
    _check_files(collection.id, held, wish.sha256)
    merely = await _merely_found(m, collection, [file.id for file in held])
    if merely and wish.nothing_merely_found:
        _refuse_merely_found(collection.id, merely)
    product = {"owner": m.owner, "product_id": collection.product_id}
    previous = await m.first(_SHARE_LATEST, product)
    values = {
        **product,
        "id": new_id(),
        "actor": m.actor,
        "collection_id": collection.id,
        "name": wish.name,
        "note": wish.note,
        "previous_id": previous and previous.id,
        "previous_number": previous and previous.number,
        "facts_number": collection.facts_number,
        "file_count": len(held),
        "nothing_merely_found": wish.nothing_merely_found,
        "merely_found": Jsonb([_listed(each) for each in merely[:_MOST_LISTED]]),
        "merely_found_count": len(merely),
        "file_ids": [file.id for file in held],
        "sha256": Jsonb(dict(wish.sha256)),
    }
    row = await m.one(_INSERT, values)
    await m.run(_FREEZE_COLLECTION, values)
    await m.run(_FREEZE_FILES, values)
    await release_rows.publish(m, row)
    return row, collection


async def _refuse_open_run(m: Mutation, collection_id: UUID) -> None:
    named = {"collection_id": collection_id, "export_id": None}
    going_on = await m.first(pack_rows.SELECT_UNENDED, named)
    if going_on:
        raise errors.precondition(
            f"run {going_on} still fills the collection; wait for it with WatchTechPackRun, or"
            " cancel it (CancelTechPackRun)",
            subject=f"runs/{going_on}",
        )


def _check_files(collection_id: UUID, held: list[FinishedFile], sha256: Mapping[str, str]) -> None:
    """Raises if the collection holds no finished file, or a picture that isn't known."""
    if not held:
        raise errors.precondition(
            "the collection holds no finished file; GenerateTechPack makes a pack, AddFiles adds"
            " files",
            subject=f"collections/{collection_id}",
        )
    for file in held:
        if file.file_asset_id and str(file.file_asset_id) not in sha256:
            raise errors.precondition(
                f"the picture {file.file_asset_id} of the file {file.id} is gone, or was added a"
                " moment ago; repeat the call, and if that doesn't help, give the file a picture"
                " (UpdateTechFile) or take it out (RemoveFiles)",
                subject=f"tech_files/{file.id}",
            )


async def _merely_found(
    m: Mutation, collection: Collection, file_ids: list[UUID]
) -> list[MerelyFound]:
    reading = Reading()
    for start in range(0, len(file_ids), _CHUNK):
        ids = file_ids[start : start + _CHUNK]
        rows = {row.id: row for row in await m.all(_SELECT_FILES, {"ids": ids})}
        await asyncio.to_thread(reading.add, [rows[file_id] for file_id in ids])
    return await asyncio.to_thread(
        contents.merely_found, reading.taken, parse_facts(collection.facts)
    )


def _refuse_merely_found(collection_id: UUID, merely: list[MerelyFound]) -> None:
    named = ", ".join(f"{each.key} ({each.file})" for each in merely[:_MOST_NAMED])
    more = f" and {len(merely) - _MOST_NAMED} more" if len(merely) > _MOST_NAMED else ""
    raise errors.precondition(
        f"only a model says: {named}{more}; state these facts (UpdateCollectionFacts), have them"
        " confirmed in a review of the product, or release without nothing_merely_found",
        subject=f"collections/{collection_id}",
    )


def _listed(found: MerelyFound) -> dict[str, str]:
    return {"key": found.key, "says": found.value[:_MOST_CHARACTERS], "where": found.file}

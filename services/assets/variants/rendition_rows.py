"""Renditions: the jobs that make an asset's pending variants, all from one decode. A `renditions`
row is the job, `variants` rows its results."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from services.assets.core import asset_rows
from services.assets.core.asset_rows import VARIANTS, LockedAsset, Variant
from shared.background import jobs
from shared.background.job_tables import JobRow
from shared.database.db import Mutation
from shared.database.ids import new_id
from shared.database.rows import Command, Statement, Table
from shared.imaging import Reason

TASK = "make_variants"
QUEUE = "images"
# The original is at fault: a retry with the same bytes changes nothing.
UNDECODABLE = (str(Reason.CORRUPT), str(Reason.NOT_SUPPORTED), str(Reason.TYPE_NOT_ALLOWED))


@dataclass(slots=True)
class Rendition(JobRow):
    asset_id: UUID
    presets: list[str]
    for_others: bool
    backfill_id: UUID | None


RENDITIONS = Table("renditions", Rendition)

_INSERT_VARIANTS = Statement(
    Variant,
    f"""
    INSERT INTO variants AS v (id, owner, asset_id, preset)
    SELECT wanted.id, %(owner)s, %(asset_id)s::uuid, wanted.preset
    FROM unnest(%(ids)s::uuid[], %(presets)s::text[]) AS wanted (id, preset)
    ON CONFLICT (asset_id, preset) DO UPDATE
    SET state = 'pending', version = v.version + 1, updated_at = now(), error_class = '',
        error_message = '', waits_for = '', waiting_since = NULL
    WHERE v.state = ANY(%(again)s) RETURNING {VARIANTS.columns}
    """,
)
_INSERT_RENDITION = Command("""
    INSERT INTO renditions (id, owner, asset_id, presets, for_others, backfill_id)
    VALUES (%(id)s, %(owner)s, %(asset_id)s, %(presets)s, %(for_others)s, %(backfill_id)s)
""")
_SELECT_VARIANTS = Statement(
    Variant,
    f"SELECT {VARIANTS.columns} FROM variants WHERE asset_id = %(asset_id)s ORDER BY preset",
)


async def plan(
    m: Mutation,
    asset: LockedAsset,
    presets: Sequence[str],
    *,
    again: Sequence[str],
    for_others: bool = False,
    backfill_id: UUID | None = None,
) -> UUID | None:
    """Writes PENDING variants of a READY image, and the rendition that is to make them. Returns the
    rendition's id, or None if there is nothing to do.

    Variants that are being made are left alone; those that ended are made again if their state is
    in `again`. The caller enqueues or runs the rendition.
    """
    whose = {"owner": m.owner, "asset_id": asset.id}
    ids = [new_id() for _ in presets]
    variants = {**whose, "ids": ids, "presets": list(presets), "again": list(again)}
    wanted = await m.all(_INSERT_VARIANTS, variants)
    for row in wanted:
        await asset_rows.publish_variant(m, row)
    if not wanted:
        return None
    rendition = new_id()
    await m.run(
        _INSERT_RENDITION,
        {
            **whose,
            "id": rendition,
            "presets": [row.preset for row in wanted],
            "for_others": for_others,
            "backfill_id": backfill_id,
        },
    )
    return rendition


async def ask(
    m: Mutation,
    queue: jobs.JobQueue,
    asset: LockedAsset,
    presets: Sequence[str],
    *,
    priority: int,
    again: Sequence[str] = ("ready", "failed"),
    for_others: bool = False,
) -> list[Variant]:
    """Plans the variants as `plan` does, and enqueues the rendition. Returns all variants of the
    asset."""
    rendition = await plan(m, asset, presets, again=again, for_others=for_others)
    if rendition:
        await queue.enqueue(m, TASK, QUEUE, rendition, priority=priority)
    return await m.all(_SELECT_VARIANTS, {"asset_id": asset.id})

"""What a picture was made from, as far back as it goes, in one statement."""

from collections.abc import Collection
from dataclasses import dataclass
from uuid import UUID

from shared.database.db import Database
from shared.database.rows import Statement
from shared.rpc import auth

MOST_INPUTS = 1000
_DEEPEST = 50  # jobs in a row


@dataclass(slots=True)
class Ancestor:
    """A picture that went into a job, which made the picture asked for or one of its ancestors, or
    of which such a picture is a labelled copy: then `role` is empty."""

    asset_id: UUID
    role: str


@dataclass(slots=True)
class Maker:
    """The job that made a picture. `job`: its table. `provider`: empty for an outside worker, and
    with `model` once the job is purged."""

    asset_id: UUID
    job: str
    job_id: UUID
    provider: str
    model: str


_SELECT_ANCESTORS = Statement(
    Ancestor,
    """
    WITH RECURSIVE back (asset_id, role, depth) AS (
        SELECT each.id, '', 0 FROM unnest(%(ids)s::uuid[]) AS each (id)
        UNION
        SELECT each.asset_id, each.role, b.depth + 1
        FROM back b
        CROSS JOIN LATERAL (
            SELECT i.asset_id, i.role FROM (
                SELECT id FROM conversions
                WHERE owner = %(owner)s AND state = 'completed' AND result_asset_id = b.asset_id
                UNION ALL
                SELECT id FROM generations
                WHERE owner = %(owner)s AND state = 'completed' AND result_asset_id = b.asset_id
                UNION ALL
                SELECT job_id FROM purged_makers
                WHERE owner = %(owner)s AND result_asset_id = b.asset_id
            ) AS m
            JOIN job_inputs i ON i.owner = %(owner)s AND i.job_id = m.id
            UNION ALL
            SELECT asset_id, '' FROM picture_copies
            WHERE owner = %(owner)s AND copy_asset_id = b.asset_id
        ) AS each
        WHERE b.depth < %(deepest)s
    )
    SELECT asset_id, role FROM back WHERE depth > 0
    GROUP BY asset_id, role ORDER BY min(depth), asset_id, role LIMIT %(most)s
    """,
)
# Of the jobs that share a picture, the one that made it: the others were answered from it.
_MAKERS = """
    SELECT result_asset_id AS asset_id, '{table}' AS job, id AS job_id,
        COALESCE(recipe ->> 'provider', '') AS provider, COALESCE(recipe ->> 'model', '') AS model
    FROM {table}
    WHERE owner = %(owner)s AND state = 'completed' AND result_asset_id = ANY(%(ids)s)
        AND answered_from IS NULL
"""
_PURGED_MAKERS = """
    SELECT result_asset_id AS asset_id, job, job_id, '' AS provider, '' AS model
    FROM purged_makers
    WHERE owner = %(owner)s AND result_asset_id = ANY(%(ids)s) AND NOT answered
"""
_SELECT_MAKERS = Statement(
    Maker,
    " UNION ALL ".join(
        (
            _PURGED_MAKERS,
            *(_MAKERS.format(table=table) for table in ("conversions", "generations")),
        )
    ),
)


async def ancestors(db: Database, asset_ids: Collection[UUID]) -> list[Ancestor]:
    """Returns what went into pictures, nearest first: one more than MOST_INPUTS if there is
    more."""
    values = {
        "owner": auth.current().owner,
        "ids": list(asset_ids),
        "deepest": _DEEPEST,
        "most": MOST_INPUTS + 1,
    }
    return await db.all(_SELECT_ANCESTORS, values)


async def makers(db: Database, asset_ids: Collection[UUID]) -> dict[UUID, Maker]:
    """Returns the caller's jobs that made these pictures, purged ones too, by picture."""
    values = {"owner": auth.current().owner, "ids": list(asset_ids)}
    return {each.asset_id: each for each in await db.all(_SELECT_MAKERS, values)}

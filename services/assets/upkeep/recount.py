"""Recounts: compares the counted figures of storage and albums with the rows, owner by owner.

A figure is the folded row plus the deltas that aren't folded yet. One statement reads figures and
rows, so that concurrent changes are in both or in neither, and the difference can be added at any
later time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from services.assets.accounting.folding import lock_folding
from services.assets.accounting.usage_rows import DEPLOYMENT, STOCKED, PerOwner, Stock
from services.assets.upkeep.run_rows import Report
from services.assets.upkeep.walking import Walk
from shared.database.db import Mutation
from shared.database.rows import Command, Statement


@dataclass(slots=True)
class _Place:
    """By how much the figures of a session differ. Session '' stands for the owner as a whole."""

    session_id: str
    number: int
    bytes: int


_SELECT_NEXT_OWNER = Statement(
    str,
    """
    SELECT owner FROM (
        (SELECT owner FROM storage_totals WHERE owner > %(after)s ORDER BY owner LIMIT 1)
        UNION ALL (SELECT owner FROM storage_places WHERE owner > %(after)s ORDER BY owner LIMIT 1)
        UNION ALL (SELECT owner FROM assets WHERE owner > %(after)s ORDER BY owner LIMIT 1)
        UNION ALL (SELECT owner FROM documents WHERE owner > %(after)s ORDER BY owner LIMIT 1)
    ) AS following ORDER BY owner LIMIT 1
    """,
)
_HOLD_OFF_ERASING = Command(  # the lock that refuse_erased_owner takes
    "SELECT pg_advisory_xact_lock_shared(hashtextextended(%(owner)s, 11))"
)
# No figures are kept of an erased owner, even while rows of it are left.
_SELECT_ERASED = Statement(str, "SELECT owner FROM erased_owners WHERE owner = %(owner)s")
# One statement reads all rows of an owner, which takes long. A timeout that is running can only be
# ended (0) and begun anew. `transaction_timeout` exists since Postgres 17.
_TAKE_TIME = Command("""
    SELECT set_config(name, '0', true) AS ended, set_config(name, '10min', true) AS begun
        FROM pg_settings
    WHERE name IN ('statement_timeout', 'transaction_timeout')
""")
# Variants are found by their assets: they have no index by owner, which would cost a write for each
# of them.
_THERE = """
    there AS (
        SELECT 'asset' AS noun, kind, mime_type, counted_state(state, deleted_at,
            archived_at) AS state, session_id,
               count(*) AS number, sum(CASE WHEN state = 'rejected' THEN 0
                   ELSE size_bytes END) AS bytes
        FROM assets WHERE {whose} GROUP BY 2, 3, 4, 5
        UNION ALL
        SELECT 'variant', preset, mime_type, state, '', count(*), sum(size_bytes)
        FROM variants WHERE {whose} AND asset_id IN (SELECT id FROM assets WHERE {whose})
            GROUP BY 2, 3, 4
        UNION ALL
        SELECT 'document', kind, '', state, session_id, count(*), sum(size_bytes)
        FROM documents WHERE {whose} GROUP BY 2, 4, 5
    )
"""
_SELECT_TOTAL_DRIFTS = PerOwner(
    Stock,
    f"""
    WITH {_THERE}, compared AS (
        SELECT noun, kind, mime_type, state, number, bytes FROM there
        UNION ALL
        SELECT noun, kind, mime_type, state, -number, -bytes FROM storage_totals WHERE owner
            = %(owner)s
        UNION ALL
        SELECT noun, kind, mime_type, state, -number, -bytes FROM storage_deltas WHERE {STOCKED}
            AND {{whose}}
    )
    SELECT noun, kind, mime_type, state, sum(number)::bigint AS number,
        sum(bytes)::bigint AS bytes FROM compared
    GROUP BY noun, kind, mime_type, state HAVING sum(number) <> 0 OR sum(bytes) <> 0
    """,
)
_ADD_TO_TOTALS = Command("""
    INSERT INTO storage_totals AS t (owner, noun, kind, mime_type, state, number, bytes)
    SELECT %(owner)s, noun, kind, mime_type, state, number, bytes
    FROM unnest(%(nouns)s::text[], %(kinds)s::text[], %(mime_types)s::text[], %(states)s::text[],
            %(numbers)s::bigint[], %(bytes)s::bigint[])
        AS drift (noun, kind, mime_type, state, number, bytes)
    ON CONFLICT (owner, noun, kind, mime_type, state)
    DO UPDATE SET number = t.number + excluded.number, bytes = t.bytes + excluded.bytes
""")
_SELECT_PLACE_DRIFTS = PerOwner(
    _Place,
    f"""
    WITH {_THERE}, counted AS (
        SELECT session_id, noun, state, number, bytes FROM there
        UNION ALL
        SELECT session_id, noun, state, -number, -bytes FROM storage_deltas WHERE {STOCKED}
            AND {{whose}}
    ), compared AS (
        SELECT '' AS session_id, noun, state, number, bytes FROM counted
        UNION ALL
        SELECT session_id, noun, state, number, bytes FROM counted WHERE session_id <> ''
        UNION ALL
        SELECT session_id, 'asset', 'counted', -assets, -stored_bytes FROM storage_places
            WHERE owner = %(owner)s
    ), different AS (
        SELECT session_id, coalesce(sum(number) FILTER (WHERE noun = 'asset' AND state
            <> 'rejected'), 0)::bigint
                   AS number, sum(bytes)::bigint AS bytes
        FROM compared GROUP BY session_id
    )
    SELECT session_id, number, bytes FROM different WHERE (number, bytes) <> (0, 0)
    """,
)
_ADD_TO_PLACES = Command("""
    INSERT INTO storage_places AS t (owner, session_id, assets, stored_bytes, sent_bytes)
    SELECT %(owner)s, session_id, number, bytes, 0
    FROM unnest(%(sessions)s::text[], %(numbers)s::bigint[], %(bytes)s::bigint[])
        AS drift (session_id, number, bytes)
    ON CONFLICT (owner, session_id) DO UPDATE SET assets = t.assets + excluded.assets,
        stored_bytes = t.stored_bytes + excluded.stored_bytes
""")
_SELECT_DRIFTED_ALBUMS = Statement(
    UUID,
    """
    SELECT a.id FROM albums a LEFT JOIN album_assets i ON i.album_id = a.id WHERE a.owner
        = %(owner)s
    GROUP BY a.id HAVING (a.asset_count, a.public_count)
        <> (count(*) FILTER (WHERE i.shown), count(*) FILTER (WHERE i.shown AND i.public))
    ORDER BY a.id
    """,
)
# The album is locked first and counted by a later statement: whoever adds to an album counts under
# its lock.
_LOCK_ALBUM = Command("SELECT FROM albums WHERE id = %(id)s FOR UPDATE")
_COUNT_ALBUM = Command("""
    UPDATE albums SET (asset_count, public_count) = (
        SELECT count(*) FILTER (WHERE shown), count(*) FILTER (WHERE shown AND public)
        FROM album_assets WHERE album_id = %(id)s)
    WHERE id = %(id)s
""")


async def recount(walk: Walk) -> None:
    """Adds the differences to the run's report and, unless it is a dry run, mends them. Goes on
    after the last owner that the run recounted."""
    while True:
        after = walk.report.cursors.get("recounted", "")
        owners = await walk.db.system_all(_SELECT_NEXT_OWNER, {"after": after})
        if not owners:
            return
        async with walk.step(owners[0]) as (m, report):
            await _recount(m, report, owners[0], dry=walk.arguments.dry_run)
            report.cursors["recounted"] = owners[0]


async def _recount(m: Mutation, report: Report, owner: str, *, dry: bool) -> None:
    mine = {"owner": owner}
    await m.run(_TAKE_TIME)
    albums = await m.all(_SELECT_DRIFTED_ALBUMS, mine)
    totals = await m.all(_SELECT_TOTAL_DRIFTS.of(owner), mine)
    # The deployment has no sessions, and isn't shown in the list of the largest owners.
    places = [] if owner == DEPLOYMENT else await m.all(_SELECT_PLACE_DRIFTS.of(owner), mine)
    if not dry:
        await lock_folding(m)  # folding writes the same rows, in another order
    # Checked only after counting: rows that an erasure deleted meanwhile would be taken for a
    # difference, and added after it.
    await m.run(_HOLD_OFF_ERASING, mine)
    if await m.first(_SELECT_ERASED, mine) is not None:
        return
    count = report.count("drifted_albums")
    count.note(albums)
    for album in [] if dry else albums:
        await m.run(_LOCK_ALBUM, {"id": album})
        await m.run(_COUNT_ALBUM, {"id": album})
        count.done += 1
    kinds = [f"{row.noun}s {row.kind} {row.mime_type} {row.state}" for row in totals]
    _note(report, owner, kinds, totals, dry)
    _note(report, owner, [f"session {row.session_id!r}" for row in places], places, dry)
    if not dry:
        await _mend(m, owner, totals, places)


class _Drift(Protocol):
    @property
    def number(self) -> int: ...
    @property
    def bytes(self) -> int: ...


def _note(
    report: Report, owner: str, names: Sequence[str], rows: Sequence[_Drift], dry: bool
) -> None:
    count = report.count("drifted_figures")
    count.note(
        [
            f"{owner}: {name}: {row.number:+} ({row.bytes:+} bytes)"
            for name, row in zip(names, rows, strict=True)
        ]
    )
    count.done += 0 if dry else len(rows)


async def _mend(m: Mutation, owner: str, totals: Sequence[Stock], places: Sequence[_Place]) -> None:
    if totals:
        values = {
            "owner": owner,
            "nouns": [row.noun for row in totals],
            "kinds": [row.kind for row in totals],
            "mime_types": [row.mime_type for row in totals],
            "states": [row.state for row in totals],
            "numbers": [row.number for row in totals],
            "bytes": [row.bytes for row in totals],
        }
        await m.run(_ADD_TO_TOTALS, values)
    if places:
        values = {
            "owner": owner,
            "sessions": [row.session_id for row in places],
            "numbers": [row.number for row in places],
            "bytes": [row.bytes for row in places],
        }
        await m.run(_ADD_TO_PLACES, values)

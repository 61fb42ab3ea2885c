"""Figures and rows agree: what was counted of storage and of albums is held against what is there,
owner by owner.

A figure is what is folded plus what isn't yet. Both it and the rows are read by one statement, so
that what others do meanwhile changes both sides or neither, and the difference can be added at any
later time.
"""

from collections.abc import Sequence
from typing import Any, LiteralString

from services.assets.accounting.usage import DEPLOYMENT, STOCKED, hold_folding
from services.assets.upkeep.runs import Report, Walk
from shared.database.db import Mutation

# Of an owner who is erased nothing is kept, whatever of it is still there.
_NEXT_OWNER = """
    SELECT min(owner) AS owner FROM (
        (SELECT owner FROM storage_totals WHERE owner > %(after)s ORDER BY owner LIMIT 1)
        UNION ALL (SELECT owner FROM storage_places WHERE owner > %(after)s ORDER BY owner LIMIT 1)
        UNION ALL (SELECT owner FROM assets WHERE owner > %(after)s ORDER BY owner LIMIT 1)
        UNION ALL (SELECT owner FROM documents WHERE owner > %(after)s ORDER BY owner LIMIT 1)
    ) AS following
"""
_HOLD_ERASING = (  # as refuse_erased_owner does
    "SELECT pg_advisory_xact_lock_shared(hashtextextended(%(owner)s, 11))"
)
_ERASED = "SELECT FROM erased_owners WHERE owner = %(owner)s"
# One statement reads all that an owner has. A limit of transactions that is running can only be
# ended and begun anew; there is one since Postgres 17.
_TAKE_TIME = """
    SELECT set_config(name, '0', true) AS ended, set_config(name, '10min', true) AS begun
        FROM pg_settings
    WHERE name IN ('statement_timeout', 'transaction_timeout')
"""
# Variants are found by their assets: they have no index by owner, which each of them would have to
# be written into.
_THERE: LiteralString = """
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
_TOTALS: LiteralString = f"""
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
"""
_ADD_TO_TOTALS = """
    INSERT INTO storage_totals AS t (owner, noun, kind, mime_type, state, number, bytes)
    SELECT %(owner)s, * FROM unnest(%(noun)s::text[], %(kind)s::text[], %(mime_type)s::text[],
        %(state)s::text[],
                                    %(number)s::bigint[], %(bytes)s::bigint[])
    ON CONFLICT (owner, noun, kind, mime_type, state)
    DO UPDATE SET number = t.number + excluded.number, bytes = t.bytes + excluded.bytes
"""
# The owner as a whole has the empty session.
_PLACES: LiteralString = f"""
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
"""
_ADD_TO_PLACES = """
    INSERT INTO storage_places AS t (owner, session_id, assets, stored_bytes, sent_bytes)
    SELECT %(owner)s, *, 0 FROM unnest(%(session_id)s::text[], %(number)s::bigint[],
        %(bytes)s::bigint[])
    ON CONFLICT (owner, session_id) DO UPDATE SET assets = t.assets + excluded.assets,
        stored_bytes = t.stored_bytes + excluded.stored_bytes
"""
_ALBUMS = """
    SELECT a.id FROM albums a LEFT JOIN album_assets i ON i.album_id = a.id WHERE a.owner
        = %(owner)s
    GROUP BY a.id HAVING (a.asset_count, a.public_count)
        <> (count(*) FILTER (WHERE i.shown), count(*) FILTER (WHERE i.shown AND i.public))
    ORDER BY a.id
"""
# Locked first, since whoever adds to an album counts under its lock: the rows are looked at by a
# statement after that.
_HOLD_ALBUM = "SELECT FROM albums WHERE id = %(id)s FOR UPDATE"
_COUNT_ALBUM = """
    UPDATE albums SET (asset_count, public_count) = (
        SELECT count(*) FILTER (WHERE shown), count(*) FILTER (WHERE shown AND public)
        FROM album_assets WHERE album_id = %(id)s)
    WHERE id = %(id)s
"""


async def recount(walk: Walk) -> None:
    """Adds to the run's report what differed, and unless it is a dry run, mends it. Goes on where
    it was."""
    while True:
        after = walk.report.cursors.get("recounted", "")
        [following] = await walk.db.system_rows(_NEXT_OWNER, {"after": after})
        if following.owner is None:
            return
        async with walk.step(following.owner) as (m, report):
            await _recount(m, report, following.owner, dry=walk.row.arguments["dry_run"])
            report.cursors["recounted"] = following.owner


async def _recount(m: Mutation, report: Report, owner: str, *, dry: bool) -> None:
    await m.run(_TAKE_TIME)
    albums = [row.id for row in await m.all(_ALBUMS, {"owner": owner})]
    whose: Any = "true" if owner == DEPLOYMENT else "owner = %(owner)s"
    totals = await m.all(_TOTALS.format(whose=whose), {"owner": owner})
    # The deployment has no sessions, and nobody who looks for the largest ones is shown it among
    # its owners.
    places = (
        [] if owner == DEPLOYMENT else await m.all(_PLACES.format(whose=whose), {"owner": owner})
    )
    if not dry:
        await hold_folding(m)  # which writes the same rows, in an order of its own
    # Only now: what an erasure takes away while it is counted would be taken for a drift, and added
    # after it.
    await m.run(_HOLD_ERASING, {"owner": owner})
    if await m.one(_ERASED, {"owner": owner}) is not None:
        return
    count = report.count("drifted_albums")
    count.note(albums)
    for album in [] if dry else albums:
        await m.one(_HOLD_ALBUM, {"id": album})
        await m.run(_COUNT_ALBUM, {"id": album})
        count.done += 1
    _note(
        report,
        owner,
        [f"{row.noun}s {row.kind} {row.mime_type} {row.state}" for row in totals],
        totals,
        dry,
    )
    _note(report, owner, [f"session {row.session_id!r}" for row in places], places, dry)
    if not dry:
        await _add(m, _ADD_TO_TOTALS, owner, totals)
        await _add(m, _ADD_TO_PLACES, owner, places)


def _note(report: Report, owner: str, names: Sequence[str], rows: Sequence[Any], dry: bool) -> None:
    count = report.count("drifted_figures")
    count.note(
        [
            f"{owner}: {name}: {row.number:+} ({row.bytes:+} bytes)"
            for name, row in zip(names, rows, strict=True)
        ]
    )
    count.done += 0 if dry else len(rows)


async def _add(m: Mutation, statement: LiteralString, owner: str, rows: Sequence[Any]) -> None:
    if rows:
        columns = {name: [getattr(row, name) for row in rows] for name in rows[0]._fields}
        await m.run(statement, {"owner": owner, **columns})

"""Doomed objects: they are noted in the transaction that deletes their rows and removed after it;
then the notes are deleted."""

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from shared.database.db import Database, Mutation
from shared.database.rows import Command, Statement, Table
from shared.storage import Storage

BATCH = 1000  # keys that a store deletes in one request


@dataclass(slots=True)
class DoomedObject:
    seq: int
    storage_key: str
    multipart: str  # the store's id of an upload in parts to this key, to be aborted; or empty


DOOMED_OBJECTS = Table("doomed_objects", DoomedObject)

_DOOM = Command("""
    INSERT INTO doomed_objects (owner, storage_key)
    SELECT %(owner)s, key FROM unnest(%(keys)s::text[]) AS key
""")
# The object at an upload's URL is removed, too, once the URL has expired.
# Parts are removed at once: the URLs of an aborted upload in parts lead nowhere.
# Ordered by key, so that an asset's objects, and with them their folders, are removed together.
_DOOM_ASSETS = Command("""
    INSERT INTO doomed_objects (owner, storage_key, multipart, due_at)
    SELECT owner, storage_key, '', now() FROM assets
    WHERE id = ANY(%(ids)s) AND owner = %(owner)s AND storage_key <> ''
    UNION ALL
    SELECT owner, storage_key, '', now() FROM variants
    WHERE asset_id = ANY(%(ids)s) AND owner = %(owner)s AND storage_key <> ''
    UNION ALL
    SELECT u.owner, u.upload_key, '', greatest(now(), u.expires_at)
    FROM uploads u JOIN assets a ON a.id = u.asset_id
    WHERE u.asset_id = ANY(%(ids)s) AND u.owner = %(owner)s
        AND (a.state = 'pending' OR u.expires_at > now())
    UNION ALL
    SELECT r.owner, r.upload_key, r.multipart, now()
    FROM resumable_uploads r JOIN assets a ON a.id = r.asset_id
    WHERE r.asset_id = ANY(%(ids)s) AND r.owner = %(owner)s AND a.state = 'pending'
    ORDER BY 2
""")
_SELECT_DUE = Statement(
    DoomedObject,
    f"""
    SELECT {DOOMED_OBJECTS.columns} FROM doomed_objects WHERE due_at <= now()
    ORDER BY due_at, seq LIMIT %(limit)s
    """,
)
_FORGET = Command("DELETE FROM doomed_objects WHERE seq = ANY(%(seqs)s)")


async def doom(m: Mutation, keys: Sequence[str]) -> None:
    """Notes objects that no row will point at once this transaction commits."""
    if keys:
        await m.run(_DOOM, {"owner": m.owner, "keys": list(keys)})


async def doom_assets(m: Mutation, ids: Sequence[UUID]) -> None:
    """Notes all objects of assets whose rows are about to be deleted."""
    await m.run(_DOOM_ASSETS, {"owner": m.owner, "ids": list(ids)})


async def remove(storage: Storage, rows: Sequence[DoomedObject]) -> None:
    """Removes the objects. One that is gone already is no error."""
    for row in rows:
        if row.multipart:
            await storage.abort_multipart(row.storage_key, row.multipart)
    await storage.delete([row.storage_key for row in rows])


async def remove_due(db: Database, storage: Storage) -> int:
    """Removes a batch of due objects, then their notes: after a crash in between, they are removed
    again. Workers call it. Returns how many there were."""
    rows = await db.system_all(_SELECT_DUE, {"limit": BATCH})
    if rows:
        await remove(storage, rows)
        async with db.transaction("") as m:
            await m.run(_FORGET, {"seqs": [row.seq for row in rows]})
    return len(rows)

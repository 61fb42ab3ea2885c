"""Objects to be removed: noted in the transaction that takes their rows away, removed after it,
then forgotten."""

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
    multipart: str  # what the store calls an upload in parts to this key, which is given up


DOOMED_OBJECTS = Table("doomed_objects", DoomedObject)

_DOOM = Command("""
    INSERT INTO doomed_objects (owner, storage_key)
    SELECT %(owner)s, key FROM unnest(%(keys)s::text[]) AS key
""")
# What was sent to an upload's URL goes, too, once nothing more can be sent there.
# Parts go at once: once an upload in parts is given up, its URLs lead nowhere.
# In the order of keys: an asset's objects are removed together, and their folders with them.
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
    """Notes objects that no row will show once this commits."""
    if keys:
        await m.run(_DOOM, {"owner": m.owner, "keys": list(keys)})


async def doom_assets(m: Mutation, ids: Sequence[UUID]) -> None:
    """Notes all objects of assets whose rows are about to go."""
    await m.run(_DOOM_ASSETS, {"owner": m.owner, "ids": list(ids)})


async def remove(storage: Storage, rows: Sequence[DoomedObject]) -> None:
    """Removes the objects. What is gone already is fine."""
    for row in rows:
        if row.multipart:
            await storage.abort_multipart(row.storage_key, row.multipart)
    await storage.delete([row.storage_key for row in rows])


async def remove_due(db: Database, storage: Storage) -> int:
    """Removes a batch of objects, bytes first: after a crash in between, what is gone already is
    removed again. Called by workers. Returns how many there were."""
    rows = await db.system_all(_SELECT_DUE, {"limit": BATCH})
    if rows:
        await remove(storage, rows)
        async with db.transaction("") as m:
            await m.run(_FORGET, {"seqs": [row.seq for row in rows]})
    return len(rows)

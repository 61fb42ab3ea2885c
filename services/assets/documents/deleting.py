"""Deletes documents: their rows, bytes and references."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from atelier.assets.v1 import document_pb2 as pb

from services.assets.core import deletions, holding
from services.assets.documents import rules
from shared.background import events
from shared.database.db import Mutation
from shared.database.rows import Statement
from shared.rpc.protos import timestamp


@dataclass(slots=True)
class DeletedDocument:
    id: UUID
    version: int
    session_id: str
    size_bytes: int
    storage_key: str
    deleted_at: datetime


_DELETE_DOCUMENTS = Statement(
    DeletedDocument,
    """
    DELETE FROM documents WHERE id = ANY(%(ids)s) AND owner = %(owner)s
    RETURNING id, version, session_id, size_bytes, storage_key, now() AS deleted_at
    """,
)


async def delete(m: Mutation, ids: Sequence[UUID]) -> list[DeletedDocument]:
    """Deletes documents of the transaction's owner, with their bytes and their references to
    pictures. Returns those that were there."""
    deleted = await m.all(_DELETE_DOCUMENTS, {"ids": list(ids), "owner": m.owner})
    changes = [(row.id, row.version + 1, _purged(row)) for row in deleted]
    await events.publish_all(m, "purged_document", changes)
    await deletions.doom(m, [row.storage_key for row in deleted if row.storage_key])
    await holding.release(m, [rules.holder(row.id) for row in deleted])
    return deleted


def _purged(row: DeletedDocument) -> pb.PurgedDocument:
    return pb.PurgedDocument(
        document_id=str(row.id),
        session_id=row.session_id,
        purge_time=timestamp(row.deleted_at),
    )

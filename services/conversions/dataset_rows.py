"""Datasets: the row, its message, and the statements that change it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from atelier.conversions.v1 import dataset_pb2 as pb

from shared.background import events
from shared.database.db import Mutation
from shared.database.ids import new_id
from shared.database.rows import Command, Statement, Table, compiled
from shared.rpc import errors
from shared.rpc.protos import timestamp

MOST_IMAGES = 100
HOLD_TASK = "hold_datasets"
"""The job that makes the references at assets those of a dataset's row."""


@dataclass(slots=True)
class Dataset:
    id: UUID
    owner: str
    created_by: str
    version: int
    name: str
    brand: str
    vibe: str
    logo_asset_id: UUID | None
    image_asset_ids: list[UUID]
    archived_at: datetime | None
    deleted_at: datetime | None
    expires_at: datetime | None
    created_at: datetime
    updated_at: datetime

    @property
    def pictures(self) -> list[UUID]:
        """Returns the images and the logo, each once."""
        logo = [] if self.logo_asset_id is None else [self.logo_asset_id]
        return list(dict.fromkeys([*self.image_asset_ids, *logo]))

    @property
    def holder(self) -> str:
        """Returns the holder of the references to the pictures."""
        return holder(self.id)


class LockedDataset(Dataset):
    """A row that is locked until the transaction ends."""

    __slots__ = ()


def holder(dataset_id: UUID) -> str:
    return f"conversions/datasets/{dataset_id}"


DATASETS = Table("datasets", LockedDataset)
SELECT_DATASET = Statement(Dataset, f"SELECT {DATASETS.columns} FROM datasets WHERE id = %(id)s")
_LOCK_DATASET = Statement(LockedDataset, f"{SELECT_DATASET.text} FOR UPDATE")
_DELETE_DATASET = Statement(
    datetime, "DELETE FROM datasets WHERE id = %(id)s RETURNING now() AS deleted_at"
)
_NOTE_RELEASES = Command("""
    INSERT INTO dataset_releases (id, owner, dataset_id, asset_id)
    SELECT gen_random_uuid(), %(owner)s, %(id)s, unnest(%(asset_ids)s::uuid[])
""")
_TRASH = Statement(
    LockedDataset,
    f"""
    UPDATE datasets SET deleted_at = now(), expires_at = now() + %(life)s::interval,
        version = version + 1, updated_at = now()
    WHERE id = %(id)s RETURNING {DATASETS.columns}
    """,
)
_ARCHIVE = Statement(
    LockedDataset,
    f"""
    UPDATE datasets SET archived_at = now(), version = version + 1, updated_at = now()
    WHERE id = %(id)s RETURNING {DATASETS.columns}
    """,
)
_NEW = (
    "id",
    "owner",
    "created_by",
    "name",
    "brand",
    "vibe",
    "logo_asset_id",
    "image_asset_ids",
)


@cache
def _update(columns: tuple[str, ...]) -> Statement[LockedDataset]:
    """Returns the statement that sets columns and raises the version."""
    row = DATASETS.core.c
    values: dict[str, Any] = {name: sa.bindparam(name) for name in columns}
    values |= {"version": row.version + sa.literal_column("1"), "updated_at": sa.func.now()}
    one = sa.update(DATASETS.core).where(row.id == sa.bindparam("row_id"))
    return compiled(DATASETS.row, one.values(values).returning(*row))


def to_proto(row: Dataset) -> pb.Dataset:
    return pb.Dataset(
        id=str(row.id),
        owner=row.owner,
        created_by=row.created_by,
        name=row.name,
        brand=row.brand,
        vibe=row.vibe,
        logo_asset_id=str(row.logo_asset_id or ""),
        images=[pb.DatasetImage(asset_id=str(each)) for each in row.image_asset_ids],
        image_count=len(row.image_asset_ids),
        etag=str(row.version),
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
        archive_time=timestamp(row.archived_at),
        delete_time=timestamp(row.deleted_at),
        expire_time=timestamp(row.expires_at),
    )


async def publish(m: Mutation, row: Dataset) -> None:
    await events.publish(m, "dataset", row.id, row.version, to_proto(row))


async def create(m: Mutation, columns: Mapping[str, Any]) -> Dataset:
    """Inserts a row of the mutation's owner and publishes it."""
    values = {"id": new_id(), "owner": m.owner, "created_by": m.actor, **columns}
    row = await m.one(DATASETS.insert(*_NEW), values)
    await publish(m, row)
    return row


async def lock(m: Mutation, dataset_id: UUID) -> LockedDataset:
    """Returns the owner's row, locked until the commit. Raises NOT_FOUND if there is none."""
    row = await m.first(_LOCK_DATASET, {"id": dataset_id})
    if row is None:
        raise errors.not_found("dataset", dataset_id)
    return row


async def update(m: Mutation, locked: LockedDataset, columns: Mapping[str, Any]) -> Dataset:
    """Sets columns, raises the version, publishes the row and returns it. Notes the pictures that
    left the dataset."""
    row = await m.one(_update(tuple(columns)), {**columns, "row_id": locked.id})
    await _note_releases(m, row.id, set(locked.pictures) - set(row.pictures))
    await publish(m, row)
    return row


async def archive(m: Mutation, locked: LockedDataset) -> Dataset:
    row = await m.one(_ARCHIVE, {"id": locked.id})
    await publish(m, row)
    return row


async def delete(m: Mutation, locked: LockedDataset, life: timedelta) -> Dataset:
    """Puts the row into the trash for `life` and publishes it."""
    row = await m.one(_TRASH, {"id": locked.id, "life": life})
    await publish(m, row)
    return row


async def purge(m: Mutation, locked: LockedDataset) -> None:
    """Deletes the row, notes its pictures, and publishes that it is gone."""
    await _note_releases(m, locked.id, locked.pictures)
    purged_at = await m.one(_DELETE_DATASET, {"id": locked.id})
    purged = pb.PurgedDataset(dataset_id=str(locked.id), purge_time=timestamp(purged_at))
    await events.publish(m, "purged_dataset", locked.id, locked.version + 1, purged)


async def _note_releases(
    m: Mutation, dataset_id: UUID, asset_ids: Sequence[UUID] | set[UUID]
) -> None:
    if asset_ids:
        values = {"owner": m.owner, "id": dataset_id, "asset_ids": list(asset_ids)}
        await m.run(_NOTE_RELEASES, values)


def refuse_deleted(row: Dataset) -> None:
    """Raises FAILED_PRECONDITION for a dataset in the trash."""
    if row.deleted_at:
        text = "the dataset is deleted; undelete it first"
        raise errors.precondition(text, subject=f"datasets/{row.id}")

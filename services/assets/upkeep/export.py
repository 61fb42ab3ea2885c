"""Exports every record of an owner, in pages by primary key: no transaction is open while the
caller reads."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar
from uuid import UUID

import sqlalchemy as sa
from atelier.assets.v1 import asset_pb2
from atelier.assets.v1 import storage_pb2 as pb
from google.protobuf.json_format import ParseDict
from sqlalchemy.dialects.postgresql import array

from services.assets.core import asset_rows
from services.assets.core.asset_rows import ASSETS, VARIANTS, Asset, Urls, Variant
from services.assets.upkeep.owned_tables import owned_tables
from shared.database.db import Database
from shared.database.rows import Statement, compiled
from shared.rpc import auth

R = TypeVar("R", Asset, Variant)

_CHUNK = 500
# Tables that repeat what others say, and one that lists objects to be removed from the store.
_LEFT_OUT = ("requests", "events", "doomed_objects")
# The column whose value would let a reader of the export act for the owner.
_CREDENTIALS = "secret"
_FIRST_ID = UUID(int=0)
_SELECT_ASSETS = Statement(
    Asset,
    f"""
    SELECT {ASSETS.columns} FROM assets WHERE owner = %(owner)s AND id > %(after)s
    ORDER BY id LIMIT %(limit)s
    """,
)
_SELECT_VARIANTS = Statement(
    Variant,
    f"""
    SELECT {VARIANTS.columns} FROM variants WHERE owner = %(owner)s AND id > %(after)s
    ORDER BY id LIMIT %(limit)s
    """,
)


@dataclass(slots=True)
class _OwnedRow:
    """A row of any table: its primary key, each part as text, and what an export shows of it."""

    key: list[str]
    shown: dict[str, Any]


@cache
def _select_rows(table: str, keys: tuple[str, ...], goes_on: bool) -> Statement[_OwnedRow]:
    row = sa.table(table, *map(sa.column, sorted({"owner", *keys}))).alias("t")
    key = [row.c[name] for name in keys]
    where = [row.c.owner == sa.bindparam("of")]
    if goes_on:
        last = sa.tuple_(*(sa.bindparam(f"after_{n}") for n in range(len(keys))))
        where.append(sa.tuple_(*key) > last)
    shown: sa.ColumnElement[Any] = sa.literal_column(f"to_jsonb(t) - '{_CREDENTIALS}'")
    return compiled(
        _OwnedRow,
        sa.select(
            array([sa.cast(part, sa.Text) for part in key]).label("key"), shown.label("shown")
        )
        .select_from(row)
        .where(*where)
        .order_by(*key)
        .limit(sa.bindparam("limit")),
    )


async def export(db: Database, urls: Urls) -> AsyncIterator[pb.ExportOwnerResponse]:
    """Yields every record of the current owner, in the order of tables and of their keys."""
    for table in await owned_tables(db):
        if table.name == ASSETS.name:
            async for asset in _assets(db, urls):
                yield pb.ExportOwnerResponse(asset=asset)
        elif table.name == VARIANTS.name:
            async for variant in _by_id(db, _SELECT_VARIANTS):
                shown = asset_rows.variant_to_proto(variant, urls)
                yield pb.ExportOwnerResponse(variant=shown)
        elif table.name not in _LEFT_OUT:
            async for row in _rows(db, table.name, tuple(table.keys)):
                yield pb.ExportOwnerResponse(row=row)


async def _assets(db: Database, urls: Urls) -> AsyncIterator[asset_pb2.Asset]:
    async for row in _by_id(db, _SELECT_ASSETS):
        asset = asset_rows.to_proto(row, urls)
        if row.deleted_at and row.storage_key and not row.bytes_gone_at:  # in the trash, but theirs
            asset.original_url = urls.of(row.storage_key, row.mime_type, row.file_name)
        yield asset


async def _by_id(db: Database, statement: Statement[R]) -> AsyncIterator[R]:
    after = _FIRST_ID
    while True:
        wanted = {"owner": auth.current().owner, "after": after, "limit": _CHUNK}
        rows = await db.all(statement, wanted)
        for row in rows:
            yield row
        if len(rows) < _CHUNK:
            return
        after = rows[-1].id


async def _rows(db: Database, table: str, keys: tuple[str, ...]) -> AsyncIterator[pb.OwnedRow]:
    after: Sequence[str] = ()
    while True:
        wanted = {
            "of": auth.current().owner,
            "limit": _CHUNK,
            **{f"after_{n}": part for n, part in enumerate(after)},
        }
        rows = await db.all(_select_rows(table, keys, bool(after)), wanted)
        for row in rows:
            shown = pb.OwnedRow(table=table)
            ParseDict(row.shown, shown.columns)
            yield shown
        if len(rows) < _CHUNK:
            return
        after = rows[-1].key

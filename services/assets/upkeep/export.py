"""Exports every record of an owner, in pages by primary key: no transaction is open while the
caller reads."""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar
from uuid import UUID

from atelier.assets.v1 import asset_pb2
from atelier.assets.v1 import storage_pb2 as pb
from google.protobuf.json_format import ParseDict

from services.assets.core import asset_rows, rules
from services.assets.core.asset_rows import ASSETS, VARIANTS, Asset, Urls, Variant
from shared.database.db import Database
from shared.database.rows import Statement
from shared.erasing import exporting
from shared.erasing.owned_tables import owned_tables
from shared.erasing.service import UrlOf
from shared.rpc import auth

R = TypeVar("R", Asset, Variant)

_CHUNK = 500
# It lists objects to be removed from the store.
LEFT_OUT = ("doomed_objects",)
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


async def export(db: Database, urls: Urls) -> AsyncIterator[pb.ExportOwnerResponse]:
    """Yields every record of the current owner, in the order of tables and of their keys."""
    for table in exporting.shown_tables(await owned_tables(db), LEFT_OUT):
        if table.name == ASSETS.name:
            async for asset in _assets(db, urls):
                yield pb.ExportOwnerResponse(asset=asset)
        elif table.name == VARIANTS.name:
            async for variant in _by_id(db, _SELECT_VARIANTS):
                shown = asset_rows.variant_to_proto(variant, urls)
                yield pb.ExportOwnerResponse(variant=shown)
        else:
            async for shown_row in exporting.rows(db, table):
                row = pb.OwnedRow(table=table.name)
                ParseDict(json.loads(shown_row), row.columns)
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


def url_makers(urls: Urls) -> Mapping[str, UrlOf]:
    """Returns what makes the URLs of rows with bytes, by the table: also of those in the trash."""

    def of_asset(row: Mapping[str, Any]) -> str:
        there = row["state"] == "ready" and not row["bytes_gone_at"]
        return urls.of(row["storage_key"], row["mime_type"], row["file_name"]) if there else ""

    def of_variant(row: Mapping[str, Any]) -> str:
        there = row["state"] == "ready"
        return urls.of(row["storage_key"], row["mime_type"], row["preset"]) if there else ""

    def of_document(row: Mapping[str, Any]) -> str:
        there = row["state"] == "ready"
        return urls.of(row["storage_key"], rules.PDF, f"{row['kind']}.pdf") if there else ""

    return {"assets": of_asset, "variants": of_variant, "documents": of_document}

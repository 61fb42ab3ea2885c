"""OwnerService, which every service serves for its own rows."""

import json
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import Any

from atelier.owners.v1 import owner_pb2 as pb
from atelier.owners.v1 import owner_pb2_grpc

from shared.database.db import Database
from shared.erasing import exporting
from shared.erasing.owned_tables import owned_tables
from shared.rpc import auth
from shared.rpc.server import Context

UrlOf = Callable[[Mapping[str, Any]], str]


class OwnerService(owner_pb2_grpc.OwnerServiceServicer):
    """`urls`: what makes the URL of the bytes of a row, by the table, from the row's columns, among
    which is a `storage_key`; '' if there are no bytes. `left_out`: tables that say nothing of the
    owner."""

    def __init__(
        self,
        db: Database,
        urls: Mapping[str, UrlOf] | None = None,
        left_out: Collection[str] = (),
    ) -> None:
        self._db = db
        self._urls = urls or {}
        self._left_out = left_out

    async def ExportOwner(
        self, request: pb.ExportOwnerRequest, context: Context
    ) -> AsyncIterator[pb.ExportOwnerResponse]:
        auth.act_for(request.owner or auth.current().owner)
        service = self._db.service
        for table in exporting.shown_tables(await owned_tables(self._db), self._left_out):
            url_of = self._urls.get(table.name)
            async for row in exporting.rows(self._db, table):
                answer = pb.ExportOwnerResponse(service=service, table=table.name, row_json=row)
                if url_of is not None:
                    columns = json.loads(row)
                    if columns["storage_key"] and (url := url_of(columns)):
                        answer.urls.append(url)
                yield answer

"""Steps of a client that deletes, and of the worker that keeps house, for tests to build on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from atelier.assets.v1 import asset_pb2, asset_pb2_grpc
from atelier.techfiles.v1 import export_pb2_grpc

from services.techfiles.assets import Assets
from services.techfiles.upkeep import Upkeep
from shared import main
from shared.database.db import Database
from shared.rpc.calls import Peers
from tests.suite import Client, Suite


def export_service(client: Client) -> Any:
    return client.stub(export_pb2_grpc.ExportServiceStub)


@asynccontextmanager
async def keeper(suite: Suite) -> AsyncIterator[Upkeep]:
    settings = suite.settings("techfiles", "worker")
    db, peers, storage = (
        Database(settings, "techfiles"),
        Peers(settings, "techfiles"),
        main.open_storage(settings),
    )
    await db.open()
    try:
        yield Upkeep(db, Assets(peers), storage, settings)
    finally:
        await peers.close()
        await storage.close()
        await db.close()


async def upkeep(suite: Suite) -> None:
    """Does one round of upkeep, as a worker does."""
    async with keeper(suite) as keeping:
        async for _ in keeping.run():
            pass


def expire(suite: Suite, table: str, row_id: str) -> None:
    """Lets the time of a row in the trash be over."""
    suite.sql(
        f"UPDATE techfiles.{table} SET expires_at = now() - interval '1 minute' WHERE id = %s"
        " RETURNING id",
        (row_id,),
    )


def settle(suite: Suite) -> None:
    """Lets the time pass after which a release is looked at for the last time."""
    suite.sql(
        "UPDATE techfiles.picture_releases SET due_at = now() - interval '1 s',"
        " settles_at = now() - interval '1 s' RETURNING id"
    )


async def holders(client: Client, asset_id: str) -> list[str]:
    service = client.stub(asset_pb2_grpc.AssetServiceStub)
    request = asset_pb2.ListReferencesRequest(asset_id=asset_id)
    return [each.holder for each in (await service.ListReferences(request)).references]


def objects(suite: Suite, collection_id: str) -> list[str]:
    """Returns the paths of a collection's exports in the store."""
    found = (suite.storage.root / "data" / "techfiles").glob(f"*/{collection_id}/**/*")
    return sorted(str(path) for path in found if path.is_file())

"""Steps of a client of batches, for tests to build on."""

import asyncio
import io
import json
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import batch_pb2 as pb
from atelier.conversions.v1 import batch_pb2_grpc, conversion_pb2, generation_pb2

from services.conversions import credit_rows, prices
from services.conversions.batching import Conductor
from services.conversions.providers import registry
from services.conversions.spending import Spending
from shared.background.jobs import JobQueue, TryAgain
from shared.database.db import Database
from tests.assets.flows import request_id
from tests.conversions import flows
from tests.conversions import local_pictures as pictures
from tests.suite import Client, Suite

PROMPTS = ("a linen shirt on sand", "a wool coat in rain", "a silk dress at dusk")


def batches(client: Client) -> Any:
    return client.stub(batch_pb2_grpc.BatchServiceStub)


async def create(client: Client, **fields: Any) -> pb.Batch:
    values = {"request_id": request_id(), **fields}
    answer = await batches(client).CreateBatch(pb.CreateBatchRequest(**values))
    made: pb.Batch = answer.batch
    return made


async def draw(client: Client, count: int, *, prompts: int = 1, **fields: Any) -> pb.Batch:
    """Asks for `count` images of each of so many prompts, which cost 3 credits each."""
    asked = pb.BatchGenerations(prompts=PROMPTS[:prompts], seeds=range(count), quality="draft")
    return await create(client, generations=asked, **fields)


async def get(client: Client, batch_id: str) -> pb.Batch:
    answer = await batches(client).GetBatch(pb.GetBatchRequest(batch_id=batch_id))
    batch: pb.Batch = answer.batch
    return batch


async def until(
    client: Client, batch_id: str, there: Callable[[pb.Batch], bool], seconds: float = 60
) -> pb.Batch:
    """Returns the batch once it is so."""
    deadline = time.monotonic() + seconds
    while True:
        batch = await get(client, batch_id)
        if there(batch):
            return batch
        assert time.monotonic() < deadline, f"it is still so:\n{batch}"
        await asyncio.sleep(0.1)


async def completed(client: Client, batch_id: str, seconds: float = 60) -> pb.Batch:
    state = pb.BATCH_STATE_COMPLETED
    return await until(client, batch_id, lambda batch: batch.state == state, seconds)


async def pause(client: Client, batch_id: str) -> pb.Batch:
    request = pb.PauseBatchRequest(request_id=request_id(), batch_id=batch_id)
    batch: pb.Batch = (await batches(client).PauseBatch(request)).batch
    return batch


async def resume(client: Client, batch_id: str, **fields: Any) -> pb.Batch:
    request = pb.ResumeBatchRequest(request_id=request_id(), batch_id=batch_id, **fields)
    batch: pb.Batch = (await batches(client).ResumeBatch(request)).batch
    return batch


async def prioritize(client: Client, batch_id: str) -> pb.Batch:
    request = pb.PrioritizeBatchRequest(request_id=request_id(), batch_id=batch_id)
    batch: pb.Batch = (await batches(client).PrioritizeBatch(request)).batch
    return batch


async def cancel(client: Client, batch_id: str) -> pb.Batch:
    request = pb.CancelBatchRequest(request_id=request_id(), batch_id=batch_id)
    batch: pb.Batch = (await batches(client).CancelBatch(request)).batch
    return batch


async def retry(client: Client, batch_id: str, *classes: str) -> pb.RetryBatchResponse:
    request = pb.RetryBatchRequest(
        request_id=request_id(), batch_id=batch_id, error_classes=classes
    )
    answer: pb.RetryBatchResponse = await batches(client).RetryBatch(request)
    return answer


async def conduct(suite: Suite, batch_id: str) -> None:
    """Does one step for the batch, as a worker does."""
    settings = suite.settings("conversions", "worker")
    db = Database(settings, "conversions")
    limits, routes = credit_rows.limits_of(settings), registry.routes(settings)
    spending = Spending(limits, prices.load_prices(settings.model_prices_file), routes)
    conductor = Conductor(db, JobQueue(db), spending)
    [(number,)] = suite.sql("SELECT round FROM conversions.batches WHERE id = %s", (batch_id,))
    await db.open()
    try:
        with suppress(TryAgain):
            await conductor.conduct(f"{batch_id}/{number}")
    finally:
        await db.close()


async def end(suite: Suite, state: str, *item_ids: str, error_class: str = "TIMED_OUT") -> None:
    """Ends images of a batch as workers do after three attempts, without their pictures."""
    result = "recipe = '{}', result_asset_id = gen_random_uuid(), credits = credits_reserved,"
    await suite.change(
        f"UPDATE conversions.generations SET {result if state == 'completed' else ''}"
        " state = %s, error_class = %s, error_message = 'made to fail',"
        " attempt_number = attempt_number + 3 WHERE id = ANY(%s::uuid[])",
        (state, error_class, list(item_ids)),
    )


async def items(client: Client, batch_id: str) -> list[generation_pb2.Generation]:
    """Returns the images of the batch, in the order of their numbers."""
    request = generation_pb2.ListGenerationsRequest(batch_id=batch_id, page_size=1000)
    found = (await flows.generations(client).ListGenerations(request)).generations
    return sorted(found, key=lambda each: each.batch_item)


async def tries(client: Client, batch_id: str) -> list[conversion_pb2.Conversion]:
    """Returns the conversions of the batch, in the order of their numbers."""
    request = conversion_pb2.ListConversionsRequest(batch_id=batch_id, page_size=1000)
    found = (await flows.conversions(client).ListConversions(request)).conversions
    return sorted(found, key=lambda each: each.batch_item)


async def download(
    client: Client, batch_id: str
) -> tuple[pb.BatchArchiveHead, zipfile.ZipFile, dict[str, Any]]:
    """Returns the head, the archive and its manifest."""
    head, content = pb.BatchArchiveHead(), bytearray()
    async for answer in batches(client).DownloadBatch(pb.DownloadBatchRequest(batch_id=batch_id)):
        if answer.WhichOneof("part") == "head":
            head = answer.head
        else:
            content += answer.chunk
    archive = zipfile.ZipFile(io.BytesIO(bytes(content)))
    assert archive.testzip() is None
    return head, archive, json.loads(archive.read("manifest.json"))


async def persons(client: Client, directory: Path, count: int, **fields: Any) -> list[str]:
    return [
        await flows.put(
            client,
            pictures.person(directory / f"person {number}.jpg", width=320 + number),
            asset_pb2.ASSET_KIND_USER,
            file_name=f"person {number}.jpg",
            **fields,
        )
        for number in range(count)
    ]


async def clothes(client: Client, directory: Path, count: int, **fields: Any) -> list[str]:
    return [
        await flows.put(
            client,
            pictures.garment(directory / f"cloth {number}.jpg", width=400 + number),
            asset_pb2.ASSET_KIND_CLOTH,
            file_name=f"coat {number}.jpg",
            **fields,
        )
        for number in range(count)
    ]

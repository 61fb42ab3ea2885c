"""Steps of a client of pipeline, for tests to build on."""

import asyncio
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pyvips
from atelier.common.v1 import facts_pb2
from atelier.pipeline.v1 import (
    log_pb2_grpc,
    phase_pb2,
    phase_pb2_grpc,
    price_book_pb2,
    price_book_pb2_grpc,
    product_pb2,
    product_pb2_grpc,
    result_pb2,
    review_pb2_grpc,
)

from shared.rpc.protos import facts_message
from tests.assets import flows as asset_flows
from tests.suite import Client, Suite

Pick = Callable[[product_pb2.ProductChange], bool]

FACTS: dict[str, Any] = {
    "product": {
        "name": "Canvas field jacket",
        "model": "KH-4107",
        "brand": "Kesterholt",
        "category": "apparel",
        "subcategory": "jacket",
        "condition": "new",
        "description": "A straight jacket in tan cotton canvas.",
        "keywords": ["field jacket", "chore jacket", "canvas", "workwear", "patch pockets"],
    },
    "materials": [{"part": "shell", "material": "100 % cotton canvas", "colour": "tan"}],
    "price": {"msrp": 189.0, "currency": "EUR"},
}
_NAMELESS = dict.fromkeys(("name", "model", "brand", "condition"), "")
UNSURE = {**FACTS, "product": FACTS["product"] | _NAMELESS}
"""Of what phase 1 asks for, only the category is stated, so it is not sure. The phases after it
have enough."""


def facts(stated: dict[str, Any] = FACTS) -> facts_pb2.Facts:
    return facts_message(stated)


def photo(seed: int = 1) -> bytes:
    """Returns a sharp, textured garment-like shape on a plain light backdrop: easy to read a
    product from."""
    backdrop = pyvips.Image.black(480, 640, bands=3).linear([1, 1, 1], [228, 228, 226])
    weave = pyvips.Image.gaussnoise(270, 420, sigma=38, mean=0, seed=seed)
    shape = weave.bandjoin([weave, weave]).linear([1, 1, 1], [168, 132, 84])
    picture = backdrop.insert(shape, 105, 110).cast("uchar").copy(interpretation="srgb")
    data: bytes = picture.jpegsave_buffer(Q=90)
    return data


def products(client: Client) -> Any:
    return client.stub(product_pb2_grpc.ProductServiceStub)


def phases(client: Client) -> Any:
    return client.stub(phase_pb2_grpc.PhaseServiceStub)


def reviews(client: Client) -> Any:
    return client.stub(review_pb2_grpc.ReviewServiceStub)


def logs(client: Client) -> Any:
    return client.stub(log_pb2_grpc.LogServiceStub)


def price_book(client: Client) -> Any:
    return client.stub(price_book_pb2_grpc.PriceBookServiceStub)


def request_id() -> str:
    return str(uuid.uuid4())


async def create(
    client: Client, *assets: str, stated: dict[str, Any] = FACTS, **fields: Any
) -> product_pb2.Product:
    """Creates a product of these images, or of one fresh picture."""
    if not assets:
        assets = ((await asset_flows.upload(client, photo())).id,)
    images = [product_pb2.NewImage(asset_id=asset, view="front") for asset in assets]
    values = {"request_id": request_id(), "images": images, "facts": facts(stated), **fields}
    answer = await products(client).CreateProduct(product_pb2.CreateProductRequest(**values))
    product: product_pb2.Product = answer.product
    return product


def book(csv: bytes, **fields: Any) -> price_book_pb2.ImportPriceBookRequest:
    return price_book_pb2.ImportPriceBookRequest(request_id=request_id(), csv=csv, **fields)


def analysis(name: str = "Canvas field jacket", **fields: Any) -> result_pb2.PhaseValue:
    """Returns what an outside worker may say in phase 1."""
    return result_pb2.PhaseValue(product_analysis=result_pb2.ProductAnalysis(name=name, **fields))


async def outside(
    client: Client, asset: str, phases: Sequence[int] = (1, 2, 3, 4), **fields: Any
) -> product_pb2.Product:
    """Creates a product of a READY image for outside workers, and returns it when phase 1 is
    due."""
    created = await create(client, asset, run_phases_externally=phases, **fields)
    watching = watch(client, created.id)
    await watching.until(lambda change: change.phase.number == 1 and change.phase.due)
    await watching.close()
    return created


async def get(client: Client, product_id: str, **fields: Any) -> product_pb2.GetProductResponse:
    answer: product_pb2.GetProductResponse = await products(client).GetProduct(
        product_pb2.GetProductRequest(product_id=product_id, **fields)
    )
    return answer


async def claim(
    client: Client, product_id: str, phase: int, **fields: Any
) -> phase_pb2.ClaimPhaseResponse:
    answer: phase_pb2.ClaimPhaseResponse = await phases(client).ClaimPhase(
        phase_pb2.ClaimPhaseRequest(
            request_id=request_id(), product_id=product_id, phase=phase, **fields
        )
    )
    return answer


async def complete(
    client: Client,
    claimed: phase_pb2.ClaimPhaseResponse | phase_pb2.ClaimNextPhaseResponse,
    value: result_pb2.PhaseValue,
    **fields: Any,
) -> phase_pb2.CompletePhaseResponse:
    answer: phase_pb2.CompletePhaseResponse = await phases(client).CompletePhase(
        phase_pb2.CompletePhaseRequest(
            product_id=claimed.phase.product_id,
            phase=claimed.phase.number,
            attempt_token=claimed.attempt_token,
            value=value,
            **{"request_id": request_id(), **fields},
        )
    )
    return answer


class Watching:
    """A watch in the background. `changes` are in order of arrival; `until(pick)` waits for one and
    returns it."""

    def __init__(self, stream: Any) -> None:
        self.changes: list[product_pb2.ProductChange] = []
        self._arrived = asyncio.Event()
        self._stream = stream
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        try:
            async for answer in self._stream:
                self.changes.append(answer.change)
                self._arrived.set()
        finally:
            self._arrived.set()

    async def until(self, pick: Pick, *, seconds: float = 30) -> product_pb2.ProductChange:
        async with asyncio.timeout(seconds):
            checked = 0
            while True:
                self._arrived.clear()
                while checked < len(self.changes):
                    checked += 1
                    if pick(self.changes[checked - 1]):
                        return self.changes[checked - 1]
                if self._task.done():
                    self._task.result()
                    raise AssertionError("the watch has ended")
                await self._arrived.wait()

    async def ready(self) -> None:
        await self.until(lambda change: change.bookmark.ready)

    def index(self, pick: Pick) -> int:
        return next(index for index, change in enumerate(self.changes) if pick(change))

    async def close(self) -> None:
        self._stream.cancel()
        with suppress(asyncio.CancelledError):
            await self._task


def watch(client: Client, product_id: str, **fields: Any) -> Watching:
    return Watching(
        products(client).WatchProduct(
            product_pb2.WatchProductRequest(product_id=product_id, **fields)
        )
    )


def phase_is(number: int, state: int) -> Pick:
    return lambda change: change.phase.number == number and change.phase.state == state


def product_is(state: int) -> Pick:
    return lambda change: change.HasField("product") and change.product.state == state


async def everything(suite: Suite) -> None:
    """Starts all services that pipeline needs, and their workers."""
    await suite.serve("assets", "conversions", "pipeline")
    await suite.work("assets", "conversions", "pipeline")


async def change(client: Client, rpc: str, product_id: str, **fields: Any) -> Any:
    """Calls a method of ProductService that changes a product, and returns its answer."""
    message = getattr(product_pb2, f"{rpc}Request")(
        **{"request_id": request_id(), "product_id": product_id, **fields}
    )
    return await getattr(products(client), rpc)(message)


def held(suite: Suite, product_id: str) -> set[str]:
    """Returns the assets that a product holds references to."""
    rows = suite.sql(
        "SELECT asset_id::text FROM assets.asset_references WHERE holder = %s",
        (f"pipeline/products/{product_id}",),
    )
    return {asset_id for (asset_id,) in rows}


async def held_are(suite: Suite, product_id: str, wanted: Sequence[str]) -> None:
    """Returns once a product holds references to exactly these assets."""
    async with asyncio.timeout(20):
        while held(suite, product_id) != set(wanted):
            await asyncio.sleep(0.02)

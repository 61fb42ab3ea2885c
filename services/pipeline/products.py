"""Products: creating, reading, counting and watching them."""

from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID

from atelier.pipeline.v1 import product_pb2 as pb
from atelier.pipeline.v1 import product_pb2_grpc
from psycopg.types.json import Jsonb

from services.pipeline import log_rows, progress, records, rules, watching
from shared.background import events
from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.rpc import auth, errors, paging, views
from shared.rpc.calls import Peers
from shared.rpc.protos import facts as stated_facts
from shared.rpc.protos import time_of

_REVIEWS = 100

_INSERT = """
    INSERT INTO products (id, owner, created_by, name, model, facts, auto_advance, market_provider,
        external_phases)
    VALUES (%(id)s, %(owner)s, %(actor)s, %(name)s, %(model)s, %(facts)s, %(auto_advance)s,
        %(provider)s, %(external)s)
    RETURNING *
"""
_INSERT_IMAGES = """
    INSERT INTO product_images (owner, product_id, position, asset_id, view, is_primary)
    SELECT %(owner)s, %(id)s, * FROM unnest(%(positions)s::smallint[], %(assets)s::uuid[],
        %(views)s::text[],
        %(primary)s::boolean[])
    RETURNING *
"""
_INSERT_PHASES = """
    INSERT INTO phases (id, owner, product_id, number, external)
    SELECT ids, %(owner)s, %(id)s, number, number = ANY(%(external)s)
    FROM unnest(%(ids)s::uuid[], %(numbers)s::smallint[]) AS t (ids, number) RETURNING *
"""
_GET = "SELECT * FROM products WHERE id = %(id)s"
_PHASES = "SELECT * FROM phases WHERE product_id = ANY(%(ids)s) ORDER BY product_id, number"
_IMAGES = (
    "SELECT * FROM product_images WHERE product_id = ANY(%(ids)s) ORDER BY product_id, position"
)
_PARTS = (
    _GET,
    _IMAGES,
    _PHASES,
    "SELECT * FROM results WHERE product_id = %(id)s ORDER BY phase",
    (
        "SELECT * FROM reviews WHERE product_id = %(id)s ORDER BY created_at DESC, id DESC LIMIT"
        " %(reviews)s"
    ),
)
_SUMMARY = """
    SELECT count(*) AS total, count(*) FILTER (WHERE running) AS active,
        count(*) FILTER (WHERE state = 'completed') AS completed, count(*) FILTER (WHERE state
            = 'error') AS error,
        count(*) FILTER (WHERE state = 'awaiting_review') AS awaiting_review
    FROM products WHERE owner = %(owner)s
"""


class ProductService(product_pb2_grpc.ProductServiceServicer):
    def __init__(
        self, db: Database, stream: events.EventStream, flows: progress.Progress, peers: Peers
    ) -> None:
        self._db = db
        self._stream = stream
        self._flows = flows
        self._peers = peers

    async def CreateProduct(
        self, request: pb.CreateProductRequest, context: Any
    ) -> pb.CreateProductResponse:
        for number, image in enumerate(request.images):
            views.settle(image, f"images[{number}].")
        facts = stated_facts(request.facts, "facts")
        named = facts.get("product", {})
        columns = {
            "name": request.name.strip() or named.get("name", ""),
            "model": request.model.strip() or named.get("model", ""),
            "facts": Jsonb(facts),
            "auto_advance": request.auto_advance if request.HasField("auto_advance") else True,
            "provider": records.PROVIDERS.word.get(request.market_provider, "price_book"),
            "external": sorted(request.run_phases_externally),
        }
        asset_ids = _each_once(request.images)

        async def work(m: Mutation) -> pb.CreateProductResponse:
            product, images, phases = await _insert(m, columns, request.images, asset_ids)
            await records.publish_product(m, product)
            for phase in phases:
                await records.publish_phase(m, phase)
            text = f"created with {len(images)} images; waiting for them"
            await log_rows.add(m, product.id, 0, "product_created", text)
            await self._flows.prepare(m, product.id)
            return pb.CreateProductResponse(
                product=records.product(product, images, phases, with_facts=True)
            )

        answer = await self._db.mutate(request, pb.CreateProductResponse, work)
        if request.wait:
            await watching.until_idle(self._db, self._stream, request, UUID(answer.product.id))
            answer.product.CopyFrom((await self._read(UUID(answer.product.id))).product)
        return answer

    async def GetProduct(
        self, request: pb.GetProductRequest, context: Any
    ) -> pb.GetProductResponse:
        answer = await self._read(parse_id(request.product_id, "product_id"))
        if request.include_urls:
            await self._add_urls(list(answer.product.images))
        room = paging.lighten(
            answer.results, ("value", "evidence"), paging.ANSWER_BYTES - answer.product.ByteSize()
        )
        newest = paging.fitting(answer.reviews, room)
        del answer.reviews[len(newest) :]
        return answer

    async def _read(self, product_id: UUID) -> pb.GetProductResponse:
        async with self._db.transaction(auth.current().owner) as m:
            wanted = {"id": product_id, "ids": [product_id], "reviews": _REVIEWS}
            cursors = [
                await m.conn.execute(statement, wanted) for statement in _PARTS
            ]  # all in one round trip
            found, images, phases, results, reviews = [
                await cursor.fetchall() for cursor in cursors
            ]
        if not found:
            raise errors.not_found("product", product_id)
        return pb.GetProductResponse(
            product=records.product(found[0], images, phases, with_facts=True),
            results=[records.result(row) for row in results],
            reviews=[records.review(row) for row in reviews],
        )

    async def ListProducts(
        self, request: pb.ListProductsRequest, context: Any
    ) -> pb.ListProductsResponse:
        page = paging.page(request)
        where, parameters = _filter(request)
        statement: Any = f"SELECT * FROM products WHERE {where}{page.clause}"
        rows = await self._db.rows(statement, parameters | page.parameters)
        ids = {"ids": [row.id for row in page.cut(rows)]}
        images = watching.by_product(await self._db.rows(_IMAGES, ids))
        phases = watching.by_product(await self._db.rows(_PHASES, ids))
        products = [
            records.product(row, images.get(row.id, ()), phases.get(row.id, ()))
            for row in page.cut(rows)
        ]
        if request.include_urls:
            await self._add_urls(
                [image for product in products for image in product.images if image.primary]
            )
        products, token = page.fill(rows, products)
        return pb.ListProductsResponse(products=products, next_page_token=token)

    async def GetSummary(
        self, request: pb.GetSummaryRequest, context: Any
    ) -> pb.GetSummaryResponse:
        row = await self._db.row(_SUMMARY, {"owner": auth.current().owner})
        return pb.GetSummaryResponse(
            total_products=row.total,
            active_pipelines=row.active,
            completed_products=row.completed,
            error_products=row.error,
            awaiting_review_products=row.awaiting_review,
        )

    async def WatchProduct(
        self, request: pb.WatchProductRequest, context: Any
    ) -> AsyncIterator[pb.WatchProductResponse]:
        product_id = parse_id(request.product_id, "product_id")
        if await self._db.row(_GET, {"id": product_id}) is None:
            raise errors.not_found("product", product_id)
        async for answer in watching.changes(
            self._db, self._stream, request, pb.WatchProductResponse, product_id
        ):
            yield answer

    def WatchProducts(
        self, request: pb.WatchProductsRequest, context: Any
    ) -> AsyncIterator[pb.WatchProductsResponse]:
        logs = request.include_logs
        return watching.changes(
            self._db, self._stream, request, pb.WatchProductsResponse, None, logs=logs
        )

    async def _add_urls(self, images: Sequence[pb.ProductImage]) -> None:
        """Fills in the URLs of images whose asset is READY and still there."""
        found = await self._peers.assets((image.asset_id for image in images), urls=True)
        for image in images:
            if asset := found.get(image.asset_id):
                image.image_url, image.thumbnail_url = asset.original_url, asset.thumbnail_url


def _each_once(images: Sequence[pb.NewImage]) -> list[UUID]:
    """The images' assets. INVALID_ARGUMENT if two are one: protovalidate compares texts, in which
    case counts."""
    seen: dict[UUID, int] = {}
    for index, image in enumerate(images):
        earlier = seen.setdefault(UUID(image.asset_id), index)
        if earlier != index:
            raise errors.invalid(
                f"images[{index}].asset_id", f"names the same asset as images[{earlier}].asset_id"
            )
    return list(seen)


async def _insert(
    m: Mutation, columns: dict[str, Any], images: Sequence[pb.NewImage], asset_ids: Sequence[UUID]
) -> tuple[Any, list[Any], list[Any]]:
    """Writes product, images and phases. Returns their rows."""
    product = await m.one(_INSERT, {**columns, "id": new_id(), "owner": m.owner, "actor": m.actor})
    primary = next((index for index, image in enumerate(images) if image.primary), 0)
    image_rows = await m.all(
        _INSERT_IMAGES,
        {
            "owner": m.owner,
            "id": product.id,
            "positions": list(range(1, len(images) + 1)),
            "assets": asset_ids,
            "views": [image.view for image in images],
            "primary": [index == primary for index in range(len(images))],
        },
    )
    phases = await m.all(
        _INSERT_PHASES,
        {
            "owner": m.owner,
            "id": product.id,
            "external": columns["external"],
            "ids": [new_id() for _ in rules.PHASES],
            "numbers": list(rules.PHASES),
        },
    )
    return product, image_rows, phases


def _filter(request: pb.ListProductsRequest) -> tuple[str, dict[str, Any]]:
    """Fixed conditions for the fields that are set; values are parameters."""
    conditions = ["owner = %(owner)s"]
    parameters: dict[str, Any] = {"owner": auth.current().owner}
    if request.state:
        conditions.append("state = %(state)s")
        parameters["state"] = records.PRODUCT_STATES.word[request.state]
    for field, operator in (("created_from", ">="), ("created_before", "<")):
        at = time_of(getattr(request, field), request.HasField(field), field)
        if at is not None:
            conditions.append(f"created_at {operator} %({field})s")
            parameters[field] = at
    return " AND ".join(conditions), parameters

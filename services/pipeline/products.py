"""ProductService: creates, reads, counts and watches products."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from atelier.pipeline.v1 import product_pb2 as pb
from atelier.pipeline.v1 import product_pb2_grpc
from grpc.aio import ServicerContext
from psycopg.types.json import Jsonb

from services.pipeline import (
    log_rows,
    phase_rows,
    product_rows,
    progress,
    result_rows,
    review_rows,
    rules,
    watching,
)
from services.pipeline.phase_rows import PHASES, Phase
from services.pipeline.product_rows import IMAGES, PRODUCTS, Product, ProductImage
from services.pipeline.review_rows import REVIEWS, Review
from shared.background.watches import EventStream
from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.database.lists import Listing, created
from shared.database.rows import Statement
from shared.rpc import auth, errors, paging, views
from shared.rpc.calls import Peers
from shared.rpc.protos import facts as stated_facts

_REVIEWS = 100


@dataclass(slots=True)
class _Summary:
    """Counts of an owner's products. `active`: those with a phase that is running or due."""

    total: int
    active: int
    completed: int
    error: int
    awaiting_review: int


_INSERT_PRODUCT = PRODUCTS.insert(
    "id",
    "owner",
    "created_by",
    "name",
    "model",
    "facts",
    "auto_advance",
    "market_provider",
    "external_phases",
)
_LIST = Listing(PRODUCTS, Product)
_INSERT_IMAGES = Statement(
    ProductImage,
    f"""
    INSERT INTO product_images (owner, product_id, position, asset_id, view, is_primary)
    SELECT %(owner)s, %(id)s, position, asset_id, view, is_primary
    FROM unnest(%(positions)s::smallint[], %(assets)s::uuid[], %(views)s::text[],
        %(primary)s::boolean[]) AS t (position, asset_id, view, is_primary)
    RETURNING {IMAGES.columns}
""",
)
_INSERT_PHASES = Statement(
    Phase,
    f"""
    INSERT INTO phases (id, owner, product_id, number, external)
    SELECT ids, %(owner)s, %(id)s, number, number = ANY(%(external)s)
    FROM unnest(%(ids)s::uuid[], %(numbers)s::smallint[]) AS t (ids, number)
    RETURNING {PHASES.columns}
""",
)
_SELECT_LATEST_REVIEWS = Statement(
    Review,
    f"""
    SELECT {REVIEWS.columns} FROM reviews WHERE product_id = %(id)s
    ORDER BY created_at DESC, id DESC LIMIT %(limit)s
""",
)
_COUNT_PRODUCTS = Statement(
    _Summary,
    """
    SELECT count(*) AS total, count(*) FILTER (WHERE running) AS active,
        count(*) FILTER (WHERE state = 'completed') AS completed,
        count(*) FILTER (WHERE state = 'error') AS error,
        count(*) FILTER (WHERE state = 'awaiting_review') AS awaiting_review
    FROM products WHERE owner = %(owner)s
""",
)


class ProductService(product_pb2_grpc.ProductServiceServicer):
    def __init__(
        self, db: Database, stream: EventStream, flows: progress.Progress, peers: Peers
    ) -> None:
        self._db = db
        self._stream = stream
        self._flows = flows
        self._peers = peers

    async def CreateProduct(
        self, request: pb.CreateProductRequest, context: ServicerContext
    ) -> pb.CreateProductResponse:
        for number, image in enumerate(request.images):
            views.settle(image, f"images[{number}].")
        facts = stated_facts(request.facts, "facts")
        named = facts.get("product", {})
        columns: dict[str, object] = {
            "name": request.name.strip() or named.get("name", ""),
            "model": request.model.strip() or named.get("model", ""),
            "facts": Jsonb(facts),
            "auto_advance": request.auto_advance if request.HasField("auto_advance") else True,
            "market_provider": product_rows.PROVIDERS.word.get(
                request.market_provider, "price_book"
            ),
            "external_phases": sorted(request.run_phases_externally),
        }
        asset_ids = _each_once(request.images)

        async def work(m: Mutation) -> pb.CreateProductResponse:
            product, images, phases = await _insert(m, columns, request.images, asset_ids)
            await product_rows.publish(m, product)
            for phase in phases:
                await phase_rows.publish(m, phase)
            text = f"created with {len(images)} images; waiting for them"
            await log_rows.add(m, product.id, 0, "product_created", text)
            await self._flows.prepare(m, product.id)
            return pb.CreateProductResponse(
                product=product_rows.to_proto(product, images, phases, with_facts=True)
            )

        answer = await self._db.mutate(request, pb.CreateProductResponse, work)
        if request.wait:
            await watching.until_idle(self._db, self._stream, request, UUID(answer.product.id))
            answer.product.CopyFrom((await self._read(UUID(answer.product.id))).product)
        return answer

    async def GetProduct(
        self, request: pb.GetProductRequest, context: ServicerContext
    ) -> pb.GetProductResponse:
        answer = await self._read(parse_id(request.product_id, "product_id"))
        if request.include_urls:
            await self._add_urls(list(answer.product.images))
        room = paging.trim_to_limit(
            answer.results, ("value", "evidence"), paging.ANSWER_BYTES - answer.product.ByteSize()
        )
        newest = paging.fitting(answer.reviews, room)
        del answer.reviews[len(newest) :]
        return answer

    async def _read(self, product_id: UUID) -> pb.GetProductResponse:
        mine = {"id": product_id, "ids": [product_id], "limit": _REVIEWS}
        async with self._db.transaction(auth.current().owner) as m:  # one round trip in all
            finding = m.ask(product_rows.SELECT_PRODUCT, mine)
            images = m.ask(product_rows.SELECT_IMAGES, mine)
            phases = m.ask(phase_rows.SELECT_PHASES, mine)
            results = m.ask(result_rows.SELECT_RESULTS, mine)
            reviews = m.ask(_SELECT_LATEST_REVIEWS, mine)
        product = finding.first()
        if product is None:
            raise errors.not_found("product", product_id)
        return pb.GetProductResponse(
            product=product_rows.to_proto(product, images.rows(), phases.rows(), with_facts=True),
            results=map(result_rows.to_proto, results.rows()),
            reviews=map(review_rows.to_proto, reviews.rows()),
        )

    async def ListProducts(
        self, request: pb.ListProductsRequest, context: ServicerContext
    ) -> pb.ListProductsResponse:
        page = paging.page(request)
        state = request.state and product_rows.STATES.word[request.state]
        rows = await self._db.all(*_LIST.query(page, {"state": state, **created(request)}))
        ids = {"ids": [row.id for row in page.cut(rows)]}
        images = watching.by_product(await self._db.all(product_rows.SELECT_IMAGES, ids))
        phases = watching.by_product(await self._db.all(phase_rows.SELECT_PHASES, ids))
        products = [
            product_rows.to_proto(row, images.get(row.id, ()), phases.get(row.id, ()))
            for row in page.cut(rows)
        ]
        if request.include_urls:
            await self._add_urls(
                [image for product in products for image in product.images if image.primary]
            )
        products, token = page.fill(rows, products)
        return pb.ListProductsResponse(products=products, next_page_token=token)

    async def GetSummary(
        self, request: pb.GetSummaryRequest, context: ServicerContext
    ) -> pb.GetSummaryResponse:
        row = await self._db.one(_COUNT_PRODUCTS, {"owner": auth.current().owner})
        return pb.GetSummaryResponse(
            total_products=row.total,
            active_pipelines=row.active,
            completed_products=row.completed,
            error_products=row.error,
            awaiting_review_products=row.awaiting_review,
        )

    async def WatchProduct(
        self, request: pb.WatchProductRequest, context: ServicerContext
    ) -> AsyncIterator[pb.WatchProductResponse]:
        product_id = parse_id(request.product_id, "product_id")
        if await self._db.first(product_rows.SELECT_ID, {"id": product_id}) is None:
            raise errors.not_found("product", product_id)
        async for answer in watching.changes(
            self._db, self._stream, request, pb.WatchProductResponse, product_id
        ):
            yield answer

    def WatchProducts(
        self, request: pb.WatchProductsRequest, context: ServicerContext
    ) -> AsyncIterator[pb.WatchProductsResponse]:
        logs = request.include_logs
        return watching.changes(
            self._db, self._stream, request, pb.WatchProductsResponse, None, logs=logs
        )

    async def _add_urls(self, images: Sequence[pb.ProductImage]) -> None:
        """Sets the URLs of images whose asset is READY and still exists."""
        found = await self._peers.assets((image.asset_id for image in images), urls=True)
        for image in images:
            if asset := found.get(image.asset_id):
                image.image_url, image.thumbnail_url = asset.original_url, asset.thumbnail_url


def _each_once(images: Sequence[pb.NewImage]) -> list[UUID]:
    """Returns the images' asset ids. Raises INVALID_ARGUMENT if two are the same: protovalidate
    compares texts, where case counts."""
    seen: dict[UUID, int] = {}
    for index, image in enumerate(images):
        earlier = seen.setdefault(UUID(image.asset_id), index)
        if earlier != index:
            raise errors.invalid(
                f"images[{index}].asset_id", f"names the same asset as images[{earlier}].asset_id"
            )
    return list(seen)


async def _insert(
    m: Mutation,
    columns: Mapping[str, object],
    images: Sequence[pb.NewImage],
    asset_ids: Sequence[UUID],
) -> tuple[Product, list[ProductImage], list[Phase]]:
    """Inserts the product, its images and its phases. Returns their rows."""
    values = {**columns, "id": new_id(), "owner": m.owner, "created_by": m.actor}
    product = await m.one(_INSERT_PRODUCT, values)
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
            "external": product.external_phases,
            "ids": [new_id() for _ in rules.PHASES],
            "numbers": list(rules.PHASES),
        },
    )
    return product, image_rows, phases

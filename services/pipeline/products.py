"""ProductService: creates, reads and watches products. The other calls are in `product_changes`,
`product_lists` and `explaining`."""

import functools
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import timedelta
from uuid import UUID

from atelier.pipeline.v1 import product_pb2 as pb
from google.protobuf.message import Message
from grpc.aio import ServicerContext
from psycopg.types.json import Jsonb

from services.pipeline import (
    drafting,
    log_rows,
    phase_pause_rows,
    phase_rows,
    product_rows,
    progress,
    receiving,
    result_rows,
    review_rows,
    rules,
    watching,
)
from services.pipeline.drafting import Draft, Drafts
from services.pipeline.explaining import ExplainCalls
from services.pipeline.phase_rows import PHASES, Phase
from services.pipeline.product_changes import ChangeCalls
from services.pipeline.product_lists import ListCalls, act_for, add_urls
from services.pipeline.product_rows import IMAGES, PRODUCTS, Product, ProductImage
from services.pipeline.review_rows import REVIEWS, Review
from shared.background.jobs import JobQueue
from shared.background.watches import EventStream
from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.database.rows import Statement
from shared.formats.fact_tables import FactsError
from shared.formats.facts import parse_facts
from shared.rpc import auth, calls, errors, paging, views
from shared.rpc.calls import Peers
from shared.rpc.errors import Reason
from shared.rpc.protos import facts as stated_facts

_REVIEWS = 100


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
    "condition",
    "condition_details",
)
_INSERT_IMAGES = Statement(
    ProductImage,
    f"""
    INSERT INTO product_images (owner, product_id, position, asset_id, view, is_primary, source_url)
    SELECT %(owner)s, %(id)s, position, asset_id, view, is_primary, source_url
    FROM unnest(%(positions)s::smallint[], %(assets)s::uuid[], %(views)s::text[],
        %(primary)s::boolean[], %(urls)s::text[])
        AS t (position, asset_id, view, is_primary, source_url)
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


class ProductService(ChangeCalls, ListCalls, ExplainCalls):
    def __init__(
        self,
        db: Database,
        stream: EventStream,
        queue: JobQueue,
        flows: progress.Progress,
        peers: Peers,
        drafts: Drafts,
    ) -> None:
        life = timedelta(days=db.settings.trash_days)  # of a deleted product in the trash
        ChangeCalls.__init__(self, db, queue, peers, life=life)
        self._stream = stream
        self._flows = flows
        self._drafts = drafts

    async def CreateProduct(
        self, request: pb.CreateProductRequest, context: ServicerContext
    ) -> pb.CreateProductResponse:
        for number, image in enumerate(request.images):
            views.settle(image, f"images[{number}].")
        columns = _columns(request, self._market_of(request.market_provider))
        _check_each_once(request.images)
        answer = await self._created(request, columns)
        if request.wait:
            await self._wait(request, answer.product)
        return answer

    async def _created(
        self, request: pb.CreateProductRequest, columns: Mapping[str, object]
    ) -> pb.CreateProductResponse:
        async def create(draft: Draft | None = None) -> pb.CreateProductResponse:
            images: Sequence[pb.NewImage] = request.images
            if draft is not None:
                images = await self._drafts.import_images(draft, request.images)

            async def work(m: Mutation) -> pb.CreateProductResponse:
                return pb.CreateProductResponse(
                    product=await self._insert(m, columns, images, draft)
                )

            answer = await self._db.mutate(request, pb.CreateProductResponse, work)
            if draft is not None:
                draft.created = answer.product.id == str(draft.id)
            return answer

        if not any(image.image_url for image in request.images):
            return await create()
        earlier = await self._db.stored_answer(request, pb.CreateProductResponse)
        if earlier is not None:
            return earlier
        async with self._drafts.begin() as draft:
            return await create(draft)

    async def UploadProduct(
        self, request_iterator: AsyncIterator[pb.UploadProductRequest], context: ServicerContext
    ) -> pb.UploadProductResponse:
        head = await receiving.head(request_iterator)
        uploaded = receiving.UploadedProduct(head, head.request_id)
        # The fields of CreateProductRequest have the same numbers.
        same = pb.CreateProductRequest.FromString(head.SerializeToString())
        columns = _columns(same, self._market_of(head.market_provider))
        if await receiving.is_repeat(self._db, uploaded):
            await receiving.receive(request_iterator, uploaded, receiving.Ignored)
            answer = await self._db.stored_answer(uploaded, pb.UploadProductResponse)
            if answer is None:
                text = "the earlier request with this id is forgotten; send it again"
                raise errors.retry_later(Reason.ERROR_REASON_REQUEST_IN_PROGRESS, text, 1)
        else:
            answer = await self._uploaded(request_iterator, uploaded, columns)
        if head.wait:
            left: float | None = context.time_remaining()
            most = self._db.settings.max_deadline_seconds
            usual = self._db.settings.default_deadline_seconds
            calls.set_deadline(usual if left is None else min(left, most))
            await self._wait(head, answer.product)
        return answer

    async def _uploaded(
        self,
        parts: receiving.Parts,
        uploaded: receiving.UploadedProduct,
        columns: Mapping[str, object],
    ) -> pb.UploadProductResponse:
        async with self._drafts.begin() as draft:
            opener = functools.partial(receiving.PassedOn, self._peers, draft)
            images = await receiving.receive(parts, uploaded, opener)

            async def work(m: Mutation) -> pb.UploadProductResponse:
                return pb.UploadProductResponse(
                    product=await self._insert(m, columns, images, draft)
                )

            answer = await self._db.mutate(uploaded, pb.UploadProductResponse, work)
            draft.created = answer.product.id == str(draft.id)
            return answer

    async def _insert(
        self,
        m: Mutation,
        columns: Mapping[str, object],
        images: Sequence[pb.NewImage],
        draft: Draft | None,
    ) -> pb.Product:
        if draft is not None:
            await drafting.finish(m, draft)
        product_id = new_id() if draft is None else draft.id
        product, image_rows, phases = await _insert(m, {**columns, "id": product_id}, images)
        await product_rows.publish(m, product)
        for phase in phases:
            await phase_rows.publish(m, phase)
        text = f"created with {len(images)} images; waiting for them"
        await log_rows.add(m, product.id, 0, "product_created", text)
        await self._flows.prepare(m, product.id)
        return product_rows.to_proto(product, image_rows, phases, with_facts=True)

    async def _wait(self, request: Message, product: pb.Product) -> None:
        product_id = UUID(product.id)
        await watching.until_idle(self._db, self._stream, request, product_id)
        product.CopyFrom((await self._read(product_id)).product)

    async def GetProduct(
        self, request: pb.GetProductRequest, context: ServicerContext
    ) -> pb.GetProductResponse:
        act_for(request)
        answer = await self._read(parse_id(request.product_id, "product_id"))
        if request.include_urls:
            await add_urls(self._peers, list(answer.product.images))
        room = paging.trim_to_limit(
            answer.results,
            ("value", "evidence", "findings"),
            paging.ANSWER_BYTES - answer.product.ByteSize(),
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
            pauses = m.ask(phase_pause_rows.SELECT_PAUSES, phase_pause_rows.ALL)
        product = finding.first()
        if product is None:
            raise errors.not_found("product", product_id)
        answer = pb.GetProductResponse(
            product=product_rows.to_proto(product, images.rows(), phases.rows(), with_facts=True),
            results=map(result_rows.to_proto, results.rows()),
            reviews=map(review_rows.to_proto, reviews.rows()),
        )
        phase_pause_rows.show(answer.product.phases, pauses.rows())
        return answer

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


def _columns(request: pb.CreateProductRequest, market: str) -> dict[str, object]:
    """Returns the columns that the request sets, and its market provider. Raises INVALID_ARGUMENT
    for what no facts may say."""
    facts = stated_facts(request.facts, "facts")
    named = facts.get("product", {})
    given = {name: word for name in rules.OWN if (word := getattr(request, name).strip())}
    try:
        parse_facts({"product": given})
    except FactsError as error:
        raise errors.invalid(error.path.removeprefix("product."), error.reason) from None
    return {
        **{name: given.get(name) or named.get(name, "") for name in rules.OWN},
        "facts": Jsonb(facts),
        "auto_advance": request.auto_advance if request.HasField("auto_advance") else True,
        "market_provider": market,
        "external_phases": sorted(request.run_phases_externally),
    }


def _check_each_once(images: Sequence[pb.NewImage]) -> None:
    """Raises INVALID_ARGUMENT if two images are the same asset: protovalidate compares texts, where
    case counts."""
    seen: dict[UUID, int] = {}
    for index, image in enumerate(images):
        earlier = seen.setdefault(UUID(image.asset_id), index) if image.asset_id else index
        if earlier != index:
            raise errors.invalid(
                f"images[{index}].asset_id", f"names the same asset as images[{earlier}].asset_id"
            )


async def _insert(
    m: Mutation,
    columns: Mapping[str, object],
    images: Sequence[pb.NewImage],
) -> tuple[Product, list[ProductImage], list[Phase]]:
    """Inserts the product, its images and its phases. Returns their rows."""
    values = {**columns, "owner": m.owner, "created_by": m.actor}
    product = await m.one(_INSERT_PRODUCT, values)
    primary = next((index for index, image in enumerate(images) if image.primary), 0)
    image_rows = await m.all(
        _INSERT_IMAGES,
        {
            "owner": m.owner,
            "id": product.id,
            "positions": list(range(1, len(images) + 1)),
            "assets": [UUID(image.asset_id) for image in images],
            "views": [image.view for image in images],
            "primary": [index == primary for index in range(len(images))],
            "urls": [image.image_url.partition("?")[0] for image in images],
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

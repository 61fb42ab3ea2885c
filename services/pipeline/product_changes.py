"""The calls of ProductService that change a product: its fields, its images, archive and trash."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from atelier.assets.v1 import asset_pb2
from atelier.pipeline.v1 import product_pb2 as pb
from atelier.pipeline.v1 import product_pb2_grpc
from psycopg.types.json import Jsonb

from services.pipeline import holding, log_rows, phase_rows, product_rows, rules, trashing
from services.pipeline.product_rows import LockedProduct, Product, ProductImage
from shared.background.jobs import JobQueue
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.database.rows import Statement
from shared.rpc import errors, views
from shared.rpc.calls import Peers
from shared.rpc.protos import facts as stated_facts
from shared.rpc.server import Context

_SELECT_NOW = Statement(datetime, "SELECT now() AS at")
_IMAGE_PROBLEMS = {
    asset_pb2.ASSET_STATE_PENDING: "it is pending; confirm its upload, then repeat",
    asset_pb2.ASSET_STATE_REJECTED: "its upload was rejected; use another picture",
}

A = TypeVar(
    "A",
    pb.UpdateProductResponse,
    pb.AddProductImagesResponse,
    pb.RemoveProductImagesResponse,
    pb.ArrangeProductImagesResponse,
    pb.ArchiveProductResponse,
    pb.UnarchiveProductResponse,
    pb.UndeleteProductResponse,
)
Arranged = TypeVar(
    "Arranged",
    pb.AddProductImagesResponse,
    pb.RemoveProductImagesResponse,
    pb.ArrangeProductImagesResponse,
)
_ImagesRequest = (
    pb.AddProductImagesRequest | pb.RemoveProductImagesRequest | pb.ArrangeProductImagesRequest
)
_ChangeRequest = (
    pb.UpdateProductRequest
    | _ImagesRequest
    | pb.ArchiveProductRequest
    | pb.UnarchiveProductRequest
    | pb.UndeleteProductRequest
)
_Images = Sequence[ProductImage]


class ChangeCalls(product_pb2_grpc.ProductServiceServicer):
    """Implements the calls of ProductService that change a product."""

    def __init__(self, db: Database, queue: JobQueue, peers: Peers, *, life: timedelta) -> None:
        """`life`: how long a deleted product stays in the trash."""
        self._db = db
        self._queue = queue
        self._peers = peers
        self._life = life
        self._market = db.settings.market_provider
        self._has_endpoint = bool(db.settings.market_url)

    def _market_of(self, given: pb.MarketProvider) -> str:
        """Returns the product's market provider. Raises FAILED_PRECONDITION if it can't be
        asked."""
        word = product_rows.PROVIDERS.word.get(given, self._market)
        if word == "http" and not self._has_endpoint:
            text = (
                "no market endpoint is set here; name another market_provider, or ask the operator"
                " to set ATELIER_MARKET_URL"
            )
            raise errors.precondition(text, subject="market_provider")
        return word

    async def UpdateProduct(
        self, request: pb.UpdateProductRequest, context: Context
    ) -> pb.UpdateProductResponse:
        paths = set(request.update_mask.paths)
        facts = stated_facts(request.facts, "facts") if "facts" in paths else None
        if "market_provider" in paths and not request.market_provider:
            raise errors.invalid("market_provider", "must say which when the mask names it")
        if "market_provider" in paths:
            self._market_of(request.market_provider)

        async def change(
            m: Mutation, locked: LockedProduct
        ) -> tuple[Product, pb.UpdateProductResponse]:
            columns = _changed_columns(request, locked, facts)
            if not columns:
                return locked, pb.UpdateProductResponse()
            stored = _stored(columns)
            if words := _restated(columns, locked):
                now = (await m.one(_SELECT_NOW)).isoformat()
                stored["restated"] = Jsonb({**locked.restated, **dict.fromkeys(words, now)})
            row = await product_rows.update(m, locked, stored)
            text = f"changed: {', '.join(columns)}"
            await log_rows.add(m, row.id, 0, "product_updated", text)
            begun = await _begun(m, row.id, first=rules.first_phase_with(columns))
            # phases that rest on it
            return row, pb.UpdateProductResponse(outdated_phases=begun)

        return await self._change(request, pb.UpdateProductResponse, change)

    async def AddProductImages(
        self, request: pb.AddProductImagesRequest, context: Context
    ) -> pb.AddProductImagesResponse:
        for number, image in enumerate(request.images):
            if image.image_url:
                text = "is taken by CreateProduct alone; ImportAsset of assets fetches a picture"
                raise errors.invalid(f"images[{number}].image_url", text)
        asset_ids = each_once([image.asset_id for image in request.images], "images", ".asset_id")
        for number, image in enumerate(request.images):
            views.settle(image, f"images[{number}].")
        # A repeat acquires nothing: the images may have left the product since.
        answer = await self._db.stored_answer(request, pb.AddProductImagesResponse)
        if answer is not None:
            return answer
        added = await self._checked(request.images)

        def arrange(there: _Images) -> _Images:
            return _with_added(request, there, added)

        answer = await self._arrange(request, pb.AddProductImagesResponse, arrange)
        await holding.acquire_now(self._peers, UUID(answer.product.id), asset_ids)
        return answer

    async def RemoveProductImages(
        self, request: pb.RemoveProductImagesRequest, context: Context
    ) -> pb.RemoveProductImagesResponse:
        removed = {UUID(text) for text in request.asset_ids}

        def arrange(there: _Images) -> _Images:
            kept = [row for row in there if row.asset_id not in removed]
            if not kept:
                text = "would leave no image; PurgeProduct removes the product"
                raise errors.invalid("asset_ids", text)
            primary = next((row.asset_id for row in kept if row.is_primary), kept[0].asset_id)
            return _with_primary(kept, primary)

        return await self._arrange(request, pb.RemoveProductImagesResponse, arrange)

    async def ArrangeProductImages(
        self, request: pb.ArrangeProductImagesRequest, context: Context
    ) -> pb.ArrangeProductImagesResponse:
        if not request.asset_ids and not request.primary_asset_id:
            text = "must name the images in their order, unless primary_asset_id is set"
            raise errors.invalid("asset_ids", text)
        order = each_once(request.asset_ids, "asset_ids")
        primary = UUID(request.primary_asset_id) if request.primary_asset_id else None

        def arrange(there: _Images) -> _Images:
            by_id = {row.asset_id: row for row in there}
            if order and set(order) != set(by_id):
                text = "must name each image of the product once; read it again, then repeat"
                raise errors.invalid("asset_ids", text)
            if primary and primary not in by_id:
                text = "is no image of the product; AddProductImages adds it"
                raise errors.invalid("primary_asset_id", text)
            arranged = [by_id[each] for each in order] if order else there
            return _with_primary(arranged, primary) if primary else arranged

        return await self._arrange(request, pb.ArrangeProductImagesResponse, arrange)

    async def _arrange(
        self, request: _ImagesRequest, answer: type[Arranged], arrange: Callable[[_Images], _Images]
    ) -> Arranged:
        """Makes the images those that `arrange` returns for those that are there."""

        async def change(m: Mutation, locked: LockedProduct) -> tuple[Product, Arranged]:
            there = await m.all(product_rows.SELECT_IMAGES, {"ids": [locked.id]})
            images = arrange(there)
            if list(images) == there:
                return locked, answer()
            await product_rows.replace_images(m, locked, images)
            row = await product_rows.update(m, locked, {})
            left = {each.asset_id for each in there} - {each.asset_id for each in images}
            await holding.note_change(m, self._queue, row.id, sorted(left))
            text = f"its images changed: it has {len(images)}"
            await log_rows.add(m, row.id, 0, "images_changed", text)
            begun = await _begun(m, row.id, first=1)
            # phases that rest on it
            return row, answer(outdated_phases=begun)

        return await self._change(request, answer, change)

    async def _checked(self, images: Sequence[pb.NewImage]) -> list[asset_pb2.Asset]:
        """Returns the assets of new images. Raises for the first that isn't a READY picture that
        the caller may see, and names its field."""
        found = await self._peers.assets(image.asset_id for image in images)
        return [
            _usable(f"images[{number}].asset_id", image.asset_id, found)
            for number, image in enumerate(images)
        ]

    async def ArchiveProduct(
        self, request: pb.ArchiveProductRequest, context: Context
    ) -> pb.ArchiveProductResponse:
        async def change(
            m: Mutation, locked: LockedProduct
        ) -> tuple[Product, pb.ArchiveProductResponse]:
            row = await trashing.archive(m, locked, archived=True)
            return row, pb.ArchiveProductResponse()

        return await self._change(request, pb.ArchiveProductResponse, change)

    async def UnarchiveProduct(
        self, request: pb.UnarchiveProductRequest, context: Context
    ) -> pb.UnarchiveProductResponse:
        async def change(
            m: Mutation, locked: LockedProduct
        ) -> tuple[Product, pb.UnarchiveProductResponse]:
            row = await trashing.archive(m, locked, archived=False)
            return row, pb.UnarchiveProductResponse()

        return await self._change(request, pb.UnarchiveProductResponse, change)

    async def DeleteProduct(
        self, request: pb.DeleteProductRequest, context: Context
    ) -> pb.DeleteProductResponse:
        product_id = parse_id(request.product_id, "product_id")

        async def work(m: Mutation) -> pb.DeleteProductResponse:
            row = await trashing.delete(m, product_id, request.etag, self._life)
            return pb.DeleteProductResponse(product=await shown(m, row))

        return await self._db.mutate(request, pb.DeleteProductResponse, work)

    async def UndeleteProduct(
        self, request: pb.UndeleteProductRequest, context: Context
    ) -> pb.UndeleteProductResponse:
        async def change(
            m: Mutation, locked: LockedProduct
        ) -> tuple[Product, pb.UndeleteProductResponse]:
            return await trashing.undelete(m, locked), pb.UndeleteProductResponse()

        return await self._change(request, pb.UndeleteProductResponse, change, in_trash=True)

    async def PurgeProduct(
        self, request: pb.PurgeProductRequest, context: Context
    ) -> pb.PurgeProductResponse:
        product_id = parse_id(request.product_id, "product_id")

        async def work(m: Mutation) -> pb.PurgeProductResponse:
            await trashing.purge(m, self._queue, product_id, request.etag)
            return pb.PurgeProductResponse()

        return await self._db.mutate(request, pb.PurgeProductResponse, work)

    async def _change(
        self,
        request: _ChangeRequest,
        answer: type[A],
        change: Callable[[Mutation, LockedProduct], Awaitable[tuple[Product, A]]],
        *,
        in_trash: bool = False,
    ) -> A:
        """Runs `change` with the locked product, and answers with what it returns. `in_trash`:
        deleted products are changed, too."""
        product_id = parse_id(request.product_id, "product_id")

        async def work(m: Mutation) -> A:
            locked = await product_rows.lock(m, product_id)
            if not in_trash:
                product_rows.refuse_deleted(locked)
            errors.check_etag(request.etag, locked.version, "product", product_id)
            row, made = await change(m, locked)
            made.product.CopyFrom(await shown(m, row))
            return made

        return await self._db.mutate(request, answer, work)


def each_once(ids: Sequence[str], field: str, part: str = "") -> list[UUID]:
    """Returns the ids. Raises INVALID_ARGUMENT if two are the same: protovalidate compares texts,
    where case counts."""
    seen: dict[UUID, int] = {}
    for index, text in enumerate(ids):
        earlier = seen.setdefault(UUID(text), index)
        if earlier != index:
            text = f"names the same asset as {field}[{earlier}]{part}"
            raise errors.invalid(f"{field}[{index}]{part}", text)
    return list(seen)


async def shown(m: Mutation, row: Product) -> pb.Product:
    """Returns the message of a product with its facts, images and phases."""
    images = await m.all(product_rows.SELECT_IMAGES, {"ids": [row.id]})
    phases = await m.all(phase_rows.SELECT_PHASES, {"ids": [row.id]})
    return product_rows.to_proto(row, images, phases, with_facts=True)


async def _begun(m: Mutation, product_id: UUID, *, first: int) -> list[int]:
    """Returns the numbers of the phases from `first` on that have taken the product's values."""
    phases = await m.all(phase_rows.SELECT_PHASES, {"ids": [product_id]})
    return [row.number for row in phases if row.number >= first and row.state in rules.BEGUN]


def _changed_columns(
    request: pb.UpdateProductRequest, row: Product, facts: dict[str, Any] | None
) -> dict[str, Any]:
    """Returns the columns that the request changes to another value. A name or model that is as in
    the facts follows them, and the condition does when they state another one."""
    paths = set(request.update_mask.paths)
    columns: dict[str, Any] = {}
    before = row.facts.get("product", {})
    after = before if facts is None else facts.get("product", {})
    for name, given in (("name", request.name), ("model", request.model)):
        if name in paths:
            columns[name] = given.strip() or after.get(name, "")
        elif getattr(row, name) == before.get(name, ""):
            columns[name] = after.get(name, "")
    for name in ("condition", "condition_details"):
        if before.get(name) != after.get(name):  # one that a person decided stays otherwise
            columns[name] = after.get(name, "")
    if facts is not None:
        columns["facts"] = facts
    if "auto_advance" in paths:
        columns["auto_advance"] = request.auto_advance
    if "market_provider" in paths:
        columns["market_provider"] = product_rows.PROVIDERS.word[request.market_provider]
    return {name: value for name, value in columns.items() if getattr(row, name) != value}


def _restated(columns: Mapping[str, Any], row: Product) -> list[str]:
    """Returns the words of the facts about the product that the columns state anew."""
    before = row.facts.get("product", {})
    after = columns["facts"].get("product", {}) if "facts" in columns else before
    changed = [word for word in {**before, **after} if before.get(word) != after.get(word)]
    named = [name for name in ("name", "model") if name in columns]
    return [*named, *(word for word in changed if word not in ("name", "model"))]


def _stored(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {name: Jsonb(value) if name == "facts" else value for name, value in columns.items()}


def _with_added(
    request: pb.AddProductImagesRequest, there: _Images, added: Sequence[asset_pb2.Asset]
) -> _Images:
    """Returns the images with new ones among them, and another primary one if the request says
    so."""
    known = {row.asset_id for row in there}
    new = [
        _image(there[0], image, asset)
        for image, asset in zip(request.images, added, strict=True)
        if UUID(asset.id) not in known
    ]
    total = len(there) + len(new)
    if total > rules.MOST_IMAGES:
        text = f"the product would have {total} images; it may have {rules.MOST_IMAGES}"
        raise errors.invalid("images", text)
    place = request.position if request.HasField("position") else rules.MOST_IMAGES
    images = [*there[:place], *new, *there[place:]]
    primary = [UUID(image.asset_id) for image in request.images if image.primary]
    return _with_primary(images, primary[0]) if primary else images


def _image(beside: ProductImage, image: pb.NewImage, asset: asset_pb2.Asset) -> ProductImage:
    """Returns the row of a new image of the product that has the image `beside`."""
    return ProductImage(
        owner=beside.owner,
        product_id=beside.product_id,
        position=0,
        asset_id=UUID(asset.id),
        view=image.view,
        is_primary=False,
        source_url="",
        file_name=asset.file_name,
        size_bytes=asset.size_bytes,
        mime_type=asset.mime_type,
        width=asset.width or None,
        height=asset.height or None,
    )


def _with_primary(images: _Images, primary: UUID) -> _Images:
    return [replace(row, is_primary=row.asset_id == primary) for row in images]


def _usable(field: str, text: str, found: Mapping[str, asset_pb2.Asset]) -> asset_pb2.Asset:
    asset = found.get(text.lower())
    if asset is None:
        refusal = errors.not_found("asset", text)
        refusal.metadata["field"] = field
        raise refusal
    if asset.state != asset_pb2.ASSET_STATE_READY:
        raise errors.precondition(
            _IMAGE_PROBLEMS[asset.state],
            subject=f"assets/{asset.id}",
            metadata={"field": field},
        )
    if not asset.mime_type.startswith("image/"):
        raise errors.invalid(field, f"is of type {asset.mime_type}; a picture is needed here")
    return asset

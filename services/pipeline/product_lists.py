"""The calls of ProductService that list and count products.

A list with words reads `product_terms`, which triggers write; one without reads the products in the
order of their index.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from atelier.pipeline.v1 import product_pb2 as pb
from atelier.pipeline.v1 import product_pb2_grpc

from services.pipeline import phase_pause_rows, phase_rows, product_rows, watching
from services.pipeline.product_rows import PRODUCTS, Product
from shared.database.db import Database
from shared.database.lists import Listing, created
from shared.database.rows import Statement
from shared.database.terms import TermListing
from shared.rpc import auth, errors, paging
from shared.rpc.calls import Peers
from shared.rpc.server import Context

_MOST_WORDS = 8
_ENOUGH = 1000  # rows after which a term counts as frequent
_REVIEW = "awaiting_review"
# The first characters of terms, see tables.sql.
_SHOWN, _ARCHIVED, _DELETED = "0", "1", "2"


@dataclass(slots=True)
class _Term:
    """A term without its first character, the word that it begins, and how many products have it,
    counted up to `_ENOUGH`."""

    word: str
    term: str
    rows: int


@dataclass(slots=True)
class _Summary:
    """Counts of an owner's products. `active`: those with a phase that is running or due."""

    total: int
    active: int
    uploaded: int
    processing: int
    awaiting_review: int
    nothing_found: int  # by market research
    completed: int
    error: int
    stopped: int
    archived: int
    deleted: int


_LIST = Listing(
    PRODUCTS,
    Product,
    hide_archived=lambda row, _: row.archived_at.is_(None),
    hide_deleted=lambda row, _: row.deleted_at.is_(None),
)
_SEARCH = TermListing(
    PRODUCTS,
    Product,
    "product_terms",
    sa.Text,
    words=lambda row, words: sa.func.product_has_words(
        row.name, row.model, sa.cast(words, sa.ARRAY(sa.Text))
    ),
)
# The ORDER BY is the index's: without it the planner, which doesn't know the term, reads the whole
# table instead.
_WEIGH_TERMS = Statement(
    _Term,
    """
    WITH asked AS MATERIALIZED (
        SELECT word, 'w' || left(word, (
            SELECT max(size) FROM unnest('{1,2,3,4,5,6,7,8,9,10,12,16}'::integer[]) AS size
            WHERE size <= length(word))) AS term
        FROM unnest(product_words(%(text)s)) AS word
        UNION ALL SELECT '', term FROM unnest(%(terms)s::text[]) AS term)
    SELECT asked.word, asked.term, (
        SELECT count(*) FROM unnest(%(shelves)s::text[]) AS shelf CROSS JOIN LATERAL (
            SELECT FROM product_terms x WHERE x.owner = %(owner)s AND x.term = shelf || asked.term
            ORDER BY x.owner, x.term, x.created_at, x.id LIMIT %(enough)s) AS counted) AS rows
    FROM asked ORDER BY rows, asked.term
    """,
)
_COUNT_PRODUCTS = Statement(
    _Summary,
    """
    SELECT count(*) FILTER (WHERE shown) AS total,
        count(*) FILTER (WHERE shown AND running) AS active,
        count(*) FILTER (WHERE shown AND state = 'uploaded') AS uploaded,
        count(*) FILTER (WHERE shown AND state = 'processing') AS processing,
        count(*) FILTER (WHERE shown AND state = 'awaiting_review') AS awaiting_review,
        count(*) FILTER (WHERE shown AND nothing_found) AS nothing_found,
        count(*) FILTER (WHERE shown AND state = 'completed') AS completed,
        count(*) FILTER (WHERE shown AND state = 'error') AS error,
        count(*) FILTER (WHERE shown AND state = 'stopped') AS stopped,
        count(*) FILTER (WHERE archived_at IS NOT NULL AND deleted_at IS NULL) AS archived,
        count(*) FILTER (WHERE deleted_at IS NOT NULL) AS deleted
    FROM (
        SELECT state, running, archived_at, deleted_at, nothing_found,
            archived_at IS NULL AND deleted_at IS NULL AS shown
        FROM products WHERE owner = %(owner)s
            AND created_at >= coalesce(%(created_from)s::timestamptz, '-infinity')
            AND created_at < coalesce(%(created_before)s::timestamptz, 'infinity')) AS counted
""",
)


class ListCalls(product_pb2_grpc.ProductServiceServicer):
    """Implements ListProducts and GetSummary of ProductService."""

    def __init__(self, db: Database, peers: Peers) -> None:
        self._db = db
        self._peers = peers

    async def ListProducts(
        self, request: pb.ListProductsRequest, context: Context
    ) -> pb.ListProductsResponse:
        act_for(request)
        page = paging.page(request)
        if request.text or request.market_provider:
            rows = await self._found(request, page)
        else:
            rows = await self._listed(request, page)
        ids = {"ids": [row.id for row in page.cut(rows)]}
        async with self._db.transaction(auth.current().owner) as m:  # one round trip in all
            all_images = m.ask(product_rows.SELECT_IMAGES, ids)
            all_phases = m.ask(phase_rows.SELECT_PHASES, ids)
            pauses = m.ask(phase_pause_rows.SELECT_PAUSES, phase_pause_rows.ALL)
        images = watching.by_product(all_images.rows())
        phases = watching.by_product(all_phases.rows())
        products = [
            product_rows.to_proto(row, images.get(row.id, ()), phases.get(row.id, ()))
            for row in page.cut(rows)
        ]
        for product in products:
            phase_pause_rows.show(product.phases, pauses.rows())
        if request.include_urls:
            shown = [image for product in products for image in product.images if image.primary]
            await add_urls(self._peers, shown)
        products, token = page.fill(rows, products)
        return pb.ListProductsResponse(products=products, next_page_token=token)

    async def _listed(self, request: pb.ListProductsRequest, page: paging.Page) -> list[Product]:
        states = _states(request)
        if len(states) > 1:
            return []
        wanted = {
            "state": states[0] if states else None,
            "hide_archived": not request.show_archived,
            "hide_deleted": not request.show_deleted,
            **created(request),
        }
        return await self._db.all(*_LIST.query(page, wanted))

    async def _found(self, request: pb.ListProductsRequest, page: paging.Page) -> list[Product]:
        """Returns the products that have all words, and the state and market provider."""
        if "\x00" in request.text:
            raise errors.invalid("text", "may not contain NUL, which no stored text has")
        terms = [f"s{state}" for state in _states(request)]
        if request.market_provider:
            terms.append(f"m{product_rows.PROVIDERS.word[request.market_provider]}")
        shelves = _shelves(request)
        asked = {
            "owner": auth.current().owner,
            "text": request.text,
            "terms": terms,
            "shelves": shelves,
            "enough": _ENOUGH,
        }
        weighed = await self._db.all(_WEIGH_TERMS, asked)
        words = [each.word for each in weighed if each.word]
        if request.text and not words:
            raise errors.invalid("text", "has no letter and no digit")
        if len(words) > _MOST_WORDS:
            raise errors.invalid("text", f"has {len(words)} words; it may have {_MOST_WORDS}")
        lead, *others = [[shelf + each.term for shelf in shelves] for each in weighed]
        # Of these words the terms have only the beginnings.
        cut = [each.word for each in weighed if each.word and each.term != f"w{each.word}"]
        return await self._db.all(
            *_SEARCH.query(page, lead, others, {"words": cut, **created(request)})
        )

    async def GetSummary(
        self, request: pb.GetSummaryRequest, context: Context
    ) -> pb.GetSummaryResponse:
        auth.act_for(request.owner or auth.current().owner)
        asked = {"owner": auth.current().owner, **created(request)}
        row = await self._db.one(_COUNT_PRODUCTS, asked)
        return pb.GetSummaryResponse(
            total_products=row.total,
            active_pipelines=row.active,
            completed_products=row.completed,
            error_products=row.error,
            awaiting_review_products=row.awaiting_review,
            market_nothing_found_products=row.nothing_found,
            archived_products=row.archived,
            deleted_products=row.deleted,
            uploaded_products=row.uploaded,
            processing_products=row.processing,
            stopped_products=row.stopped,
        )


def act_for(request: pb.ListProductsRequest | pb.GetProductRequest) -> None:
    """Enters the tenant context of the owner that the request names, as `auth.act_for` does. Raises
    INVALID_ARGUMENT if an operator asks for URLs: they would show the pictures."""
    auth.act_for(request.owner or auth.current().owner)
    if auth.current().role == "admin" and request.include_urls:
        raise errors.invalid("include_urls", "is for the owner of the pictures; leave it out")


async def add_urls(peers: Peers, images: Sequence[pb.ProductImage]) -> None:
    """Sets the URLs of images whose asset is READY and still exists."""
    found = await peers.assets((image.asset_id for image in images), urls=True)
    for image in images:
        if asset := found.get(image.asset_id):
            image.image_url, image.thumbnail_url = asset.original_url, asset.thumbnail_url


def _states(request: pb.ListProductsRequest) -> list[str]:
    """Returns the states that the request filters by; two that differ find nothing."""
    state = [product_rows.STATES.word[request.state]] if request.state else []
    return list(dict.fromkeys([*state, *([_REVIEW] if request.requires_review else [])]))


def _shelves(request: pb.ListProductsRequest) -> list[str]:
    archived = [_ARCHIVED] if request.show_archived else []
    deleted = [_DELETED] if request.show_deleted else []
    return [_SHOWN, *archived, *deleted]

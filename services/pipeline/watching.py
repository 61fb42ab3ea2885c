"""Watches of products: the current state, then every change in commit order."""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from typing import Any, Protocol, TypeVar
from uuid import UUID

from atelier.pipeline.v1 import log_pb2, phase_pb2, result_pb2, review_pb2
from atelier.pipeline.v1 import product_pb2 as pb
from google.protobuf.message import Message

from services.pipeline import log_rows, phase_rows, product_rows, result_rows, review_rows
from services.pipeline.log_rows import LOGS, Log
from services.pipeline.phase_rows import Phase
from services.pipeline.product_rows import PRODUCTS, Product, ProductImage
from services.pipeline.result_rows import Result
from services.pipeline.review_rows import REVIEWS, Review
from shared.background import waiting
from shared.background.watches import Event, EventStream, Fields
from shared.database.db import Database
from shared.database.rows import Statement
from shared.rpc import auth, errors

A = TypeVar("A", bound=Message)
# The start of a watch of all products leaves out completed ones that last changed longer ago.
_RECENT = timedelta(days=1)
_PAGE = 200
_LATEST_LOGS = 200

_SELECT_PRODUCTS = Statement(
    Product,
    f"""
    SELECT {PRODUCTS.columns} FROM products
    WHERE owner = %(owner)s AND (%(id)s::uuid IS NULL OR id = %(id)s)
        AND (%(id)s::uuid IS NOT NULL OR state <> 'completed'
            OR updated_at > now() - %(recent)s::interval)
        AND (%(after_id)s::uuid IS NULL
            OR (created_at, id) > (%(after_at)s::timestamptz, %(after_id)s))
    ORDER BY created_at, id LIMIT %(limit)s
""",
)
_SELECT_REVIEWS = Statement(
    Review,
    f"""
    SELECT {REVIEWS.columns} FROM reviews
    WHERE product_id = ANY(%(ids)s) AND (%(single)s OR state = 'open')
    ORDER BY product_id, created_at, id
""",
)
_SELECT_LATEST_LOGS = Statement(
    Log,
    f"""
    SELECT {LOGS.columns} FROM (
        SELECT {LOGS.columns} FROM logs WHERE owner = %(owner)s AND product_id = %(id)s
        ORDER BY created_at DESC, id DESC LIMIT %(limit)s
    ) AS latest ORDER BY created_at, id
""",
)


@dataclass(slots=True)
class _Idle:
    """The columns that show whether a product is idle."""

    id: UUID
    state: str
    running: bool


_SELECT_IDLE = Statement(_Idle, "SELECT id, state, running FROM products WHERE id = %(id)s")
_Shown = (
    pb.Product
    | phase_pb2.Phase
    | result_pb2.PhaseResult
    | review_pb2.Review
    | log_pb2.LogEntry
    | pb.PurgedProduct
)
_MESSAGES: Mapping[str, type[_Shown]] = {
    "product": pb.Product,
    "phase": phase_pb2.Phase,
    "result": result_pb2.PhaseResult,
    "review": review_pb2.Review,
    "log": log_pb2.LogEntry,
    "purged_product": pb.PurgedProduct,
}


class _OfProduct(Protocol):
    @property
    def product_id(self) -> UUID: ...


P = TypeVar("P", bound=_OfProduct)


def by_product(rows: Sequence[P]) -> dict[UUID, list[P]]:
    """Returns the rows, which are sorted by product, as lists by product id."""
    return {
        product_id: list(group)
        for product_id, group in groupby(rows, key=lambda row: row.product_id)
    }


def changes(
    db: Database,
    stream: EventStream,
    request: Message,
    answer: Callable[..., A],
    product_id: UUID | None,
    *,
    logs: bool = True,
) -> AsyncIterator[A]:
    """Returns the stream of a watch, whose answers of type `answer` hold a change. `product_id`
    None: all products of the caller's owner. `logs` False: no log lines."""

    def show(event: Event) -> Fields | None:
        if event.subject == "log" and not logs:
            return None
        message = _MESSAGES[event.subject].FromString(event.payload)
        subject = message.id if isinstance(message, pb.Product) else message.product_id
        field = "purged" if isinstance(message, pb.PurgedProduct) else event.subject
        return {field: message} if product_id is None or subject == str(product_id) else None

    def in_change(**fields: Any) -> A:
        return answer(change=pb.ProductChange(**fields))

    return stream.watch(request, in_change, _now(db, product_id), show)


async def until_idle(db: Database, stream: EventStream, request: Message, product_id: UUID) -> None:
    """Returns when no phase is running or due any more, or shortly before the call's deadline.
    Raises NOT_FOUND if there is no such product."""

    async def read() -> _Idle:
        row = await db.first(_SELECT_IDLE, {"id": product_id})
        if row is None:
            raise errors.not_found("product", product_id)
        return row

    def is_idle(row: _Idle) -> bool:
        return row.state != "uploaded" and not row.running

    await waiting.until_told(stream, request, read, is_idle)


_Row = Product | Phase | Result | Review | Log


async def _now(db: Database, product_id: UUID | None) -> AsyncIterator[tuple[Fields, _Row]]:
    """Yields the current state, product by product: product, phases, results, reviews. For a single
    product, its latest logs follow."""
    owner = auth.current().owner
    after: Mapping[str, object] = {"after_at": None, "after_id": None}
    while True:
        page = {"owner": owner, "id": product_id, "recent": _RECENT, "limit": _PAGE, **after}
        products = await db.all(_SELECT_PRODUCTS, page)
        parts = await _parts(db, products, single=product_id is not None)
        for row in products:
            for item in parts.of(row):
                yield item
        if len(products) < _PAGE:
            break
        after = {"after_at": products[-1].created_at, "after_id": products[-1].id}
    if product_id is not None:
        latest = {"owner": owner, "id": product_id, "limit": _LATEST_LOGS}
        for line in await db.all(_SELECT_LATEST_LOGS, latest):
            yield {"log": log_rows.to_proto(line)}, line


@dataclass(frozen=True)
class _Parts:
    """The images, phases, results and reviews of some products, by product id."""

    images: Mapping[UUID, Sequence[ProductImage]]
    phases: Mapping[UUID, Sequence[Phase]]
    results: Mapping[UUID, Sequence[Result]]
    reviews: Mapping[UUID, Sequence[Review]]

    def of(self, row: Product) -> Iterator[tuple[Fields, _Row]]:
        """Yields the product and its parts, as a watch sends them."""
        yield {"product": product_rows.to_proto(row, self.images.get(row.id, ()))}, row
        for phase in self.phases.get(row.id, ()):
            yield {"phase": phase_rows.to_proto(phase)}, phase
        for result in self.results.get(row.id, ()):
            yield {"result": result_rows.to_proto(result)}, result
        for review in self.reviews.get(row.id, ()):
            yield {"review": review_rows.to_proto(review)}, review


async def _parts(db: Database, products: Sequence[Product], *, single: bool) -> _Parts:
    """Reads the parts of products. `single`: there is one product, and all its reviews are read,
    not only open ones."""
    ids = [row.id for row in products]
    return _Parts(
        by_product(await db.all(product_rows.SELECT_IMAGES, {"ids": ids})),
        by_product(await db.all(phase_rows.SELECT_PHASES, {"ids": ids})),
        by_product(await db.all(result_rows.SELECT_RESULTS, {"ids": ids})),
        by_product(await db.all(_SELECT_REVIEWS, {"ids": ids, "single": single})),
    )

"""What a watch sends: the state as it is, then every change in commit order."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import timedelta
from itertools import groupby
from typing import Any, TypeVar
from uuid import UUID

from atelier.pipeline.v1 import log_pb2, phase_pb2, result_pb2, review_pb2
from atelier.pipeline.v1 import product_pb2 as pb
from google.protobuf.message import Message

from services.pipeline import log_rows, records
from shared.background import events, waiting
from shared.database.db import Database
from shared.rpc import auth

M = TypeVar("M", bound=Message)
_RECENT = timedelta(
    days=1
)  # completed products that changed longer ago aren't sent when a watch of all begins
_PAGE = 200
_LATEST_LOGS = 200

_PRODUCTS = """
    SELECT * FROM products WHERE owner = %(owner)s AND (%(id)s::uuid IS NULL OR id = %(id)s)
        AND (%(id)s::uuid IS NOT NULL OR state <> 'completed' OR updated_at > now() - %(recent)s)
        AND (%(after_id)s::uuid IS NULL OR (created_at, id) > (%(after_at)s::timestamptz,
            %(after_id)s))
    ORDER BY created_at, id LIMIT %(limit)s
"""
_OF_PRODUCTS = {
    "image": (
        "SELECT * FROM product_images WHERE product_id = ANY(%(ids)s) ORDER BY product_id, position"
    ),
    "phase": "SELECT * FROM phases WHERE product_id = ANY(%(ids)s) ORDER BY product_id, number",
    "result": "SELECT * FROM results WHERE product_id = ANY(%(ids)s) ORDER BY product_id, phase",
    "review": (
        """SELECT * FROM reviews WHERE product_id = ANY(%(ids)s) AND (%(one)s OR state = 'open')
                 ORDER BY product_id, created_at, id"""
    ),
}
_LOGS = """
    SELECT * FROM (SELECT * FROM logs WHERE owner = %(owner)s AND product_id = %(id)s
                   ORDER BY created_at DESC, id DESC LIMIT %(limit)s) AS latest
                       ORDER BY created_at, id
"""
_KINDS: Mapping[str, type[Message]] = {
    "product": pb.Product,
    "phase": phase_pb2.Phase,
    "result": result_pb2.PhaseResult,
    "review": review_pb2.Review,
    "log": log_pb2.LogEntry,
}


def by_product(rows: Sequence[Any]) -> dict[UUID, list[Any]]:
    """Rows that are sorted by product, apart."""
    return {
        product_id: list(group)
        for product_id, group in groupby(rows, key=lambda row: row.product_id)
    }


def changes(
    db: Database,
    stream: events.EventStream,
    request: Any,
    answer: Callable[..., M],
    product_id: UUID | None,
    *,
    logs: bool = True,
) -> AsyncIterator[M]:
    """The stream of a watch, whose answers hold a change; `product_id` None: of all products of the
    caller's owner."""

    def show(event: events.Event) -> events.Fields | None:
        if event.subject == "log" and not logs:
            return None
        message: Any = _KINDS[event.subject].FromString(event.payload)
        subject = message.id if event.subject == "product" else message.product_id
        return (
            {event.subject: message} if product_id is None or subject == str(product_id) else None
        )

    def in_change(**fields: Any) -> M:
        return answer(change=pb.ProductChange(**fields))

    return stream.watch(request, in_change, _now(db, product_id), show)


async def until_idle(
    db: Database, stream: events.EventStream, request: Message, product_id: UUID
) -> None:
    """Returns when no phase runs or waits for a runner any more, or shortly before the call's
    deadline."""

    async def read() -> Any:
        return await db.row("SELECT id, state, running FROM products WHERE id = %s", (product_id,))

    await waiting.until_told(
        stream, request, read, lambda row: row.state != "uploaded" and not row.running
    )


async def _now(db: Database, product_id: UUID | None) -> AsyncIterator[tuple[events.Fields, Any]]:
    """What is there, product by product: product, phases, results, reviews; of a single one its
    latest logs, too."""
    owner = auth.current().owner
    after: Mapping[str, Any] = {"after_at": None, "after_id": None}
    while True:
        page = {"owner": owner, "id": product_id, "recent": _RECENT, "limit": _PAGE, **after}
        products = await db.rows(_PRODUCTS, page)
        wanted = {"ids": [row.id for row in products], "one": product_id is not None}
        parts = {kind: by_product(await db.rows(sql, wanted)) for kind, sql in _OF_PRODUCTS.items()}
        for row in products:
            yield {"product": records.product(row, parts["image"].get(row.id, ()))}, row
            for kind, to_proto in (
                ("phase", records.phase),
                ("result", records.result),
                ("review", records.review),
            ):
                for part in parts[kind].get(row.id, ()):
                    yield {kind: to_proto(part)}, part
        if len(products) < _PAGE:
            break
        after = {"after_at": products[-1].created_at, "after_id": products[-1].id}
    if product_id is not None:
        for line in await db.rows(_LOGS, {"owner": owner, "id": product_id, "limit": _LATEST_LOGS}):
            yield {"log": log_rows.to_proto(line)}, line

"""PriceBookService: imports an owner's market offers from a CSV file, lists and deletes them."""

import asyncio
from dataclasses import asdict, dataclass
from uuid import UUID

from atelier.pipeline.v1 import price_book_pb2 as pb
from atelier.pipeline.v1 import price_book_pb2_grpc
from grpc.aio import ServicerContext

from services.pipeline import price_book_rows
from services.pipeline.price_book_rows import ENTRIES, Entry
from services.pipeline.price_csv import COLUMNS, KEYS, Book, folded, read_csv
from shared.database.db import Database, Mutation
from shared.database.lists import Listing
from shared.database.rows import Statement
from shared.rpc import paging

_MAX_ERRORS = 100


@dataclass(slots=True)
class _Stored:
    id: UUID
    added: bool  # False: it replaced the offer for the same product and marketplace


_UPSERT_ENTRIES = Statement(
    _Stored,
    """
    INSERT INTO price_book_entries AS e (id, owner, brand, model, name, marketplace, category,
        link, price, msrp, currency, brand_key, model_key, name_key, marketplace_key)
    SELECT id, %(owner)s, brand, model, name, marketplace, category,
        link, price, msrp, currency, brand_key, model_key, name_key, marketplace_key
    FROM unnest(%(id)s::uuid[], %(brand)s::text[], %(model)s::text[], %(name)s::text[],
        %(marketplace)s::text[], %(category)s::text[], %(link)s::text[], %(price)s::float8[],
        %(msrp)s::float8[], %(currency)s::text[], %(brand_key)s::text[], %(model_key)s::text[],
        %(name_key)s::text[], %(marketplace_key)s::text[])
        AS t (id, brand, model, name, marketplace, category, link, price, msrp, currency,
            brand_key, model_key, name_key, marketplace_key)
    ON CONFLICT (owner, brand_key, model_key, name_key, marketplace_key, currency) DO UPDATE SET
        updated_at = now(), brand = excluded.brand, model = excluded.model, name = excluded.name,
        marketplace = excluded.marketplace, category = excluded.category, link = excluded.link,
        price = excluded.price, msrp = excluded.msrp
    RETURNING id, (xmax = 0) AS added
""",
)
_DELETE_OTHERS = Statement(
    UUID,
    """
    DELETE FROM price_book_entries WHERE owner = %(owner)s AND NOT id = ANY(%(kept)s)
    RETURNING id
""",
)
_DELETE = Statement(
    UUID,
    """
    DELETE FROM price_book_entries
    WHERE owner = %(owner)s AND (%(all)s::boolean OR id = ANY(%(ids)s))
    RETURNING id
""",
)
_LIST = Listing(ENTRIES, Entry)


class PriceBookService(price_book_pb2_grpc.PriceBookServiceServicer):
    def __init__(self, db: Database) -> None:
        self._db = db

    async def ImportPriceBook(
        self, request: pb.ImportPriceBookRequest, context: ServicerContext
    ) -> pb.ImportPriceBookResponse:
        earlier = await self._db.stored_answer(request, pb.ImportPriceBookResponse)
        if earlier is not None:
            return earlier
        book = await asyncio.to_thread(
            read_csv, request.csv, request.encoding
        )  # in a thread: reading takes long enough to delay other calls

        async def work(m: Mutation) -> pb.ImportPriceBookResponse:
            return await _store(m, book, replace=request.replace)

        return await self._db.mutate(request, pb.ImportPriceBookResponse, work)

    async def ListPriceBookEntries(
        self, request: pb.ListPriceBookEntriesRequest, context: ServicerContext
    ) -> pb.ListPriceBookEntriesResponse:
        page = paging.page(request)
        keys = {"model_key": folded(request.model), "name_key": folded(request.name)}
        wanted = {name: key for name, key in keys.items() if key}
        rows = await self._db.all(*_LIST.query(page, wanted))
        entries, token = page.fill(rows, map(price_book_rows.to_proto, rows))
        return pb.ListPriceBookEntriesResponse(entries=entries, next_page_token=token)

    async def DeletePriceBookEntries(
        self, request: pb.DeletePriceBookEntriesRequest, context: ServicerContext
    ) -> pb.DeletePriceBookEntriesResponse:
        ids = [UUID(each) for each in request.entry_ids]

        async def work(m: Mutation) -> pb.DeletePriceBookEntriesResponse:
            gone = await m.all(_DELETE, {"owner": m.owner, "all": request.all, "ids": ids})
            return pb.DeletePriceBookEntriesResponse(deleted=len(gone))

        return await self._db.mutate(request, pb.DeletePriceBookEntriesResponse, work)


async def _store(m: Mutation, book: Book, *, replace: bool) -> pb.ImportPriceBookResponse:
    """Stores the good lines. `replace` deletes all other entries, unless a line is wrong."""
    names = [*COLUMNS, *(f"{name}_key" for name in KEYS), "id"]
    columns = {name: [entry[name] for entry in book.entries] for name in names}
    kept = await m.all(_UPSERT_ENTRIES, {**columns, "owner": m.owner})
    removed: list[UUID] = []
    if replace and not book.errors:
        others = {"owner": m.owner, "kept": [row.id for row in kept]}
        removed = await m.all(_DELETE_OTHERS, others)
    added = sum(row.added for row in kept)
    return pb.ImportPriceBookResponse(
        added=added,
        updated=len(kept) - added,
        removed=len(removed),
        refused=len(book.errors),
        errors=[pb.LineError(**asdict(fault)) for fault in book.errors[:_MAX_ERRORS]],
    )

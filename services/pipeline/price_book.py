"""The price book: what an owner knows of the market, from a CSV file, and finding a product's
offers in it."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from atelier.pipeline.v1 import price_book_pb2 as pb
from atelier.pipeline.v1 import price_book_pb2_grpc

from services.pipeline import records
from services.pipeline.price_csv import COLUMNS, KEYS, folded, read_csv
from shared.database.db import Database, Mutation
from shared.rpc import auth, paging
from shared.rpc.protos import timestamp

_MAX_ERRORS = 100

_IMPORT = """
    INSERT INTO price_book_entries AS e (id, owner, brand, model, name, marketplace, category,
        link, price, msrp,
        currency, brand_key, model_key, name_key, marketplace_key)
    SELECT id, %(owner)s, brand, model, name, marketplace, category, link, price, msrp, currency,
        brand_key, model_key,
        name_key, marketplace_key
    FROM unnest(%(id)s::uuid[], %(brand)s::text[], %(model)s::text[], %(name)s::text[],
        %(marketplace)s::text[],
        %(category)s::text[], %(link)s::text[], %(price)s::float8[], %(msrp)s::float8[],
            %(currency)s::text[],
        %(brand_key)s::text[], %(model_key)s::text[], %(name_key)s::text[],
            %(marketplace_key)s::text[])
        AS t (id, brand, model, name, marketplace, category, link, price, msrp, currency,
            brand_key, model_key,
        name_key, marketplace_key)
    ON CONFLICT (owner, brand_key, model_key, name_key, marketplace_key) DO UPDATE SET updated_at
        = now(),
        brand = excluded.brand, model = excluded.model, name = excluded.name, marketplace
            = excluded.marketplace,
        category = excluded.category, link = excluded.link, price = excluded.price, msrp
            = excluded.msrp,
        currency = excluded.currency
    RETURNING id, (xmax = 0) AS added
"""
_REMOVE_OTHERS = """
    DELETE FROM price_book_entries WHERE owner = %(owner)s AND NOT id = ANY(%(kept)s)
        RETURNING 1 AS n
"""
_BY_MODEL = """
    SELECT * FROM price_book_entries
    WHERE owner = %(owner)s AND model_key = %(model)s AND model_key <> ''
        AND (%(brand)s::text = '' OR brand_key IN (%(brand)s, ''))
    ORDER BY currency, price NULLS LAST, marketplace_key LIMIT 100
"""
_BY_NAME = """
    SELECT * FROM price_book_entries
    WHERE owner = %(owner)s AND name_key = %(name)s AND name_key <> ''
        AND (%(brand)s::text = '' OR brand_key IN (%(brand)s, '')) AND (model_key = ''
            OR %(model)s::text = '')
    ORDER BY currency, price NULLS LAST, marketplace_key LIMIT 100
"""


async def look_up(m: Mutation, facts: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Offers for the product that the facts describe: JSON of a MarketResearch, and a line about
    how they were found.

    By the maker's number, else by the name if the offer or the product has no number. Brands must
    agree where both are known.
    """
    product = facts.get("product", {})
    wanted = {
        "owner": m.owner,
        **{name: folded(product.get(name, "")) for name in ("brand", "model", "name")},
    }
    for way, statement in (("model", _BY_MODEL), ("name", _BY_NAME)):
        found = [] if not wanted[way] else await m.all(statement, wanted)
        if found:
            text = f"{len(found)} offers in the price book match by {way} {product[way]!r}"
            return research(found, way, facts.get("price", {}).get("currency", "")), text
    return {}, "no offer in the price book matches; nothing was found, and nothing is made up"


def research(entries: Sequence[Any], way: str, preferred_currency: str) -> dict[str, Any]:
    """Entries, cheapest first within a currency, as JSON of a MarketResearch. Amounts are never
    converted: the summary is in the preferred currency, or else in that of most offers."""
    counts = {
        entry.currency: sum(e.currency == entry.currency for e in entries) for entry in entries
    }
    currency = (
        preferred_currency
        if preferred_currency in counts
        else max(sorted(counts), key=lambda c: counts[c])
    )
    priced = [entry for entry in entries if entry.currency == currency and entry.price is not None]
    best = priced[0] if priced else None
    elsewhere = [
        entry for entry in priced if best and entry.marketplace_key != best.marketplace_key
    ]
    suggested = [
        entry.msrp
        for entry in [best, *entries]
        if entry and entry.msrp and entry.currency == currency
    ]
    made = {
        "marketplace": _offer(best) if best else None,
        "msrp": {"amount": suggested[0], "currency": currency} if suggested else None,
        "competitive_price": (
            {"amount": elsewhere[0].price, "currency": currency} if elsewhere else None
        ),
        "brand": next((entry.brand for entry in entries if entry.brand), None),
        "category": next((entry.category for entry in entries if entry.category), None),
        "matched_by": way,
        "offers": [_offer(entry) for entry in entries],
    }
    return {name: value for name, value in made.items() if value}


def _offer(entry: Any) -> dict[str, Any]:
    made = {
        "marketplace": entry.marketplace,
        "price": (
            {"amount": entry.price, "currency": entry.currency} if entry.price is not None else None
        ),
        "link": entry.link,
        "msrp": (
            {"amount": entry.msrp, "currency": entry.currency} if entry.msrp is not None else None
        ),
    }
    return {name: value for name, value in made.items() if value}


class PriceBookService(price_book_pb2_grpc.PriceBookServiceServicer):
    def __init__(self, db: Database) -> None:
        self._db = db

    async def ImportPriceBook(
        self, request: pb.ImportPriceBookRequest, context: Any
    ) -> pb.ImportPriceBookResponse:
        earlier = await self._db.stored_answer(request, pb.ImportPriceBookResponse)
        if earlier is not None:
            return earlier
        book = await asyncio.to_thread(
            read_csv, request.csv, request.encoding
        )  # it takes long enough to hold up other calls

        async def work(m: Mutation) -> pb.ImportPriceBookResponse:
            names = [*COLUMNS, *(f"{name}_key" for name in KEYS), "id"]
            columns = {name: [entry[name] for entry in book.entries] for name in names}
            kept = await m.all(_IMPORT, {**columns, "owner": m.owner})
            removed: list[Any] = []
            if request.replace and not book.errors:
                removed = await m.all(
                    _REMOVE_OTHERS, {"owner": m.owner, "kept": [row.id for row in kept]}
                )
            added = sum(row.added for row in kept)
            return pb.ImportPriceBookResponse(
                added=added,
                updated=len(kept) - added,
                removed=len(removed),
                refused=len(book.errors),
                errors=[pb.LineError(**asdict(fault)) for fault in book.errors[:_MAX_ERRORS]],
            )

        return await self._db.mutate(request, pb.ImportPriceBookResponse, work)

    async def ListPriceBookEntries(
        self, request: pb.ListPriceBookEntriesRequest, context: Any
    ) -> pb.ListPriceBookEntriesResponse:
        page = paging.page(request)
        statement: Any = f"SELECT * FROM price_book_entries WHERE owner = %(owner)s{page.clause}"
        rows = await self._db.rows(statement, {"owner": auth.current().owner} | page.parameters)
        entries, token = page.fill(rows, map(_to_proto, rows))
        return pb.ListPriceBookEntriesResponse(entries=entries, next_page_token=token)


def _to_proto(row: Any) -> pb.PriceBookEntry:
    offer = records.value(
        {"market_research": {"marketplace": _offer(row)}}
    ).market_research.marketplace
    return pb.PriceBookEntry(
        id=str(row.id),
        brand=row.brand,
        model=row.model,
        name=row.name,
        category=row.category,
        offer=offer,
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
    )

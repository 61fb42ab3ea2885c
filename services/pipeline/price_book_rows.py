"""Entries of the price book: the row class, its message, and looking up a product's offers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from atelier.pipeline.v1 import price_book_pb2

from services.pipeline import offers, result_rows
from services.pipeline.price_csv import folded
from shared.database.db import Mutation
from shared.database.rows import Statement, Table
from shared.rpc.protos import timestamp


@dataclass(slots=True)
class Entry:
    """An offer. The `_key` columns hold the same text folded, for lookups."""

    id: UUID
    owner: str
    brand: str
    model: str
    name: str
    marketplace: str
    category: str
    link: str
    price: float | None
    msrp: float | None
    currency: str
    brand_key: str
    model_key: str
    name_key: str
    marketplace_key: str
    created_at: datetime
    updated_at: datetime


_MOST_NAMED = 5
ENTRIES = Table("price_book_entries", Entry)
_SELECT_BY_MODEL = Statement(
    Entry,
    f"""
    SELECT {ENTRIES.columns} FROM price_book_entries
    WHERE owner = %(owner)s AND model_key = %(model)s AND model_key <> ''
        AND (%(brand)s::text = '' OR brand_key IN (%(brand)s, ''))
    ORDER BY currency <> %(currency)s, currency, price NULLS LAST, marketplace_key LIMIT 100
""",
)
_SELECT_BY_NAME = Statement(
    Entry,
    f"""
    SELECT {ENTRIES.columns} FROM price_book_entries
    WHERE owner = %(owner)s AND name_key = %(name)s AND name_key <> ''
        AND (%(brand)s::text = '' OR brand_key IN (%(brand)s, ''))
        AND (model_key = '' OR %(model)s::text = '')
    ORDER BY currency <> %(currency)s, currency, price NULLS LAST, marketplace_key LIMIT 100
""",
)


async def look_up(m: Mutation, facts: Mapping[str, Any]) -> tuple[dict[str, Any], str, bool]:
    """Looks up offers for the product that the facts describe. Returns JSON of a MarketResearch,
    empty if no offer matches, a sentence about how they were found, and whether all of them are of
    one product.

    Matches by the maker's model number, else by the name if the offer or the product has no number.
    Brands must agree where both are known.
    """
    product: Mapping[str, str] = facts.get("product", {})
    price: Mapping[str, str] = facts.get("price", {})
    wanted = {
        "owner": m.owner,
        "currency": price.get("currency", ""),
        **{name: folded(product.get(name, "")) for name in ("brand", "model", "name")},
    }
    for way, statement in (("model", _SELECT_BY_MODEL), ("name", _SELECT_BY_NAME)):
        found = await m.all(statement, wanted) if wanted[way] else []
        if found:
            text = f"{len(found)} offers in the price book match by {way} {product[way]!r}"
            several = _several(found)
            if several:
                text += f", of several products: {'; '.join(several)}"
            research = offers.research(
                list(map(_offer, found)),
                matched_by=way,
                preferred_currency=price.get("currency", ""),
                brand=next((entry.brand for entry in found if entry.brand), ""),
                category=next((entry.category for entry in found if entry.category), ""),
            )
            return research, text, not several
    text = "no offer in the price book matches; nothing was found, and nothing is made up"
    return {}, text, True


def _several(found: Sequence[Entry]) -> list[str]:
    """Returns brand and model of each product that the entries are of; none if they are of one. An
    entry without a brand or a model may be of any."""
    known = {
        (each.brand_key, each.model_key): f"{each.brand} {each.model}".strip() for each in found
    }
    brands = {brand for brand, _ in known if brand}
    models = {model for _, model in known if model}
    if len(brands) < 2 and len(models) < 2:
        return []
    return sorted(name for name in known.values() if name)[:_MOST_NAMED]


def _offer(entry: Entry) -> dict[str, Any]:
    return _set(
        {
            "marketplace": entry.marketplace,
            "price": _money(entry.price, entry.currency),
            "link": entry.link,
            "msrp": _money(entry.msrp, entry.currency),
        }
    )


def _money(amount: float | None, currency: str) -> dict[str, object] | None:
    return None if amount is None else {"amount": amount, "currency": currency}


def _set(values: Mapping[str, object]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value}


def to_proto(row: Entry) -> price_book_pb2.PriceBookEntry:
    offer = result_rows.value({"market_research": {"marketplace": _offer(row)}})
    return price_book_pb2.PriceBookEntry(
        id=str(row.id),
        brand=row.brand,
        model=row.model,
        name=row.name,
        category=row.category,
        offer=offer.market_research.marketplace,
        create_time=timestamp(row.created_at),
        update_time=timestamp(row.updated_at),
    )

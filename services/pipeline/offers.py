"""What offers come to: the best one, and prices side by side in each currency. Pure functions on
JSON of Offer; amounts are never converted."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from services.pipeline.price_csv import folded

Offer = Mapping[str, Any]
_MOST = 100  # offers of a MarketResearch


def research(
    offers: Sequence[Offer],
    *,
    matched_by: str,
    preferred_currency: str = "",
    msrp: Mapping[str, Any] | None = None,
    brand: str = "",
    category: str = "",
    extras: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Returns JSON of a MarketResearch, empty if there is nothing in it.

    Its best offer, MSRP and competitive price are in the preferred currency, or in that of most
    offers if no offer has the preferred one. `msrp` is one that is known apart from the offers.
    """
    sorted_offers = sorted(offers, key=_order)[:_MOST]
    counts = Counter(sorted(map(_currency, sorted_offers)))
    codes = sorted(counts, key=lambda code: (code != preferred_currency, -counts[code], code))
    summaries = [_summary(sorted_offers, code) for code in codes]
    chosen = summaries[0] if summaries else {}
    found = {
        "marketplace": chosen.get("best"),
        "msrp": msrp or chosen.get("msrp"),
        "competitive_price": chosen.get("competitive_price"),
        "brand": brand,
        "category": category,
        "offers": sorted_offers,
        "extras": list(extras),
        "currencies": summaries,
    }
    said = _set(found)
    return said | _set({"matched_by": matched_by}) if said else {}


def _summary(offers: Sequence[Offer], code: str) -> dict[str, Any]:
    """Returns JSON of a CurrencySummary. `offers` are sorted."""
    mine = [offer for offer in offers if _currency(offer) == code]
    priced = [offer for offer in mine if "price" in offer]
    best = priced[0] if priced else None
    elsewhere = [
        offer["price"] for offer in priced if best and _marketplace(offer) != _marketplace(best)
    ]
    suggested = [
        offer["msrp"]
        for offer in [*priced[:1], *mine]
        if offer.get("msrp", {}).get("currency") == code
    ]
    summary = {
        "currency": code,
        "offer_count": len(mine),
        "best": best,
        "msrp": next(iter(suggested), None),
        "competitive_price": next(iter(elsewhere), None),
    }
    return _set(summary)


def _currency(offer: Offer) -> str:
    price: Mapping[str, str] = offer.get("price") or offer["msrp"]
    return price["currency"]


def _marketplace(offer: Offer) -> str:
    return folded(offer.get("marketplace", ""))


def _order(offer: Offer) -> tuple[str, bool, float, str]:
    price = offer.get("price")
    return _currency(offer), price is None, price["amount"] if price else 0.0, _marketplace(offer)


def _set(values: Mapping[str, object]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value}

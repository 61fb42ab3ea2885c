"""Decisions of `pipeline` without any machinery: states, what follows from them, limits."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

PHASES = (1, 2, 3, 4)
PHASE_NAMES = {1: "product analysis", 2: "market research", 3: "SEO analysis", 4: "product listing"}
REVIEW_BELOW = 0.80  # a confidence below this waits for a person

PHASE_STATES: Mapping[str, frozenset[str]] = {
    "pending": frozenset({"pending", "running", "failed", "stopped"}),
    "running": frozenset({"running", "pending", "awaiting_review", "completed", "failed", "stopped"}),
    "awaiting_review": frozenset({"pending", "completed", "failed", "stopped"}),
    "completed": frozenset(),
    "failed": frozenset({"pending"}),
    "stopped": frozenset({"pending"}),
}
# A product follows its phases, so that it may stay where it is while another of its columns changes.
PRODUCT_STATES: Mapping[str, frozenset[str]] = {
    "uploaded": frozenset({"uploaded", "processing", "error", "stopped"}),
    "processing": frozenset({"processing", "awaiting_review", "completed", "error", "stopped"}),
    "awaiting_review": frozenset({"awaiting_review", "processing", "completed", "error", "stopped"}),
    "completed": frozenset(),
    "error": frozenset({"error", "uploaded", "processing"}),
    "stopped": frozenset({"stopped", "uploaded", "processing", "error"}),
}
REVIEW_STATES: Mapping[str, frozenset[str]] = {
    "open": frozenset({"open", "approved", "edited", "rejected", "sent_back", "withdrawn"}),
    "approved": frozenset(),
    "edited": frozenset(),
    "rejected": frozenset(),
    "sent_back": frozenset(),
    "withdrawn": frozenset(),
}

MAX_ATTEMPTS = 6  # tries of a phase before it fails; with their backoffs some two minutes of an unreachable service
DEFAULT_LEASE_SECONDS = 60  # of an outside runner
DEFAULT_CLAIM_MINUTES = 15  # of a reviewer
VALUE_BYTES = 500_000  # of a phase's value as JSON: a review holds three, and its answer at most 4 MiB
IMAGES_WAIT_SECONDS = 24 * 3600.0  # for a product's images to be READY


class PhaseLike(Protocol):
    @property
    def state(self) -> str: ...
    @property
    def started(self) -> bool: ...


def is_due(phase: PhaseLike) -> bool:
    """Whether a phase waits for a worker or an outside runner."""
    return phase.state == "pending" and phase.started


def product_state(preparation: str, phases: Sequence[PhaseLike]) -> tuple[str, bool]:
    """The product's state, and whether a phase is running or waits for a runner. `phases` are all four."""
    states = {phase.state for phase in phases}
    running = any(phase.state == "running" or is_due(phase) for phase in phases)
    if preparation == "failed" or "failed" in states:
        return "error", False
    for state in ("stopped", "awaiting_review"):
        if state in states:
            return state, False
    if states == {"completed"}:
        return "completed", False
    return ("processing", running) if running or "completed" in states else ("uploaded", False)


def wants_review(confidence: float | None) -> bool:
    return confidence is not None and confidence < REVIEW_BELOW


def images_wait(waited_seconds: float) -> float:
    """Seconds until the images are looked at again: soon at first, then ever less often."""
    return min(max(0.5, waited_seconds / 10), 30.0)


def effective(model: Mapping[str, Any], reviewer: Mapping[str, Any], mask: Sequence[str]) -> dict[str, Any]:
    """The model's value with the reviewer's in it, field by field; a field of `mask` that isn't set is emptied."""
    if not mask:
        return {**model, **reviewer}
    kept = {name: value for name, value in model.items() if name not in mask}
    return kept | {name: value for name, value in reviewer.items() if name in mask}


def facts_for(product: Any, analysis: Mapping[str, Any], market: Mapping[str, Any]) -> dict[str, Any]:
    """The caller's facts with what the first two phases found: for the phases after them, in shared.facts' plain form.

    `product` is the row; `analysis` and `market` are effective values of phases 1 and 2, or empty. What a phase left
    out stays as it was stated; market data that the caller stated is kept.
    """
    named = {"name": product.name, "model": product.model}
    categories = dict(zip(("category", "subcategory"), analysis.get("categories", ()), strict=False))
    brands = dict(zip(("brand",), analysis.get("brands", ()), strict=False))
    found = {name: analysis.get(name) for name in ("name", "model", "condition", "condition_details")}
    words = {name: value for part in (named, categories, brands, found) for name, value in part.items() if value}
    facts = {**product.facts, "product": {**product.facts.get("product", {}), **words}}
    if not facts["product"]:
        del facts["product"]
    offered = _market_facts(market)
    return {"market": offered, **facts} if offered else facts


def _market_facts(market: Mapping[str, Any]) -> dict[str, Any]:
    best = market.get("marketplace", {})
    prices = {"price": best.get("price"), "competitive_price": market.get("competitive_price")}
    stated = {name: price["amount"] for name, price in prices.items() if price}
    if not stated:
        return {}
    currency = next(price["currency"] for price in prices.values() if price)
    place = {"marketplace": best["marketplace"]} if best.get("marketplace") else {}
    return {"currency": currency, **place, **stated}

"""Decisions of `pipeline` as pure functions and constants: states, what follows from them,
limits."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol

PHASES = (1, 2, 3, 4)
PHASE_NAMES = {1: "product analysis", 2: "market research", 3: "SEO analysis", 4: "product listing"}

PHASE_STATES: Mapping[str, frozenset[str]] = {
    "pending": frozenset({"pending", "running", "failed", "stopped"}),
    "running": frozenset(
        {"running", "pending", "awaiting_review", "completed", "failed", "stopped"}
    ),
    "awaiting_review": frozenset({"pending", "completed", "failed", "stopped"}),
    "completed": frozenset({"pending"}),
    "failed": frozenset({"pending"}),
    "stopped": frozenset({"pending"}),
}
# A product's state follows its phases, so it may stay the same while another column changes.
PRODUCT_STATES: Mapping[str, frozenset[str]] = {
    "uploaded": frozenset({"uploaded", "processing", "error", "stopped"}),
    "processing": frozenset({"processing", "awaiting_review", "completed", "error", "stopped"}),
    "awaiting_review": frozenset(
        {"awaiting_review", "processing", "completed", "error", "stopped"}
    ),
    "completed": frozenset({"completed", "uploaded", "processing"}),
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

# A phase fails after so many faults, whose backoffs take some two minutes, or when an outside
# runner's lease passes in attempt 6 or later. Waits for a service that can't be reached don't
# count.
MAX_ATTEMPTS = 6
DEFAULT_LEASE_SECONDS = 60  # of an outside worker
DEFAULT_CLAIM_MINUTES = 15  # of a reviewer
# The limit of a phase's value as JSON: a review holds three values, and an answer is at most 4 MiB.
VALUE_BYTES = 500_000
MOST_IMAGES = 16  # of a product
BEGUN = frozenset({"running", "awaiting_review", "completed"})
"""States of phases that have taken the product's values."""
IMAGES_WAIT_SECONDS = 24 * 3600.0  # for a product's images to be READY


class PhaseLike(Protocol):
    @property
    def state(self) -> str: ...
    @property
    def started(self) -> bool: ...


def is_due(phase: PhaseLike) -> bool:
    """Returns whether a phase waits for a worker or an outside worker."""
    return phase.state == "pending" and phase.started


def product_state(preparation: str, phases: Sequence[PhaseLike]) -> tuple[str, bool]:
    """Returns the product's state, and whether a phase is running or due. `phases` are all four."""
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


def first_phase_with(names: Collection[str]) -> int:
    """Returns the number of the first phase that rests on one of these columns of a product, or on
    a phase that does; 5 if none does."""
    if {"name", "model", "facts"} & set(names):
        return 1
    return 2 if "market_provider" in names else PHASES[-1] + 1


def images_wait(waited_seconds: float) -> float:
    """Returns the seconds until the images are checked again: 0.5 at first, later a tenth of the
    wait so far, at most 30."""
    return min(max(0.5, waited_seconds / 10), 30.0)


def effective(
    model: Mapping[str, Any], reviewer: Mapping[str, Any], mask: Sequence[str]
) -> dict[str, Any]:
    """Returns the model's value with the reviewer's fields in place of its own. If `mask` names
    fields, only those change, and one that the reviewer didn't set is emptied."""
    if not mask:
        return {**model, **reviewer}
    kept = {name: value for name, value in model.items() if name not in mask}
    return kept | {name: value for name, value in reviewer.items() if name in mask}


ByPhase = Mapping[int, Mapping[str, Any]]
"""Fields of phases' values, by phase. `said` holds the fields that people decided on in their
edits; None for one that they emptied."""

OWN = ("name", "model", "condition", "condition_details")
"""Facts that a product has beside its facts: as given, then as reviewers of phase 1 decided."""
_SAME = {
    1: OWN,
    2: ("brand", "category"),
    3: ("description", "keywords"),
}
_LISTED = ("title", "description", "category", "subcategory", "condition", "condition_details")
_PRICES = ("price", "competitive_price")
_CONFIRMED = "confirmed"  # the source of a price that a person stated


def said_in(
    model: Mapping[str, Any], reviewer: Mapping[str, Any], effective: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what a reviewer said: each field that the review changed, or that the reviewer
    repeated unchanged. A field that is gone from the value without the reviewer's word is what the
    owner stated anew."""
    changed = [
        name
        for name in {**model, **effective}
        if model.get(name) != effective.get(name) and (name in effective or name in reviewer)
    ]
    repeated = [name for name, value in reviewer.items() if effective.get(name) == value]
    return {name: effective.get(name) for name in (*changed, *repeated)}


# The fields of phases' values that a word of the facts about a product concerns, if they aren't
# named like it.
_CONCERNED = {
    "brand": ("brand", "brands"),
    "category": ("category", "categories"),
    "subcategory": ("categories",),
}


def restated_since(restated: Mapping[str, str], at: datetime) -> list[str]:
    """Returns the words that the owner stated anew after `at`."""
    return [word for word, time in restated.items() if datetime.fromisoformat(time) > at]


def without(value: Mapping[str, Any], words: Collection[str]) -> dict[str, Any]:
    """Returns a phase's fields without those that these words of the facts concern."""
    gone = {field for word in words for field in _CONCERNED.get(word, (word,))}
    return {name: field for name, field in value.items() if name not in gone}


class StatedProduct(Protocol):
    """What the caller stated about a product."""

    @property
    def name(self) -> str: ...
    @property
    def model(self) -> str: ...
    @property
    def condition(self) -> str: ...
    @property
    def condition_details(self) -> str: ...
    @property
    def facts(self) -> Mapping[str, Any]: ...


def facts_for(product: StatedProduct, values: ByPhase, said: ByPhase) -> dict[str, Any]:
    """Returns the facts that the next phase is given, in the plain form of shared.formats.facts:
    the caller's, with what the phases before found and what people said about it.

    `values` are effective values by phase. What a phase left out stays as the caller stated it, and
    so does market data that the caller stated. What a person said overrides both.
    """
    words = {
        **product.facts.get("product", {}),
        **_set({name: getattr(product, name) for name in OWN}),
    }
    words |= _set(_words(1, values.get(1, {})))
    words = _set(words | _words_said(said))
    market = _market(product.facts.get("market"), values.get(2, {}), said.get(2, {}))
    price = said.get(2, {}).get("msrp")
    price = (
        {"msrp": price["amount"], "currency": price["currency"]}
        if price
        else product.facts.get("price")
    )
    return _set({**product.facts, "product": words, "market": market, "price": price})


def standing(number: int, found: Mapping[str, Any], said: ByPhase) -> dict[str, Any]:
    """Returns what a phase found, with what people said in the phases before wherever both concern
    the same thing."""
    before = {phase: fields for phase, fields in said.items() if phase < number}
    words = _words_said(before)
    if number == 2:  # what market research didn't find stays absent
        return {
            **found,
            **{name: words[name] for name in _SAME[2] if words.get(name) and found.get(name)},
        }
    if number != 4:
        return dict(found)
    if "title" in before.get(3, {}):
        words["title"] = before[3]["title"]
    listed = {name: words[name] for name in _LISTED if name in words}
    if price := before.get(2, {}).get("msrp"):
        listed |= {"price": price, "price_source": _CONFIRMED}
    return _set({**found, **listed})


def _words_said(said: ByPhase) -> dict[str, Any]:
    """Returns the edits as facts about the product: a later phase overrides an earlier one, None
    where a person emptied the field."""
    return {
        name: word for number in sorted(said) for name, word in _words(number, said[number]).items()
    }


def _words(number: int, value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a phase's fields as facts about the product; None where a field that is set holds no
    such fact.

    An empty field of market research (phase 2) states nothing about the product and is left out.
    """
    words = {
        name: value[name]
        for name in _SAME.get(number, ())
        if name in value and (value[name] or number != 2)
    }
    if number == 1 and "brands" in value:
        words["brand"] = next(iter(value["brands"] or ()), None)
    if number == 1 and "categories" in value:
        both = [*(value["categories"] or []), None, None]
        words |= {"category": both[0], "subcategory": both[1]}
    return words


def _market(
    stated: Any, market: Mapping[str, Any], said: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Returns what is known about the market: what a person said, else what was stated, else what
    was found. Returns None if no price is known.

    Amounts are never converted: those in another currency than the first are left out.
    """
    parts = {"marketplace": ("price", "marketplace"), "competitive_price": ("competitive_price",)}
    persons = [part for field, names in parts.items() if field in said for part in names]
    if stated and not persons:
        return dict(stated)
    found = {
        **(market.get("marketplace") or {}),
        "competitive_price": market.get("competitive_price"),
    }
    known = found
    if stated:
        prices = {
            name: {"amount": stated[name], "currency": stated["currency"]}
            for name in _PRICES
            if name in stated
        }
        known = {
            "marketplace": stated.get("marketplace"),
            **prices,
            **{name: found.get(name) for name in persons},
        }
    priced = [
        name for name in sorted(_PRICES, key=lambda name: name not in persons) if known.get(name)
    ]
    if not priced:
        return None
    currency = known[priced[0]]["currency"]
    amounts = {
        name: known[name]["amount"] for name in priced if known[name]["currency"] == currency
    }
    return {"currency": currency, **amounts, **_set({"marketplace": known.get("marketplace")})}


def _set(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value}

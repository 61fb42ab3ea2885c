"""Facts of a product of `pipeline`, and where each comes from: supplied by its maker, or confirmed
by a person in a review. What only a model found is no fact.

A source is a JSON object, kept by the fact's path (`product.name`, `materials`, `price`); see
GetCollectionResponse.fact_sources.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from atelier.pipeline.v1 import product_pb2, result_pb2, review_pb2

from shared.rpc import protos

Facts = dict[str, Any]  # in the plain form of shared.formats.facts
Sources = dict[str, Any]

_FIRST = 1  # the phase whose reviewer names the product
_DECIDED = (review_pb2.REVIEW_STATE_APPROVED, review_pb2.REVIEW_STATE_EDITED)


def of_product(answer: product_pb2.GetProductResponse) -> tuple[Facts, Sources]:
    """Returns the facts of a product and their sources. What a person confirmed in a later phase
    counts more than in an earlier one, and both more than what was supplied."""
    product = answer.product
    facts = protos.facts(product.facts, "facts")
    # The product's own name and model are a reviewer's, else as given with the product.
    for name in ("name", "model"):
        if value := getattr(product, name).strip():
            facts.setdefault("product", {})[name] = value
    sources: Sources = {
        path: {
            "source": "supplied",
            "by": product.created_by,
            "at": product.create_time.ToJsonString(),
            "from": _name(product),
        }
        for path in _paths(facts)
    }
    results = {result.phase: result for result in answer.results}
    for review in sorted(_counting(answer, results), key=lambda review: review.phase):
        source = _confirmed(product, review, results[review.phase])
        for path, value, corrected in _said(review):
            how = {**source, "corrected": True} if corrected else source
            _put(facts, sources, path, value, how)
    return facts, sources


def overridden(facts: Facts, sources: Sources, stated: Facts, by: str) -> tuple[Facts, Sources]:
    """Returns the facts with what a request states put over them, and their sources. A field of
    `product`, a list, the price or the market is replaced as a whole."""
    facts = {**facts, "product": dict(facts.get("product", {}))}
    sources = dict(sources)
    for path in _paths(stated):
        value = _get(stated, path)
        if _get(facts, path) == value:
            continue  # said once more: it keeps its source
        _put(facts, sources, path, value, {"source": "supplied", "by": by})
    if not facts["product"]:
        del facts["product"]
    return facts, sources


def restated(
    facts: Facts, sources: Sources, stated: Facts, said: Mapping[str, Any], number: int
) -> Sources:
    """Returns the sources of facts that are stated in place of others. What says the same keeps its
    source; what differs or is gone has `said` as its source. `number` is the version of the facts
    that still has what was replaced."""
    kept: Sources = {}
    for path in dict.fromkeys([*_paths(facts), *_paths(stated), *sources]):
        before = _get(facts, path)
        if before == _get(stated, path):
            if path in sources:
                kept[path] = sources[path]
            continue
        kept[path] = dict(said)
        if before is not None:
            kept[path]["instead_of"] = {
                **_without_earlier(sources.get(path, {})),
                "version": number,
            }
    return kept


def of_same(facts: Facts, sources: Sources, printed: Facts) -> Sources:
    """Returns the sources of those of the printed facts that are the same as the stated ones."""
    return {
        path: source
        for path, source in sources.items()
        if (value := _get(printed, path)) is not None and value == _get(facts, path)
    }


def _without_earlier(source: Mapping[str, Any]) -> Sources:
    return {name: said for name, said in source.items() if name != "instead_of"}


def _counting(
    answer: product_pb2.GetProductResponse, results: Mapping[int, result_pb2.PhaseResult]
) -> Iterator[review_pb2.Review]:
    """Yields the newest decision of each phase whose result still is a person's."""
    seen: set[int] = set()
    for review in answer.reviews:  # newest first
        if review.phase in seen or review.state not in _DECIDED:
            continue
        seen.add(review.phase)
        result = results.get(review.phase)
        if result is not None and result.source == result_pb2.RESULT_SOURCE_REVIEWER:
            yield review


def _confirmed(
    product: product_pb2.Product, review: review_pb2.Review, result: result_pb2.PhaseResult
) -> Sources:
    return {
        "source": "confirmed",
        "by": review.decided_by,
        "at": review.decide_time.ToJsonString(),
        "from": _name(product),
        "phase": review.phase,
        "review_id": review.id,
        "model": result.provider,
        "confidence": review.model_confidence,
    }


def _name(product: product_pb2.Product) -> str:
    return f"pipeline/products/{product.id}"


def _said(review: review_pb2.Review) -> Iterator[tuple[str, Any, bool]]:
    """Yields the facts that a decided review states, as (path, value, whether the model had said
    something else); the value is None where the person emptied what the model had said."""
    value, model = review.effective_value, review.model_value
    for path, said, found in _pairs(value, model):
        if said:
            yield path, said, said != found
        elif found and review.phase != 2:  # there it only means that the market doesn't say
            yield path, None, True


def _pairs(
    value: result_pb2.PhaseValue, model: result_pb2.PhaseValue
) -> Iterator[tuple[str, Any, Any]]:
    said, found = dict(_fields(value)), dict(_fields(model))
    for path in dict.fromkeys([*said, *found]):
        yield path, said.get(path), found.get(path)


def _fields(value: result_pb2.PhaseValue) -> Iterator[tuple[str, Any]]:
    """Yields the fields of a phase's value that have a counterpart in the facts."""
    match value.WhichOneof("value"):
        case "product_analysis":
            first = value.product_analysis
            for name in ("name", "model", "condition", "condition_details"):
                yield f"product.{name}", getattr(first, name).strip()
            yield "product.brand", next(iter(first.brands), "")
            for name, category in zip(("category", "subcategory"), first.categories, strict=False):
                yield f"product.{name}", category
        case "market_research":
            market = value.market_research
            yield "product.brand", market.brand
            yield "product.category", market.category
            if market.HasField("msrp"):
                yield "price", {"msrp": market.msrp.amount, "currency": market.msrp.currency}
            yield "market", _market(market)
        case "seo_analysis":
            yield "product.description", value.seo_analysis.description
            yield "product.keywords", list(value.seo_analysis.keywords)
        case "product_listing":
            listing = value.product_listing
            for name in ("category", "subcategory", "condition", "condition_details"):
                yield f"product.{name}", getattr(listing, name)
            yield "product.description", listing.description
            if listing.HasField("price"):
                yield "price", {"msrp": listing.price.amount, "currency": listing.price.currency}


def _market(market: result_pb2.MarketResearch) -> Facts:
    """Returns the fact about the market. Prices of another currency than the offer's are left out:
    the fact has one."""
    offer, other = market.marketplace, market.competitive_price
    currency = offer.price.currency or other.currency
    fact: Facts = {"marketplace": offer.marketplace, "link": offer.link}
    if offer.price.currency == currency and offer.price.amount:
        fact["price"] = offer.price.amount
    if other.currency == currency and other.amount:
        fact["competitive_price"] = other.amount
    if not {"price", "competitive_price"} & set(fact):
        return {}
    return {"currency": currency, **{name: value for name, value in fact.items() if value}}


def _paths(facts: Facts) -> list[str]:
    named = [f"product.{name}" for name in facts.get("product", {})]
    return named + [name for name in facts if name != "product"]


def _get(facts: Facts, path: str) -> Any:
    for name in path.split("."):
        facts = facts.get(name, {})
    return facts or None


def _put(facts: Facts, sources: Sources, path: str, value: Any, source: Sources) -> None:
    """Sets a fact, or removes it for None. Its source keeps what it replaces."""
    before = _get(facts, path)
    if before is not None and before != value:
        earlier = _without_earlier(sources.get(path, {}))
        source = {**source, "instead_of": {**earlier, "value": before}}
    place, _, name = path.rpartition(".")
    holder = facts.setdefault(place, {}) if place else facts
    if value is None:
        holder.pop(name, None)
        if before is None:
            return
    else:
        holder[name] = value
    sources[path] = source

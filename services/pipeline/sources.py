"""Who says each value of a phase: the caller, a picture, a model, a person.

Every value is kept as a finding, so that nothing is overwritten: what a model said stays beside
what a person confirmed. Pure functions on plain values.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict

from services.pipeline.rules import OWN, StatedProduct

SUPPLIED = "supplied"
MEASURED = "measured"
READ = "read"
FOUND = "found"
CONFIRMED = "confirmed"
_SURER_FIRST = (CONFIRMED, SUPPLIED, MEASURED, READ, FOUND)
# A result's findings, and a review's, are cut to so many bytes as JSON: an answer is at most 4 MiB.
FINDINGS_BYTES = 400_000


class Finding(TypedDict):
    """A value with its source, as it is stored. `key` is a field of the phase's value, or another
    key for something beyond it. `confidence`: None if nobody said. `box`: left, top, width and
    height in the picture `asset_id`."""

    key: str
    value: Any  # JSON; None: a person emptied the field
    source: str
    model: str
    confidence: float | None
    note: str
    asset_id: str
    box: list[float] | None
    disagrees: bool
    confirmed_by: str
    review_id: str


Findings = Sequence[Finding]
ByPhase = Mapping[int, Findings]
Known = Mapping[str, Findings]
"""What is known about a product when a phase begins, by the names of facts; first what stands."""

_WORDS = (*OWN, "brand", "category", "subcategory", "description", "keywords")
# By phase: the facts that its value repeats under the same name.
_REPEATED: Mapping[int, Sequence[str]] = {
    1: OWN,
    2: ("brand", "category"),
    3: (),
    4: ("category", "subcategory", "condition", "condition_details", "price"),
}
# By phase: the keys in which a reviewer states a fact, and the fact.
_DECIDED: Mapping[int, Mapping[str, str]] = {
    2: {"brand": "brand", "category": "category", "msrp": "price"},
    3: {"title": "title", "description": "description", "keywords": "keywords"},
}
# The pictures of the product, and what says something about the result itself.
_WITHOUT_SOURCE = frozenset({"images", "scores", "matched_by", "price_source"})
# Texts of phases 3 and 4 that conversions puts together, and of which facts.
_TITLE = ("brand", "name", "category", "subcategory")
_COMPOSED: Mapping[int, Mapping[str, Sequence[str]]] = {
    3: {
        "title": _TITLE,
        "description": ("description", *_TITLE),
        "keywords": ("keywords", *_TITLE),
        "slug": ("brand", "name", "model"),
    },
    4: {
        "title": _TITLE,
        "description": ("description", *_TITLE),
        "bullets": ("condition",),
    },
}


def finding(key: str, value: Any, source: str, **more: Any) -> Finding:
    made = Finding(
        key=key,
        value=value,
        source=source,
        model="",
        confidence=1.0,
        note="",
        asset_id="",
        box=None,
        disagrees=False,
        confirmed_by="",
        review_id="",
    )
    return made | more  # type: ignore[return-value]  # the keys are those of Finding


def supplied(product: StatedProduct) -> dict[str, Finding]:
    """Returns what the caller stated, by the names of facts."""
    words = {name: value for name, value in product.facts.get("product", {}).items() if value}
    words |= {name: value for name in OWN if (value := getattr(product, name))}
    stated = {name: finding(name, words[name], SUPPLIED) for name in _WORDS if name in words}
    if price := product.facts.get("price"):
        amount = {"amount": price["msrp"], "currency": price["currency"]}
        stated["price"] = finding("price", amount, SUPPLIED)
    return stated


def known(
    product: StatedProduct, number: int, earlier: ByPhase, said: Mapping[int, Iterable[str]]
) -> dict[str, list[Finding]]:
    """Returns what is known when phase `number` begins: what the caller stated, what phase 1 found
    and what the reviewers of earlier phases said. `earlier`: the findings of phases; those of
    `number` itself are of an earlier run of it. `said`: the fields that reviewers decided on."""
    made = {name: [each] for name, each in supplied(product).items()}
    before = {phase: rows for phase, rows in earlier.items() if phase < number}
    made |= _of_phase_1(before.get(1, ()))
    if number == 1:
        made |= _still_confirmed(made, earlier.get(1, ()), said.get(1, ()))
    for phase, decided in _DECIDED.items():
        for key in said.get(phase, ()):
            name = decided.get(key, "")
            rows: list[Finding] = [
                {**each, "key": name}
                for each in (earlier if phase <= number else before).get(phase, ())
                if name and each["key"] == key and each["source"] == CONFIRMED
            ]
            # An empty field of market research states nothing about the product.
            rows = [each for each in rows if each["value"] is not None or phase != 2]
            if rows:
                made[name] = [*rows, *made.get(name, ())]
    if "price" not in made and (price := _market_price(before.get(2, ()))):
        made["price"] = [price]
    # What doesn't stand in phase 1 isn't what later phases go on from.
    return {
        name: sorted(rows, key=lambda each: (each["disagrees"], _rank(each)))
        for name, rows in made.items()
    }


def _of_phase_1(rows: Findings) -> dict[str, list[Finding]]:
    """Returns the findings of phase 1 by the facts that they state, the caller's too."""
    lists = {
        "brand": ("brands", 0),
        "category": ("categories", 0),
        "subcategory": ("categories", 1),
    }
    made = {name: [each for each in rows if each["key"] == name] for name in OWN}
    for name, (key, at) in lists.items():
        made[name] = [_item(each, name, at) for each in rows if each["key"] == key]
    return {
        name: [each for each in found if each["value"] or each["source"] == CONFIRMED]
        for name, found in made.items()
        if any(each["value"] for each in found)
    }


def _still_confirmed(
    stated: Mapping[str, Findings], earlier: Findings, said: Iterable[str]
) -> dict[str, list[Finding]]:
    """Returns the words that a person confirmed in an earlier run of phase 1 and that still stand,
    in the product or among the fields that reviewers decided on: they aren't the caller's."""
    confirmed = [each for each in earlier if each["source"] == CONFIRMED]
    decided = set(said)
    made = _of_phase_1([each for each in confirmed if each["key"] in decided - set(OWN)])
    for each in confirmed:
        of_product = stated.get(each["key"], ()) if each["key"] in OWN else ()
        if any(word["value"] == each["value"] for word in of_product):
            made[each["key"]] = [each]
    return made


def _market_price(rows: Findings) -> Finding | None:
    """Returns the price that a listing takes from market research, if the product has none."""
    for key in ("competitive_price", "marketplace"):
        for each in rows:
            if each["key"] != key or each["disagrees"] or not each["value"]:
                continue
            amount = each["value"] if key != "marketplace" else each["value"].get("price")
            if amount:
                return {**each, "key": "price", "value": amount}
    return None


def _item(each: Finding, name: str, at: int) -> Finding:
    """Returns the finding for one item of its list."""
    items = each["value"] if isinstance(each["value"], list) else []
    return {**each, "key": name, "value": items[at] if len(items) > at else None}


def settled(number: int, value: Mapping[str, Any], found: Findings, facts: Known) -> list[Finding]:
    """Returns the findings of a phase's result: what was known of the same, then what was found.

    `value`: the effective value of the phase. `found`: what the phase found. Values that it only
    repeats or puts together from what was known have the sources of that.
    """
    repeated, composed = _repeated(number, facts), _COMPOSED.get(number, {})
    rows = [
        each
        for key, before in repeated.items()
        if number == 1 or key in value or before[0]["value"] is None
        for each in before
    ]
    for each in found:
        if each["source"] != SUPPLIED or each["model"]:
            rows.append(each)
        elif each["key"] not in repeated:
            rows.append(_composed(each, composed.get(each["key"], ()), facts))
    return ordered(rows, value)


def _repeated(number: int, facts: Known) -> dict[str, list[Finding]]:
    """Returns what is known of what the phase's value repeats, by the keys of the value."""
    made = {name: list(facts[name]) for name in _REPEATED[number] if name in facts}
    if number == 1:
        made |= _lists(facts)
    if number == 4:
        for name in ("title", "description"):
            if said := [each for each in facts.get(name, ()) if _stands_whole(name, each)]:
                made[name] = said
    return made


def _lists(facts: Known) -> dict[str, list[Finding]]:
    """Returns brand, category and subcategory as phase 1 states them: in lists."""
    made: dict[str, list[Finding]] = {}
    if brand := facts.get("brand"):
        made["brands"] = [{**each, "key": "brands", "value": [each["value"]]} for each in brand]
    kinds = [facts[name][0] for name in ("category", "subcategory") if name in facts]
    if kinds:
        values = [each["value"] for each in kinds]
        made["categories"] = [{**kinds[0], "key": "categories", "value": values}]
    return made


def _stands_whole(name: str, each: Finding) -> bool:
    return each["source"] == CONFIRMED or (name == "description" and each["source"] == SUPPLIED)


def _composed(each: Finding, parts: Sequence[str], facts: Known) -> Finding:
    """Returns the finding for a text that is put together from facts: its source is that of the
    least sure of them."""
    used = [(name, facts[name][0]) for name in parts if facts.get(name)]
    used = [(name, part) for name, part in used if part["value"]]
    if not used:
        return each
    sources = [part["source"] for _, part in used]
    weak = [source for source in (FOUND, READ, MEASURED) if source in sources]
    source = weak[0] if weak else CONFIRMED if CONFIRMED in sources else SUPPLIED
    [part, *_] = [part for _, part in used if part["source"] == source]
    sure = [part["confidence"] for _, part in used if part["confidence"] is not None]
    return {
        **each,
        "source": source,
        "model": part["model"],
        "confidence": min(sure, default=None),
        "note": f"put together from {', '.join(f'{name} ({_who(said)})' for name, said in used)}",
        "confirmed_by": part["confirmed_by"],
        "review_id": part["review_id"],
    }


def _who(each: Finding) -> str:
    by = each["confirmed_by"] or each["model"]
    return f"{each['source']} by {by}" if by else each["source"]


def newly_found(value: Mapping[str, Any], found: Findings) -> tuple[float, str]:
    """Returns the confidence in the value of phase 3 or 4, and why: the least of what a model newly
    found. What follows from what is known is known; where there is no value, the confidence is
    0."""
    stated = [key for key, each in value.items() if each and key not in _WITHOUT_SOURCE]
    if not stated:
        return 0.0, "nothing is known that a text could be made of"
    new = {
        each["key"]: each["confidence"]
        for each in found
        if each["source"] in (READ, FOUND)
        and each["confidence"] is not None
        and each["key"] in value
        and same(each["value"], value[each["key"]])
    }
    if not new:
        return 1.0, f"from what is known: {', '.join(stated)}"
    least = min(new.values())
    of = ", ".join(f"{key} {confidence:.3f}" for key, confidence in new.items())
    return round(least, 3), f"newly found: {of}"


def of_runner(value: Mapping[str, Any], provider: str, confidence: float | None) -> list[Finding]:
    """Returns the findings for what an outside worker says."""
    return [
        finding(key, each, FOUND, model=provider, confidence=confidence)
        for key, each in value.items()
        if key not in _WITHOUT_SOURCE
    ]


def of_market(
    value: Mapping[str, Any], provider: str, confidence: float | None, note: str
) -> list[Finding]:
    """Returns the findings of market research. The owner supplied the offers of the price book; an
    endpoint found its own."""
    source = SUPPLIED if provider == "price_book" else FOUND
    sure = 1.0 if source == SUPPLIED else confidence
    return [
        finding(key, each, source, model=provider, confidence=sure, note=note)
        for key, each in value.items()
        if key not in _WITHOUT_SOURCE
    ]


def confirmed(
    findings: Findings,
    effective: Mapping[str, Any],
    said: Mapping[str, Any],
    by: str,
    review_id: str,
) -> list[Finding]:
    """Returns the findings after a person's decision: what the person confirmed beside all that was
    there. `said`: the fields that the person decided on, None for one that was emptied. What was
    measured isn't confirmed, unless the person said so."""
    who = {"confirmed_by": by, "review_id": review_id}
    measured = {each["key"] for each in findings if each["source"] == MEASURED}
    keys = [key for key in effective if key not in measured or key in said]
    rows = [
        finding(key, effective.get(key), CONFIRMED, **who)
        for key in (*keys, *(key for key in said if key not in effective))
        if key not in _WITHOUT_SOURCE
    ]
    # The latest word comes first, but an earlier reviewer's same word keeps its name.
    before = [each for each in findings if each["source"] == CONFIRMED]
    new = [
        each
        for each in rows
        if not any(old["key"] == each["key"] and old["value"] == each["value"] for old in before)
    ]
    return ordered([*new, *findings], effective)


def ordered(rows: Iterable[Finding], value: Mapping[str, Any]) -> list[Finding]:
    """Returns the findings by key, each with those that stand in the value before the others,
    the surest first, each once."""
    listed = list(rows)
    emptied = {
        each["key"]
        for each in listed
        if each["source"] == CONFIRMED and each["value"] is None and each["key"] not in value
    }
    made: list[Finding] = []
    for each in listed:
        key = each["key"]
        differs = key in value and not same(each["value"], value[key])
        row: Finding = {
            **each,
            "disagrees": differs or (key in emptied and each["value"] is not None),
        }
        if row not in made:
            made.append(row)
    places = {key: place for place, key in enumerate(dict.fromkeys(each["key"] for each in made))}
    made.sort(key=lambda each: (places[each["key"]], each["disagrees"], _rank(each)))
    return _fitting(made)


def _rank(each: Finding) -> int:
    return _SURER_FIRST.index(each["source"])


def _fitting(rows: Sequence[Finding]) -> list[Finding]:
    room = FINDINGS_BYTES
    for count, each in enumerate(rows):
        room -= len(json.dumps(each, ensure_ascii=False).encode()) + 1
        if room < 0:
            return list(rows[:count])
    return list(rows)


def same(one: Any, other: Any) -> bool:
    """Returns whether two values say the same: case, spaces and the order of lists don't count."""
    return bool(_plain(one) == _plain(other))


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return " ".join(value.casefold().split())
    if isinstance(value, list):
        return sorted((_plain(each) for each in value), key=repr)
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return value


Convert = Callable[[str, Any], Any]
"""Turns a value of an analysis, by its key, into the form of the phase's value."""


def of_analysis(
    findings: Iterable[Any], asset_ids: Sequence[str], convert: Convert
) -> list[Finding]:
    """Returns what an analysis of conversions says. `findings`: in the plain form of its message,
    whose pictures are numbered from 1 as `asset_ids` lists them."""
    made = []
    for each in findings:
        picture, box = each.get("picture", 0), each.get("box")
        made.append(
            finding(
                each["key"],
                convert(each["key"], each.get("value")),
                each["source"].removeprefix("VALUE_SOURCE_").lower(),
                model=each.get("model", ""),
                confidence=each.get("confidence", 0.0),
                note=each.get("note", ""),
                asset_id=asset_ids[picture - 1] if 0 < picture <= len(asset_ids) else "",
                box=[box.get(name, 0.0) for name in ("left", "top", "width", "height")]
                if box
                else None,
            )
        )
    return made

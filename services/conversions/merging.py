"""Puts together what is stated, measured and found about a product, and keeps where each value
comes from.

A stated value stays in the result whatever was read or found. What was read fills in what nobody
stated, if something confirms it; then what a model found. All are kept as findings, and one that
differs from the result says so. The confidence
speaks of the values that are known: it is 0 where nothing is, and no higher than how surely the
values are known that the task wants.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from services.conversions import rules
from services.conversions.providers.contract import Finding, Found, Measured
from services.conversions.rules import Evidence, FindingRow

# What is measured in the pictures themselves.
_OF_PICTURES = frozenset({"views", "colours", "image_quality"})
# Texts that are put together from facts: a model's own words are wanted there, if it was asked.
_COMPOSED = {
    "seo": frozenset({"title", "description", "keywords"}),
    "listing": frozenset({"title", "bullets"}),
}
# A list of what stands in the pictures: each item is a finding of its own.
_COLLECTED = "codes"
# A task's need by the name that its evidence gives it -> the key of the result that fills it.
_KEYS = {
    "brand": "brands",
    "places of features": "call_outs",
    "dimensions": "dimensions",
}
_CATEGORY = {"product": "categories"}  # by task: the key of the need `category`


def findings(task: str, measured: Measured, found: Found) -> list[FindingRow]:
    """Returns every value with its source: the stated and measured ones, then what was read or
    found."""
    known = [
        Finding(key, value, _source(key, value), "", 1.0)
        for key, value in measured.result.items()
        if key != "scores"
    ]
    whole = result(task, measured, found)
    return [
        FindingRow(
            key=each.key,
            value=each.value,
            source=each.source,
            model=each.model,
            confidence=each.confidence,
            note=each.note,
            picture=each.picture,
            box=list(each.box) if each.box else None,
            disagrees=_disagrees(each, whole),
        )
        for each in (*known, *measured.read, *found.findings)
    ]


def result(task: str, measured: Measured, found: Found) -> dict[str, Any]:
    """Returns the values by the keys of the task's result."""
    whole = dict(measured.result)
    replaced = _COMPOSED.get(task, frozenset())
    for each in sorted(measured.read, key=lambda each: -each.confidence):
        if not _counts(each):
            continue
        if each.key == _COLLECTED:
            whole[each.key] = [*whole.get(each.key, []), *_shown(each)]
        else:
            whole.setdefault(each.key, _shown(each))
    sure = frozenset(whole)
    for each in found.findings:
        if each.key not in sure or each.key in replaced:
            whole[each.key] = _shown(each)
            whole.pop("scores", None)  # they judge the texts that were replaced
    return whole


def evidence(task: str, measured: Measured, found: Found) -> list[Evidence]:
    """Returns the evidence for the whole: that of the pictures, and how surely what the task wants
    is known."""
    surest: dict[str, float] = {}
    for each in filter(_counts, (*measured.read, *found.findings)):
        surest[each.key] = max(surest.get(each.key, 0.0), each.confidence)
    known = {
        need: 1.0 if stated else surest.get(_key(task, need), 0.0)
        for need, stated in measured.needs.items()
    }
    # What pictures say beyond what the task wants counts as one value that it wants, if that is
    # more: it doesn't make up for what is missing.
    wanted = {_key(task, need) for need in measured.needs}
    beyond = {each.key for each in measured.read if _counts(each)} - wanted - set(measured.result)
    most = max((surest[key] for key in beyond), default=0.0)
    value = round(max(sum(known.values()), most) / len(known), 3)
    others = [each for each in measured.evidence if each["name"] != "completeness"]
    [completeness] = [each for each in measured.evidence if each["name"] == "completeness"]
    note = completeness["note"]
    by_model = [need for need, stated in measured.needs.items() if not stated and known[need]]
    if by_model or beyond:
        note = f"{note}; found or read: {', '.join([*by_model, *sorted(beyond)])}"
    return [*others, {**completeness, "value": value, "note": note}]


def confidence(of: Sequence[Evidence]) -> float:
    """Returns the confidence in an analysis: the mean of its evidence, but no more than how surely
    the wanted values are known."""
    [known] = [each["value"] for each in of if each["name"] == "completeness"]
    return round(min(rules.confidence(of), known), 3)


def _key(task: str, need: str) -> str:
    if need == "category":
        return _CATEGORY.get(task, need)
    return _KEYS.get(need, need)


def _source(key: str, value: Any) -> str:
    sources = (
        {each.get("source") for each in value if isinstance(each, dict)}
        if isinstance(value, list)
        else set()
    )
    return rules.MEASURED if key in _OF_PICTURES or sources == {rules.MEASURED} else rules.SUPPLIED


def _shown(each: Finding) -> Any:
    """Returns a found value as the result shows it: items of lists say where they come from."""
    if not isinstance(each.value, list):
        return each.value
    items = [
        {**item, "source": each.source} if isinstance(item, dict) else item for item in each.value
    ]
    if each.key == "call_outs":
        return [{"number": number, **item} for number, item in enumerate(items, start=1)]
    return items


def _counts(each: Finding) -> bool:
    return each.source != rules.READ or each.confidence >= rules.READ_COUNTS_FROM


def _disagrees(each: Finding, whole: Mapping[str, Any]) -> bool:
    if each.key not in whole or each.key == _COLLECTED:
        return False
    return bool(_plain(each.value) != _plain(whole[each.key]))


def _plain(value: Any) -> Any:
    """Returns a value without what doesn't count in a comparison: case, spaces, order, sources."""
    if isinstance(value, str):
        return " ".join(value.casefold().split())
    if isinstance(value, list):
        return sorted((_plain(each) for each in value), key=repr)
    if isinstance(value, Mapping):
        kept = {key: _plain(each) for key, each in value.items() if key not in ("source", "number")}
        return {key: each for key, each in kept.items() if each is not None}
    return value

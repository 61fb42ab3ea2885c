"""Writes titles, descriptions, keywords and bullets from facts alone. What isn't stated isn't
written."""

import re
import unicodedata
from typing import Any

from services.conversions.local.evidence import ramp
from shared.formats import figures
from shared.formats.facts import Facts

TITLE_LENGTH = 60
DESCRIPTION_LENGTH = 155
KEYWORDS_WANTED = 8
_MAX_KEYWORDS = 20
_MAX_BULLETS = 10


def seo(facts: Facts) -> dict[str, Any]:
    """Returns title, description, keywords, slug (None where no fact leads to one) and `scores`,
    each with its reasons."""
    title, slug = _title(facts), _slug(facts)
    description, words = _description(facts, DESCRIPTION_LENGTH), keywords(facts)
    scores = {
        "title": _title_score(title, facts),
        "description": _length_score("description", description, 70, DESCRIPTION_LENGTH),
        "keywords": _keywords_score(words),
        "slug": _length_score("slug", slug, 5, TITLE_LENGTH),
    }
    overall = round(sum(score["score"] for score in scores.values()) / len(scores), 3)
    reasons = [f"mean of {', '.join(scores)}"]
    return {
        "title": title,
        "description": description,
        "keywords": words or None,
        "slug": slug,
        "scores": {**scores, "overall": {"score": overall, "reasons": reasons}},
    }


def listing(facts: Facts) -> dict[str, Any]:
    """Returns title, bullets, description, price with its source, category, subcategory, condition
    and its details; None where nothing was stated."""
    product = facts.product
    return {
        "title": _title(facts),
        "bullets": bullets(facts) or None,
        "description": product.description or _description(facts, 1200),
        "price": price(facts),
        "category": product.category,
        "subcategory": product.subcategory,
        "condition": product.condition,
        "condition_details": product.condition_details,
    }


def price(facts: Facts) -> dict[str, Any] | None:
    """Returns the stated price; without one, what market research found, which its source says;
    else None."""
    if facts.price:
        return {"amount": facts.price.msrp, "currency": facts.price.currency, "source": "supplied"}
    if facts.market is None:
        return None
    competitive = facts.market.competitive_price is not None
    amount = facts.market.competitive_price if competitive else facts.market.price
    kind = "competitive price" if competitive else "price"
    where = f" of {facts.market.marketplace}" if facts.market.marketplace else ""
    return {
        "amount": amount,
        "currency": facts.market.currency,
        "source": f"market data: {kind}{where}",
    }


def bullets(facts: Facts) -> list[str]:
    """Returns one line per fact that a buyer looks for: materials, features, sizes, care,
    condition."""
    lines = [_material_line(m.part, m.material, m.weight, m.colour) for m in facts.materials[:3]]
    for feature in facts.features[:4]:
        note = f": {_first_sentence(feature.note)}" if feature.note else ""
        lines.append(f"{_capital(feature.name)}{note}")
    lengths = [f"{d.name} {figures.number(d.value)} {d.unit}" for d in facts.dimensions]
    lengths += [
        f"{p.name} {figures.number(p.value)} {p.unit}"
        for p in facts.points_of_measure
        if p.value is not None
    ]
    lines += [_capital(", ".join(lengths[:4]))] if lengths else []
    lines += [f"Care: {', '.join(facts.care)}"] if facts.care else []
    lines += [f"Condition: {facts.product.condition}"] if facts.product.condition else []
    return list(dict.fromkeys(lines))[:_MAX_BULLETS]


def keywords(facts: Facts) -> list[str]:
    """Returns the stated keywords, then the stated brand, category, name, materials, colours and
    features; each once, in lower case."""
    product = facts.product
    found = [*product.keywords, product.brand, product.category, product.subcategory, product.name]
    for material in facts.materials[:3]:
        found += [
            re.sub(r"^[\d.,]+\s*%\s*", "", material.material).partition(",")[0],
            material.colour,
        ]
    found += [feature.name for feature in facts.features]
    words = [" ".join(value.lower().split()) for value in found if value]
    return list(dict.fromkeys(words))[:_MAX_KEYWORDS]


def _title(facts: Facts) -> str | None:
    """Returns brand, name, kind and first colour, as many as fit. None without a name or a kind: a
    brand alone is no title."""
    product = facts.product
    kind = product.subcategory or product.category
    if not (product.name or kind):
        return None
    named = product.name or ""
    parts = [product.brand, product.name, None if kind and _says(named, kind) else kind]
    colour = next((m.colour for m in facts.materials if m.colour), None)
    if colour and not _says(named, colour):
        parts.append(f"in {colour}")
    title = ""
    for part in parts:
        candidate = f"{title} {part}".strip() if part else title
        if len(candidate) <= TITLE_LENGTH:
            title = candidate
    return title or _cut(named or kind or "", TITLE_LENGTH)


def _says(text: str, word: str) -> bool:
    """Returns whether a text holds a word, or its plural: `Chat shirt` doesn't hold `hat`, `Sun
    hats` does. In scripts without capitals, many of which put no space between words, the word may
    stand anywhere in the text."""
    text, word = (unicodedata.normalize("NFC", each).casefold() for each in (text, word))
    if word.upper() == word:
        return word in text
    return re.search(rf"(?<!\w){re.escape(word)}(?:e?s)?(?!\w)", text) is not None


def _description(facts: Facts, limit: int) -> str | None:
    """Returns sentences from the facts, as many as fit into `limit` characters. Only a first
    sentence that is longer is cut."""
    sentences = []
    title = _title(facts)
    if facts.product.description:
        sentences += re.split(r"(?<=[.!?])\s+", " ".join(facts.product.description.split()))
    elif title:
        sentences.append(f"{title}.")
    sentences += [
        f"{_material_line(m.part, m.material, m.weight, m.colour)}." for m in facts.materials
    ]
    if facts.features:
        sentences.append(f"With {', '.join(feature.name for feature in facts.features[:4])}.")
    if facts.care:
        sentences.append(f"Care: {', '.join(facts.care)}.")
    if not sentences:
        return None
    if len(sentences[0]) > limit:
        return f"{_cut(sentences[0], limit - 1).rstrip(' ,;:')}…"
    text = sentences[0]
    for sentence in sentences[1:]:
        if len(text) + 1 + len(sentence) <= limit:
            text = f"{text} {sentence}"
    return text


def _slug(facts: Facts) -> str | None:
    product = facts.product
    words = " ".join(part for part in (product.brand, product.name, product.model) if part)
    plain = unicodedata.normalize("NFKD", words.casefold())
    latin = "-".join(
        re.findall(r"[a-z0-9]+", "".join(c for c in plain if not unicodedata.combining(c)))
    )
    # A name in another script keeps its letters: an empty or half-empty slug could not serve as an
    # address.
    whole = (
        latin
        if len(latin) >= 0.6 * len(words)
        else "-".join(re.findall(r"[^\W_]+", words.casefold()))
    )
    return whole[:80].strip("-") or None


def _title_score(title: str | None, facts: Facts) -> dict[str, Any]:
    score = _length_score("title", title, 20, TITLE_LENGTH)
    if title is None:
        return score
    for label, value in (("brand", facts.product.brand), ("name", facts.product.name)):
        if not value:
            score["reasons"].append(f"{label}: not supplied")
        elif not _says(title, value):
            score["reasons"].append(f"the {label} didn't fit")
        else:
            continue
        score["score"] = round(score["score"] * 0.75, 3)
    return score


def _length_score(what: str, text: str | None, low: int, high: int) -> dict[str, Any]:
    if text is None:
        return {"score": 0.0, "reasons": [f"{what}: not supplied, and no fact to make it from"]}
    length = len(text)
    score = ramp(length, 0, low) if length < low else ramp(length, 2 * high, high)
    verdict = "short" if length < low else "long" if length > high else "within"
    return {
        "score": score,
        "reasons": [f"{length} characters, {verdict}: {low} to {high} are shown in full"],
    }


def _keywords_score(words: list[str]) -> dict[str, Any]:
    if not words:
        return {"score": 0.0, "reasons": ["keywords: not supplied, and no fact to make them from"]}
    return {
        "score": ramp(len(words), 0, KEYWORDS_WANTED),
        "reasons": [f"{len(words)} keywords; {KEYWORDS_WANTED} are enough"],
    }


def _material_line(part: str, material: str, weight: str | None, colour: str | None) -> str:
    return ", ".join(
        [f"{_capital(part)}: {material}", *(detail for detail in (weight, colour) if detail)]
    )


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?])\s", " ".join(text.split()), maxsplit=1)[0].rstrip(".")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit].rsplit(" ", 1)[0]

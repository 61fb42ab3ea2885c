"""Who says a value, and how sure a phase is that a model took part in."""

from dataclasses import dataclass, field
from typing import Any

from services.pipeline import sources
from services.pipeline.sources import CONFIRMED, FOUND, MEASURED, SUPPLIED, Finding, finding


@dataclass
class Product:
    name: str = ""
    model: str = ""
    condition: str = ""
    condition_details: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def found(key: str, value: Any, confidence: float) -> Finding:
    return finding(key, value, FOUND, model="gemini", confidence=confidence)


def test_what_follows_from_what_is_known_is_sure_whoever_found_that_before() -> None:
    first = [found("name", "Coat", 0.81), finding("brands", ["K"], SUPPLIED)]
    facts = sources.known(Product(), 3, {1: first}, {})
    texts = {"title": "K Coat", "slug": "k-coat"}
    said = [finding(key, text, SUPPLIED) for key, text in texts.items()]

    assert sources.newly_found(texts, said)[0] == 1
    title, slug = sources.settled(3, texts, said, facts)
    assert (title["source"], title["model"], title["confidence"]) == (FOUND, "gemini", 0.81)
    assert title["note"] == "put together from brand (supplied), name (found by gemini)"
    assert slug["source"] == FOUND


def test_only_what_a_model_newly_found_can_be_unsure() -> None:
    texts = {"title": "Coat", "description": "A warm coat."}
    said = [finding("title", "Coat", SUPPLIED), found("description", "A warm coat.", 0.6)]
    confidence, why = sources.newly_found(texts, said)
    assert confidence == 0.6 and why == "newly found: description 0.600"

    overridden = {**texts, "description": "By hand."}
    assert sources.newly_found(overridden, said)[0] == 1, "a person's word stands instead"


def test_where_there_is_no_value_there_is_no_confidence() -> None:
    assert sources.newly_found({"scores": [{"name": "title"}], "images": [{}]}, [])[0] == 0


def test_a_person_confirms_what_is_not_measured_and_keeps_all_that_was_said() -> None:
    before = [
        found("name", "Coat", 0.5),
        finding("colours", [{"hex": "#ffffff"}], MEASURED),
        finding("condition", "new", SUPPLIED),
    ]
    effective = {"name": "Coat", "colours": [{"hex": "#ffffff"}]}
    rows = sources.confirmed(before, effective, {"condition": None}, "ada", "r1")
    assert [(row["key"], row["value"], row["source"], row["disagrees"]) for row in rows] == [
        ("name", "Coat", CONFIRMED, False),
        ("name", "Coat", FOUND, False),
        ("condition", None, CONFIRMED, False),
        ("condition", "new", SUPPLIED, True),
        ("colours", [{"hex": "#ffffff"}], MEASURED, False),
    ]
    assert rows[0]["confirmed_by"] == "ada" and rows[0]["review_id"] == "r1"


def test_what_a_person_emptied_makes_nothing_later() -> None:
    first = sources.confirmed([found("name", "Coat", 0.5)], {}, {"name": None}, "ada", "r1")
    facts = sources.known(Product(facts={"product": {"brand": "K"}}), 4, {1: first}, {})
    said = [finding("title", "K", SUPPLIED)]
    [title] = sources.settled(4, {"title": "K"}, said, facts)
    assert title["note"] == "put together from brand (supplied)"


def test_a_confirmed_name_is_not_the_callers_when_phase_1_runs_again() -> None:
    before = sources.confirmed([found("name", "Coat", 0.5)], {"name": "Cape"}, {}, "ada", "r1")
    facts = sources.known(Product(name="Cape"), 1, {1: before}, {})
    assert [row["source"] for row in facts["name"]] == [CONFIRMED]
    assert [
        row["source"] for row in sources.known(Product(name="Hat"), 1, {1: before}, {})["name"]
    ] == [SUPPLIED]


def test_a_price_comes_from_the_caller_else_from_the_market() -> None:
    price = {"amount": 9.0, "currency": "EUR"}
    market = [
        finding(
            "marketplace", {"price": price, "marketplace": "Shop"}, SUPPLIED, model="price_book"
        )
    ]
    stated = Product(facts={"price": {"msrp": 12.0, "currency": "EUR"}})
    [row] = sources.known(stated, 4, {2: market}, {})["price"]
    assert row["value"] == {"amount": 12.0, "currency": "EUR"}
    [row] = sources.known(Product(), 4, {2: market}, {})["price"]
    assert (row["value"], row["model"]) == (price, "price_book")


def test_findings_are_cut_before_an_answer_is_too_large() -> None:
    rows = [finding(f"k{number}", "x" * 100_000, SUPPLIED) for number in range(20)]
    assert len(sources.ordered(rows, {})) == 3


def test_a_picture_is_named_by_its_asset() -> None:
    said = {
        "key": "ean",
        "value": "4006381333931",
        "source": "VALUE_SOURCE_READ",
        "picture": 2,
        "box": {"left": 0.25, "width": 0.5},
        "confidence": 0.9,
    }
    [row] = sources.of_analysis([said], ["a", "b"], lambda key, value: value)
    assert (row["asset_id"], row["box"], row["source"]) == ("b", [0.25, 0.0, 0.5, 0.0], "read")


def test_a_text_has_the_source_of_what_stood_before_it() -> None:
    stated = Product(name="Stated")
    said = {"name": "Found"}
    first = sources.settled(
        1, said, [found("name", "Found", 0.9)], sources.known(stated, 1, {}, {})
    )
    assert [(row["value"], row["disagrees"]) for row in first] == [
        ("Found", False),
        ("Stated", True),
    ]
    facts = sources.known(stated, 4, {1: first}, {})
    [title] = sources.settled(4, {"title": "Found"}, [finding("title", "Found", SUPPLIED)], facts)
    assert title["note"] == "put together from name (found by gemini)"


def test_what_a_reviewer_of_phase_3_wrote_is_confirmed_in_the_listing() -> None:
    texts = {"title": "By hand", "description": "A coat."}
    third = sources.confirmed(
        [found(key, "x", 0.5) for key in texts], texts, {"title": "By hand"}, "ada", "r3"
    )
    facts = sources.known(Product(), 4, {3: third}, {3: {"title": "By hand"}})
    rows = sources.settled(4, {"title": "By hand"}, [found("title", "Else", 0.6)], facts)
    assert [(row["value"], row["source"], row["disagrees"]) for row in rows] == [
        ("By hand", CONFIRMED, False),
        ("Else", FOUND, True),
    ]
    assert rows[0]["review_id"] == "r3"

"""The facts file: stated facts are read exactly; misspelt or absurd ones are refused with their
place."""

import pickle
from pathlib import Path
from typing import Any

import pytest

from shared.formats.fact_tables import FactsError
from shared.formats.facts import Facts, Point, load_facts, parse_facts

EXAMPLE = Path(__file__).parents[2] / "examples" / "photos" / "facts.yaml"
POM = {"code": "A", "name": "chest", "view": "front"}
ENDS = {"from": {"x": 0.1, "y": 0.5}, "to": {"x": 0.9, "y": 0.5}}


def error_of(value: object) -> FactsError:
    with pytest.raises(FactsError) as caught:
        load_facts(value) if isinstance(value, str | bytes) else parse_facts(value)
    return caught.value


def test_the_shipped_example_is_read_whole() -> None:
    facts = load_facts(EXAMPLE.read_text())
    assert facts.product.name
    assert facts.materials
    assert facts.scales
    assert facts.price is not None
    assert facts.price.currency == "EUR"
    assert all(pom.value is not None or pom.start is not None for pom in facts.points_of_measure)


def test_nothing_stated_is_no_facts() -> None:
    assert load_facts("") == load_facts("{}") == parse_facts({}) == Facts()
    assert parse_facts({"product": {"name": "Coat", "brand": None}}).product.brand is None


def test_values_keep_their_units_and_places() -> None:
    facts = load_facts("""
        points_of_measure:
          - {code: A, name: chest, value: 58, unit: cm, tolerance: 1.0, view: front,
             from: {x: 0.21, y: 0.43}, to: {x: 0.79, y: 0.43}}
        bill_of_materials: [{item: zip, quantity: 1, unit: piece}]
        care: [wash cold, "dry flat"]
        """)

    pom = facts.points_of_measure[0]
    assert (pom.value, pom.unit, pom.start, pom.end) == (
        58.0,
        "cm",
        Point(0.21, 0.43),
        Point(0.79, 0.43),
    )
    assert facts.bill_of_materials[0].quantity == 1.0
    assert facts.care == ("wash cold", "dry flat")


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"prodct": {}}, "prodct"),
        ({"product": {"nmae": "x"}}, "product.nmae"),
        ({"product": {"model": 501}}, "product.model"),
        ({"product": {"name": "  "}}, "product.name"),
        ({"product": {"name": "two\nlines"}}, "product.name"),
        ({"product": {"name": "a\x00b"}}, "product.name"),
        ({"product": {"name": "x" * 301}}, "product.name"),
        ({"product": {"keywords": ["a", 3]}}, "product.keywords[1]"),
        ({"product": ["x"]}, "product"),
        ({"materials": {"part": "shell"}}, "materials"),
        ({"materials": [{"part": "shell"}]}, "materials[0].material"),
        ({"dimensions": [{"name": "length", "value": -1, "unit": "cm"}]}, "dimensions[0].value"),
        ({"dimensions": [{"name": "length", "value": 0, "unit": "cm"}]}, "dimensions[0].value"),
        (
            {"dimensions": [{"name": "length", "value": float("nan"), "unit": "cm"}]},
            "dimensions[0].value",
        ),
        (
            {"dimensions": [{"name": "length", "value": float("inf"), "unit": "cm"}]},
            "dimensions[0].value",
        ),
        (
            {"dimensions": [{"name": "length", "value": 10**400, "unit": "cm"}]},
            "dimensions[0].value",
        ),
        ({"dimensions": [{"name": "length", "value": True, "unit": "cm"}]}, "dimensions[0].value"),
        ({"dimensions": [{"name": "length", "value": "72", "unit": "cm"}]}, "dimensions[0].value"),
        ({"dimensions": [{"name": "length", "value": 72}]}, "dimensions[0].unit"),
        ({"dimensions": [{"name": "length", "value": 72, "unit": "ell"}]}, "dimensions[0].unit"),
        (
            {"dimensions": [{"name": "a", "value": 1, "unit": "cm", "view": "top"}]},
            "dimensions[0].view",
        ),
        ({"points_of_measure": [POM]}, "points_of_measure[0].value"),
        ({"points_of_measure": [{**POM, "value": 3}]}, "points_of_measure[0].unit"),
        ({"points_of_measure": [{**POM, "from": ENDS["from"]}]}, "points_of_measure[0]"),
        ({"points_of_measure": [{**POM, **ENDS, "view": None}]}, "points_of_measure[0].view"),
        ({"points_of_measure": [{**POM, **ENDS}, {**POM, **ENDS}]}, "points_of_measure[1]"),
        (
            {"points_of_measure": [{**POM, **ENDS, "to": {"x": 1.5, "y": 0}}]},
            "points_of_measure[0].to.x",
        ),
        (
            {"scales": [{"view": "front", "value": 7, "unit": "cm", "from": ENDS["from"]}]},
            "scales[0].to",
        ),
        (
            {"scales": [{"view": "front", "value": 7, "unit": "cm", **ENDS, "to": ENDS["from"]}]},
            "scales[0]",
        ),
        ({"features": [{"name": "zip", "at": {"x": 0.5, "y": 0.5}}]}, "features[0].view"),
        ({"closeups": [{"name": "cuff", "view": "front", "at": {"x": 0.5}}]}, "closeups[0].at.y"),
        ({"price": {"msrp": 10, "currency": "euro"}}, "price.currency"),
        ({"price": {"msrp": 1.1e8, "currency": "IDR"}}, "price.msrp"),
        ({"market": {"currency": "EUR"}}, "market"),
        ({"care": ["x"] * 501}, "care"),
        ([], ""),
    ],
)
def test_a_bad_field_is_refused_by_its_path(value: Any, path: str) -> None:
    assert error_of(value).path == path


def test_money_may_be_of_a_currency_with_many_noughts() -> None:
    market = {"currency": "IDR", "price": 99_999_999.9999}
    stated = parse_facts({"price": {"msrp": 25_000_000, "currency": "IDR"}, "market": market})
    assert (
        stated.price
        and stated.market
        and (stated.price.msrp, stated.market.price) == (25e6, 99_999_999.9999)
    )


def test_an_unknown_key_is_answered_with_the_known_ones() -> None:
    assert "name" in error_of({"product": {"nmae": "x"}}).reason


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x]\nb: [*a, *a]",
        "product: &p {name: x}",
        "product: !!python/object/apply:os.system ['true']",
        "product: {name: x}\nproduct: {name: y}",
        "product: {<<: {name: x}}",
        "? [a, b]\n: c",
        "[" * 5000,
        "{a: " * 5000,
        "product: {name: x",
        "a: 1\n---\nb: 2",
        "product: {name: 2026-99-99}",
        "dimensions: [{name: l, value: " + "9" * 5000 + ", unit: cm}]",
        b"\xff\xfe\x00",
        "care: ['" + "x" * 1_000_001 + "']",
    ],
    ids=range(14),
)
def test_yaml_that_expands_executes_nests_or_contradicts_itself_is_refused(
    text: str | bytes,
) -> None:
    error = error_of(text)
    assert error.path == ""
    assert len(str(error)) < 400


def test_an_error_survives_the_way_out_of_a_child_process() -> None:
    error = pickle.loads(pickle.dumps(error_of({"care": "x"})))
    assert (error.path, str(error)) == ("care", "care: must be a list, not text")

"""Analyses hold what was stated and measured, nothing else, and a confidence that can be
checked."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from services.conversions import merging
from services.conversions.local.analyse import TASKS, Analysis, analyse
from services.conversions.local.assess import assess
from services.conversions.providers.contract import Found, Measured, Model
from services.conversions.providers.local import _evidence
from shared.formats.facts import Facts, parse_facts
from tests.conversions import local_pictures as pictures

STATED: dict[str, Any] = {
    "product": {
        "name": "Harbour coat",
        "model": "HC-2",
        "brand": "Tidewick",
        "category": "apparel",
        "subcategory": "coat",
        "condition": "new",
        "keywords": ["canvas coat", "rain"],
        "description": "A straight coat for wet days. It has one large pocket and a two-way zip.",
    },
    "materials": [
        {"part": "shell", "material": "100 % cotton canvas", "weight": "340 g/m2", "colour": "navy"}
    ],
    "dimensions": [{"view": "front", "name": "length", "value": 68, "unit": "cm"}],
    "points_of_measure": [
        {
            "code": "A",
            "name": "width",
            "unit": "cm",
            "tolerance": 1,
            "view": "front",
            "from": {"x": 0.3, "y": 0.5},
            "to": {"x": 0.7, "y": 0.5},
        },
        {
            "code": "B",
            "name": "pocket",
            "value": 13.5,
            "unit": "cm",
            "view": "front",
            "from": {"x": 0.3375, "y": 0.6},
            "to": {"x": 0.4625, "y": 0.6},
        },
        {
            "code": "C",
            "name": "width in inches",
            "unit": "in",
            "view": "front",
            "from": {"x": 0.3, "y": 0.5},
            "to": {"x": 0.7, "y": 0.5},
        },
        {
            "code": "D",
            "name": "yoke",
            "view": "back",
            "from": {"x": 0.3, "y": 0.5},
            "to": {"x": 0.7, "y": 0.5},
        },
    ],
    "scales": [
        {
            "view": "front",
            "value": 68,
            "unit": "cm",
            "from": {"x": 0.5, "y": 0.16},
            "to": {"x": 0.5, "y": 0.84},
        },
    ],
    "features": [
        {"view": "front", "name": "zip", "note": "brass", "at": {"x": 0.5, "y": 0.5}},
        {"view": "back", "name": "vent"},
    ],
    "price": {"msrp": 120, "currency": "EUR"},
    "care": ["wash cold"],
}


@pytest.fixture(scope="module")
def sharp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.garment(tmp_path_factory.mktemp("photos") / "sharp.jpg", width=1000)


@pytest.fixture(scope="module")
def blurred(sharp: Path) -> Path:
    return pictures.blurred(sharp, sharp.with_name("blurred.jpg"))


def ran(task: str, photo: Path, facts: Facts) -> Analysis:
    return analyse(task, [assess("front", photo).quality], facts)


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS)
def test_sharp_and_described_passes_080_and_blurred_and_bare_does_not(
    task: str, sharp: Path, blurred: Path
) -> None:
    described, bare = ran(task, sharp, parse_facts(STATED)), ran(task, blurred, Facts())
    assert surety(described) >= 0.80 > surety(bare)
    for analysis in (described, bare):
        assert sum(item.weight for item in analysis.evidence) == pytest.approx(1)
        assert all(0 <= item.value <= 1 and item.note for item in analysis.evidence)


def surety(analysis: Analysis) -> float:
    """Returns the confidence in an analysis to which no model added anything."""
    measured = Measured({}, analysis.needs, _evidence(analysis.evidence))
    return merging.confidence(merging.evidence("", measured, Found(Model("local", ""), [], {})))


@pytest.mark.parametrize("task", TASKS)
def test_neither_good_pictures_nor_good_facts_are_enough_alone(task: str, sharp: Path) -> None:
    assert surety(ran(task, sharp, Facts())) == 0
    assert surety(analyse(task, [], parse_facts(STATED))) < 0.80


@pytest.mark.long
def test_a_files_name_means_nothing(tmp_path: Path, sharp: Path) -> None:
    named = tmp_path / "blurred-denim-jacket-189-eur.jpg"
    shutil.copy(sharp, named)
    for task in ("product_analysis", "category"):
        assert ran(task, named, Facts()) == ran(task, sharp, Facts())


@pytest.mark.long
def test_without_facts_nothing_is_claimed_but_what_was_measured(sharp: Path) -> None:
    measured = {"colours", "image_quality", "views", "scores"}
    for task in TASKS:
        result = ran(task, sharp, Facts()).result
        assert {
            key: value for key, value in result.items() if key not in measured and value is not None
        } == {}

    colours = ran("product_analysis", sharp, Facts()).result["colours"]
    assert {colour["source"] for colour in colours} == {"measured"}
    assert colours[0]["name"] in {"denim", "indigo", "navy", "cobalt"}


@pytest.mark.long
@pytest.mark.parametrize("task", ["base_view", "sketch", "seo"])
def test_every_result_is_json_and_repeats_exactly(task: str, sharp: Path) -> None:
    facts = parse_facts(STATED)
    first, again = ran(task, sharp, facts), ran(task, sharp, facts)
    assert first == again
    assert json.loads(json.dumps(first.result, allow_nan=False)) == first.result


def test_lengths_are_supplied_or_follow_from_the_declared_scale_and_say_which(sharp: Path) -> None:
    rows = {
        row["name"]: row
        for row in ran("base_view", sharp, parse_facts(STATED)).result["dimensions"]
    }

    # The picture is 4:5 and the scale says 68 cm for 0.68 of its height, so its width is 80 cm.
    assert (rows["width"]["value"], rows["width"]["unit"]) == (32.0, "cm")
    assert rows["width"]["source"] == "measured from the declared scale"
    assert rows["width in inches"]["value"] == pytest.approx(32 / 2.54, abs=0.05)
    assert (rows["pocket"]["value"], rows["pocket"]["source"]) == (13.5, "supplied")
    assert rows["pocket"]["measured"] == pytest.approx(10.0)
    assert (rows["length"]["value"], rows["length"]["source"]) == (68.0, "supplied")
    assert "yoke" not in rows


def test_a_length_without_value_and_scale_stays_unknown(sharp: Path) -> None:
    facts = parse_facts({**STATED, "scales": []})
    rows = {row["name"]: row for row in ran("sketch", sharp, facts).result["measurements"]}
    assert (rows["width"]["value"], rows["width"]["source"]) == (None, None)


def test_call_outs_are_the_views_own_features_numbered_in_order(sharp: Path) -> None:
    call_outs = ran("sketch", sharp, parse_facts(STATED)).result["call_outs"]
    assert [(row["number"], row["name"], row["x"], row["y"]) for row in call_outs] == [
        (1, "zip", 0.5, 0.5)
    ]


def test_missing_facts_are_named_in_the_evidence(sharp: Path) -> None:
    facts = parse_facts({"product": {"name": "Harbour coat", "category": "apparel"}})
    evidence = {item.name: item for item in ran("product_analysis", sharp, facts).evidence}
    assert evidence["completeness"].value == 0.4
    assert evidence["completeness"].note == "not supplied: model, brand, condition"


@pytest.mark.long
def test_seo_is_put_together_from_the_facts_and_scores_give_reasons(sharp: Path) -> None:
    seo = ran("seo", sharp, parse_facts(STATED)).result
    assert seo["title"] == "Tidewick Harbour coat in navy"
    assert seo["slug"] == "tidewick-harbour-coat-hc-2"
    assert seo["description"].startswith("A straight coat for wet days.")
    assert len(seo["description"]) <= 155
    assert seo["keywords"][:2] == ["canvas coat", "rain"]
    assert "cotton canvas" in seo["keywords"]
    assert all(score["reasons"] and 0 <= score["score"] <= 1 for score in seo["scores"].values())

    nameless = ran("seo", sharp, parse_facts({"product": {"category": "apparel"}})).result
    assert nameless["title"] == "apparel"
    assert "name: not supplied" in nameless["scores"]["title"]["reasons"]
    assert nameless["scores"]["overall"]["score"] < seo["scores"]["overall"]["score"]


@pytest.mark.parametrize(
    ("name", "kind", "title"),
    [
        ("Chat shirt", "hat", "Chat shirt hat in red"),
        ("Tired hat", "Hat", "Tired hat in red"),
        ("Sun hats, red", "hat", "Sun hats, red"),
        ("赤い帽子", "帽子", "赤い帽子 in red"),
        ("Be\u0301ret", "b\u00e9ret", "Be\u0301ret in red"),
    ],
)
def test_a_title_leaves_out_only_what_the_name_says(
    sharp: Path, name: str, kind: str, title: str
) -> None:
    product = {"name": name, "subcategory": kind}
    stated = parse_facts(
        {"product": product, "materials": [{"part": "all", "material": "felt", "colour": "red"}]}
    )
    assert ran("seo", sharp, stated).result["title"] == title


def test_a_slug_keeps_the_letters_of_any_script(sharp: Path) -> None:
    def slug(name: str) -> str | None:
        found = analyse("seo", [], parse_facts({"product": {"name": name}})).result["slug"]
        return None if found is None else str(found)

    assert slug("Où Été Straße") == "ou-ete-strasse"
    assert slug("帆布夹克") == "帆布夹克"
    assert slug("***") is None


def test_a_price_is_stated_or_from_market_data_or_not_there(sharp: Path) -> None:
    market = {
        "currency": "EUR",
        "marketplace": "Kaufhof Nord",
        "price": 110,
        "competitive_price": 99.5,
    }

    def price(facts: dict[str, Any]) -> Any:
        return analyse("listing", [], parse_facts(facts)).result["price"]

    assert price({**STATED, "market": market}) == {
        "amount": 120.0,
        "currency": "EUR",
        "source": "supplied",
    }
    assert price({"market": market})["amount"] == 99.5
    assert price({"market": market})["source"] == "market data: competitive price of Kaufhof Nord"
    assert price({}) is None


def test_a_listing_has_a_line_for_each_kind_of_fact(sharp: Path) -> None:
    listing = ran("listing", sharp, parse_facts(STATED)).result
    assert listing["bullets"] == [
        "Shell: 100 % cotton canvas, 340 g/m2, navy",
        "Zip: brass",
        "Vent",
        "Length 68 cm, pocket 13.5 cm",
        "Care: wash cold",
        "Condition: new",
    ]
    assert (listing["category"], listing["subcategory"]) == ("apparel", "coat")


def test_an_unknown_task_is_refused(sharp: Path) -> None:
    with pytest.raises(ValueError, match="task: 'poetry'"):
        analyse("poetry", [assess("front", sharp).quality], Facts())

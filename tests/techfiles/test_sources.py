"""What analyses say stands in a pack with its source, beside what is stated."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from atelier.assets.v1 import asset_pb2

from services.techfiles import contents, document, printing
from services.techfiles.contents import Contents
from services.techfiles.tech_file_rows import TechFile
from shared.formats.facts import parse_facts
from tests.techfiles import flows
from tests.techfiles.test_print_limits import MADE_AT, tech_file, winter_line

SHELL = {"part": "shell", "material": "cotton canvas"}


def analysed(analysis: dict[str, Any], *, model: str = "", kind: str = "base_view") -> TechFile:
    file = tech_file(kind)
    file.analysis, file.model = analysis, model
    return file


def pack(
    facts: dict[str, Any], *files: TechFile, sources: dict[str, Any] | None = None
) -> Contents:
    known = {
        picture: asset_pb2.Asset(id=picture, mime_type="image/jpeg", width=750, height=1000)
        for picture in contents.pictures_of(files)
    }
    return contents.pack_of(winter_line(), files, parse_facts(facts), known, MADE_AT, "v1", sources)


def finding(key: str, value: object, source: str = "found", **more: Any) -> dict[str, Any]:
    more = {"model": "eye-1", "confidence": 0.8} | more
    return {"findings": [{"key": key, "value": value, "source": source, **more}]}


def test_a_value_that_a_caller_put_into_an_analysis_is_printed_as_supplied() -> None:
    made = pack({}, analysed({"brand": "Kesterholt", "materials": [SHELL]}))
    assert made.pack.product.brand == "Kesterholt"
    [material] = made.pack.materials
    assert (material.material, material.mark) == ("cotton canvas", "")
    assert [line.source for line in made.pack.sources] == ["supplied with a file by user:ada"] * 2
    assert made.merely_found == () and made.warnings == ()


def test_a_value_of_a_model_without_findings_is_found_by_that_model() -> None:
    [line] = pack({}, analysed({"category": "parka"}, model="eye-1")).pack.sources
    assert (line.sign, line.says, line.source) == ("F1", "parka", "found by eye-1")


def test_a_fact_that_a_person_confirmed_has_the_sign_of_that_person() -> None:
    confirmed = {
        "source": "confirmed",
        "by": "grace",
        "at": "2026-05-04T10:20:30.5Z",
        "phase": 1,
        "model": "eye-1",
        "confidence": 0.42,
        "instead_of": {"source": "supplied", "by": "ada", "value": "Jacket"},
    }
    facts = {
        "product": {"name": "Field coat", "brand": "Kesterholt", "keywords": ["coat", "canvas"]},
        "materials": [SHELL],
        "dimensions": [{"name": "length", "value": 90, "unit": "cm"}],
        "price": {"msrp": 129.9, "currency": "EUR"},
    }
    later = {**confirmed, "phase": 3, "instead_of": {"version": 2}}
    made = pack(
        facts,
        analysed({"name": "Parka"}, model="eye-1"),
        sources={
            "product.name": confirmed,
            "product.brand": {"source": "supplied", "by": "ada"},
            "product.keywords": later,
            "product.model": confirmed,  # was emptied
            **dict.fromkeys(("materials", "dimensions", "price"), later),
        },
    )
    product = made.pack.product
    assert product.name == document.Alternatives(
        (document.Marked("Field coat", "C1"), document.Marked("Parka", "F1"))
    )
    assert (product.brand, product.model) == ("Kesterholt", None)
    assert product.keywords == (document.Marked("coat", "C2"), document.Marked("canvas", "C2"))
    [material], price = made.pack.materials, made.pack.price
    assert (material.mark, price and price.mark) == ("C3", "C5")
    [length] = made.pack.views[0].dimensions
    assert (length.mark, length.source) == ("C4", "confirmed")
    assert made.pack.sources[0] == document.SourceLine(
        "C1",
        "name",
        "Field coat",
        "confirmed by grace on 2026-05-04 10:20 UTC",
        "phase 1 of the review",
        "asked about what eye-1 said, 42\u00a0% sure; instead of Jacket",
    )
    lines = {line.sign: line for line in made.pack.sources}
    assert sorted(lines) == ["C1", "C2", "C3", "C4", "C5", "F1"]
    assert (lines["C5"].key, lines["C5"].says) == ("price", "129.90 EUR")
    assert str(lines["C2"].note).endswith("instead of what was stated before")


def test_values_that_disagree_stand_side_by_side_and_the_stated_one_first() -> None:
    facts = {"product": {"name": "Field jacket"}, "materials": [SHELL, {**SHELL, "part": "hood"}]}
    wool = {"part": "Shell", "material": "wool"}
    made = pack(facts, analysed({**finding("materials", [wool]), "name": "Parka"}, model="eye-1"))
    assert made.pack.product.name == document.Alternatives(
        (document.Marked("Field jacket"), document.Marked("Parka", "F1"))
    )
    assert [(m.part, m.material, m.mark) for m in made.pack.materials] == [
        ("shell", "cotton canvas", ""),
        ("Shell", "wool", "F2"),
        ("hood", "cotton canvas", ""),
    ]
    assert {(each.key, each.value, each.model) for each in made.merely_found} == {
        ("name", "Parka", "eye-1"),
        ("materials", "Shell: wool", "eye-1"),
    }


@pytest.mark.parametrize("source", ["confirmed", "supplied", "measured", "read"])
def test_what_another_source_says_too_is_not_merely_found(source: str) -> None:
    said = finding("size", "48")["findings"] + finding("size", " 48 ", source)["findings"]
    made = pack({}, analysed({"findings": said}))
    assert made.merely_found == ()
    assert {line.says for line in made.pack.sources} == {"48", "agrees"}


def test_lengths_agree_across_units_and_differ_by_their_value() -> None:
    facts = {"dimensions": [{"name": "body length", "value": 72, "unit": "cm", "view": "front"}]}
    same = {"name": "Body length", "value": 0.72, "unit": "m", "view": "front"}
    other = {**same, "value": 0.7}
    made = pack(facts, analysed({"dimensions": [same, other]}, kind="sketch"))
    [view] = made.pack.views
    assert [(d.value, d.unit, d.mark) for d in view.dimensions] == [
        (72, "cm", ""),
        (0.7, "m", "S1"),
    ]
    assert made.pack.sources[0].says == "Body length: 0.7 m; the rest agrees"


def test_a_point_of_measure_without_a_value_takes_the_one_that_a_file_has() -> None:
    point = {"code": "A", "name": "chest", "unit": "cm", "tolerance": 1, "view": "front"}
    ends = {"from": {"x": 0.1, "y": 0.5}, "to": {"x": 0.9, "y": 0.5}}
    file = analysed({"measurements": [{"code": "A", "name": "chest", "value": 58, "unit": "cm"}]})
    [row] = pack({"points_of_measure": [{**point, **ends}]}, file).pack.points_of_measure
    assert (row.value, row.tolerance, row.source) == (58, 1, "supplied with a file")
    assert row.mark == ""
    assert row.start == document.Point(0.1, 0.5)


def test_a_place_and_a_confidence_are_listed_with_what_was_read() -> None:
    place = {"picture": 2, "box": {"left": 0.2, "top": 0.4, "width": 0.2, "height": 0.2}}
    care = finding("care", {"text": ["wash at 30 °C"]}, "VALUE_SOURCE_READ", **place)
    made = pack({"care": ["do not bleach"]}, analysed(care))
    assert made.pack.care == (
        document.Marked("do not bleach"),
        document.Marked("wash at 30 °C", "R1"),
    )
    [line] = made.pack.sources
    assert line.source == "read in a picture by eye-1, 80\u00a0%\u00a0sure"
    assert line.where == (
        "Base view: front, picture 2, 30\u00a0% from the left, 50\u00a0% from the top"
    )


def test_a_reading_that_is_a_guess_is_listed_and_stands_nowhere_else() -> None:
    made = pack({}, analysed(finding("brands", ["Kester"], "read", confidence=0.3)))
    assert made.pack.product.brand is None
    assert made.pack.sources[0].says == "too unsure to be printed elsewhere: Kester"


def test_what_a_models_analysis_repeats_from_the_facts_is_printed_from_the_facts() -> None:
    repeats = finding("name", "Old name", "supplied", model="")
    made = pack({"product": {"name": "New name"}}, analysed(repeats, model="local-1"))
    assert made.pack.product.name == "New name" and made.pack.sources == ()


@pytest.mark.parametrize(
    ("analysis", "words"),
    [
        ({"moods": ["calm"]}, "moods: has no place in print"),
        ({"materials": "cotton"}, "materials: is not a list"),
        ({"materials": [SHELL, {"part": "x"}]}, "materials[1]: material: is needed"),
        ({"brand": {"name": "x"}}, "brand: value: must be text"),
        ({"name": "n" * 301}, "has 301 characters, at most 300"),
        ({"dimensions": [{"name": "w", "value": -1}]}, "must be greater than 0"),
        ({"findings": "none"}, "findings: is not a list"),
        ({"findings": [7]}, "findings[0]: is not a table"),
        (finding("name", "x", "guessed"), "findings[0].source: is none of"),
        ({"features": [{"name": "a", "x": 7, "y": 0}]}, "not a fraction"),
    ],
)
def test_what_cannot_be_read_is_named_and_the_rest_is_printed(
    analysis: dict[str, Any], words: str
) -> None:
    made = pack({}, analysed({**analysis, "size": "M"}))
    [warning] = made.warnings
    assert words in warning and warning.startswith("analysis: Base view: front: ")
    assert [detail.label for detail in made.pack.details] == ["Size"]


def test_what_is_more_than_a_pack_takes_is_counted_in_a_warning() -> None:
    files = [
        analysed({"keywords": [f"word {n} of {file}" for n in range(200)]}, model="eye-1")
        for file in range(4)
    ]
    made = pack({}, *files)
    assert len(made.pack.product.keywords) == 400
    assert "200 values, and those of 1 more files, are not printed" in made.warnings[0]


def test_every_value_of_the_product_may_have_a_sign(tmp_path: Path) -> None:
    names = [field.name for field in fields(document.Product) if field.name != "keywords"]
    said = {name: f"The {name}" for name in names}
    confirmed = {"source": "confirmed", "by": "grace", "at": "2026-05-04T10:20:30.5Z"}
    sources = {f"product.{name}": confirmed for name in names}
    made = pack({"product": said}, sources=sources)
    assert printing.render_pdf(made.pack, {}, tmp_path / "pack.pdf") == []

    found = pack({}, analysed(said, model="eye-1"))
    assert len(found.merely_found) == len(names)
    shown = flows.text_of((tmp_path / "pack.pdf").read_bytes())
    assert shown.count("confirmed by grace on 2026-05-04 10:20 UTC") == len(names)
    warnings = printing.render_pdf(found.pack, {}, tmp_path / "pack.pdf")
    assert [warning.reason for warning in warnings] == ["picture"]
    assert "found by eye-1" in flows.text_of((tmp_path / "pack.pdf").read_bytes())

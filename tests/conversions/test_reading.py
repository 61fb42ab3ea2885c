"""What stands in pictures is read with its place. It counts if it checks itself, or if the caller
states the same."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import pyvips
import zxingcpp
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import analysis_pb2 as pb
from google.protobuf import json_format

from services.conversions import merging, rules
from services.conversions.local import codes
from services.conversions.local.label_text import Stated, values
from services.conversions.local.reading import AGREES, CHECKED, SUGGESTED, Line, has_check_digit
from services.conversions.providers import reading
from services.conversions.providers.contract import Finding, Found, Measured, Model
from shared.rpc.protos import facts_message
from tests.conversions import flows, label_pictures
from tests.conversions import local_pictures as pictures
from tests.suite import Suite

NOTHING = Found(Model("local", "1"), [], {})


def lines(*texts: str) -> list[Line]:
    """Returns the lines of one label, one below the other."""
    return [Line(text, 0.95, (0.1, 0.1 + 0.03 * at, 0.3, 0.025)) for at, text in enumerate(texts)]


def said(*texts: str, brand: str = "", model: str = "") -> dict[str, tuple[Any, float]]:
    """Returns what a label says: by key the value and its confidence, the surest one."""
    found = values(lines(*texts), Stated(brand, model))
    return {
        each.key: (each.value, each.confidence)
        for each in sorted(found, key=lambda each: each.confidence)
    }


@pytest.mark.parametrize(
    ("texts", "composition"),
    [
        (["98% cotton, 2% elastane"], "98 cotton, 2 elastane"),
        (["COTTON 98% ELASTANE 2%"], "98 cotton, 2 elastane"),
        (["98 % Baumwolle", "2 % Elasthan"], "98 cotton, 2 elastane"),
        (["70% laine vierge 30% soie"], "70 virgin wool, 30 silk"),
        (["60% lino", "40% poliestere riciclato"], "60 linen, 40 recycled polyester"),
        (["100 %", "algodón"], "100 cotton"),
        (["98% cotton/Baumwolle/coton 2% elastane"], "98 cotton, 2 elastane"),
        (["33,3% wool 33,3% silk 33,3% lin"], "33.3 wool, 33.3 silk, 33.3 linen"),
        # Each language says the same.
        (["50% wool 50% silk", "50% Wolle 50% Seide", "50% seta 50% lana"], "50 wool, 50 silk"),
        (
            ["Shell: 100% cotton", "Futter", "65% Polyester 35% Baumwolle"],
            "shell 100 cotton, lining 65 polyester, lining 35 cotton",
        ),
        # What doesn't add up, or contradicts itself, is confirmed by nothing.
        (["10% cotton"], ""),
        (["98% cotton 20% elastane"], ""),
        (["98% cotton 2% elastano rosso", "98% lana 2% elastan"], ""),
        (["100% cotton", "100% polyester"], ""),
        (["20% OFF", "100% satisfaction"], ""),
        (["cotton"], ""),
    ],
)
def test_a_composition_counts_if_each_part_adds_up_to_100(
    texts: Sequence[str], composition: str
) -> None:
    value, confidence = said(*texts).get("composition", ([], CHECKED))
    shares = [f"{each.get('part', '')} {each['percent']:g} {each['material']}" for each in value]
    confirmed = shares if confidence == CHECKED else []
    assert ", ".join(share.strip() for share in confirmed) == composition


@pytest.mark.parametrize(
    ("text", "country"),
    [
        ("MADE IN PORTUGAL", "Portugal"),
        ("Hergestellt in der Türkei", ""),
        ("Hergestellt in Österreich", "Austria"),
        ("Fabriqué au Viêt Nam", "Vietnam"),
        ("Fabricado en Marruecos / Made in Morocco", "Morocco"),
        ("Prodotto in Italia", "Italy"),
        ("MadeinChina", "China"),
        ("Made in P.R.C.", "China"),
        ("Made in Portugai", ""),
        ("Made in Indiana", ""),
        ("Made with love", ""),
    ],
)
def test_an_origin_counts_if_the_country_is_known(text: str, country: str) -> None:
    value, confidence = said(text).get("origin", ("", 0))
    assert (value if confidence == CHECKED else "") == country


@pytest.mark.parametrize(
    ("texts", "size"),
    [
        (["SIZE M"], "M"),
        (["Größe: 38"], "38"),
        (["EU 42"], "42"),
        (["Taille unique"], "one size"),
        (["XL", "Made in Peru"], "XL"),
        (["L"], ""),
        (["42", "Made in Peru"], ""),
        (["SZE M"], ""),
        (["Size M", "Size L"], ""),
    ],
)
def test_a_size_counts_where_a_size_is_expected(texts: Sequence[str], size: str) -> None:
    value, confidence = said(*texts).get("size", ("", 0))
    assert (value if confidence == CHECKED else "") == size


def test_care_counts_if_every_word_is_known() -> None:
    care = ["Machine wash 30°C", "Do not bleach", "Nicht bügeln", "Ne pas sécher en machine"]
    assert said(*care, "Do not bIeach 7x")["care"] == (
        {"text": care, "wash_celsius": 30},
        CHECKED,
    )
    for wrong in ("Machine mash 30°C", "Machine wash 80°C", "Wash club members only 2026"):
        assert said(wrong).get("care", ({}, SUGGESTED))[1] == SUGGESTED, wrong
    # A temperature for irons is none for washing, and two of them are none.
    assert said("Iron at max 110°C")["care"] == ({"text": ["Iron at max 110°C"]}, CHECKED)
    both = ["Wash 30°C", "Wash 60°C"]
    assert said(*both)["care"] == ({"text": both}, CHECKED)


def test_a_number_of_an_article_counts_with_its_check_digit() -> None:
    assert said("4 006381 333931")["ean"] == ("4006381333931", CHECKED)
    assert "ean" not in said("4 006381 333932")
    assert "ean" not in said("14 006381 333931 7")
    assert [has_check_digit(each) for each in ("96385074", "036000291452", "4006381333931")] == (
        [True] * 3
    )
    assert not any(
        map(has_check_digit, ("", "96385075", "400638133393", "４００６３８１３３３９３１"))
    )


def test_a_brand_and_a_model_are_suggestions_unless_the_caller_states_them() -> None:
    label = ["KESTERHOLT", "Model NF-2207-TAN", "98% cotton 2% elastane"]
    bare = said(*label)
    assert bare["brands"] == (["KESTERHOLT"], SUGGESTED)
    assert bare["model"] == ("NF-2207-TAN", SUGGESTED)
    known = said(*label, brand="Kesterholt", model="nf-2207-tan")
    assert known["brands"] == (["Kesterholt"], AGREES)
    assert known["model"] == ("nf-2207-tan", AGREES)
    other = said(*label, brand="Tidewick", model="T-1")
    assert other["brands"] == (["KESTERHOLT"], SUGGESTED)
    assert said("kesterholts", brand="Kesterholt")["brands"] == (["kesterholts"], SUGGESTED)
    assert "brands" not in said("4711", "T--", "wool", "Do not bleach", brand="Kesterholt")


@pytest.mark.parametrize(
    "text", ["", " ", "%", "100%", "made in", "size", "°C", "x" * 300, "٣٪ cotton"]
)
def test_any_line_may_be_read(text: str) -> None:
    assert all(each.confidence < rules.READ_COUNTS_FROM for each in values(lines(text), Stated()))


def finding(key: str, value: Any, confidence: float, source: str = rules.READ) -> Finding:
    return Finding(key, value, source, "reader 1", confidence, "a line", 1, (0.1, 0.1, 0.2, 0.2))


def measured(*read: Finding, **stated: Any) -> Measured:
    needs = {need: need in stated for need in ("name", "brand", "category")}
    named = {"brands": [stated["brand"]]} if "brand" in stated else {}
    completeness = rules.Evidence(name="completeness", value=0, weight=1, note="not supplied")
    return Measured({**named}, needs, [completeness], read)


def test_a_suggestion_is_shown_and_changes_nothing() -> None:
    bare = measured(finding("brands", ["KESTERHOLT"], SUGGESTED), finding("size", "L", SUGGESTED))
    assert merging.result("product", bare, NOTHING) == {}
    assert merging.confidence(merging.evidence("product", bare, NOTHING)) == 0
    assert [each["disagrees"] for each in merging.findings("product", bare, NOTHING)] == [False] * 2
    stated = measured(finding("brands", ["KESTERHOLT"], SUGGESTED), brand="Tidewick")
    assert merging.result("product", stated, NOTHING) == {"brands": ["Tidewick"]}
    shown = merging.findings("product", stated, NOTHING)
    assert [(each["source"], each["disagrees"]) for each in shown] == [
        (rules.SUPPLIED, False),
        (rules.READ, True),
    ]


def test_what_was_read_comes_before_what_a_model_found_and_makes_up_for_nothing() -> None:
    found = Found(
        Model("m", "1"),
        [
            finding("origin", "Spain", 0.99, rules.FOUND),
            finding("name", "Coat", 0.9, rules.FOUND),
        ],
        {},
    )
    read = measured(
        *(finding(key, key, CHECKED) for key in ("size", "ean", "origin")),
        finding("origin", "Portugal", 1.0),
    )
    whole = merging.result("product", read, found)
    assert whole == {"origin": "Portugal", "size": "size", "ean": "ean", "name": "Coat"}
    disagreeing = {
        (each["source"], each["value"])
        for each in merging.findings("product", read, found)
        if each["disagrees"]
    }
    assert disagreeing == {(rules.FOUND, "Spain"), (rules.READ, "origin")}
    # Alone, all of it counts as much as one of the three values that are wanted; beside one, as
    # nothing.
    alone = merging.confidence(merging.evidence("product", read, NOTHING))
    assert alone == pytest.approx(1 / 3, abs=0.001)
    one = measured(finding("size", "M", CHECKED), brand="Tidewick")
    assert merging.confidence(merging.evidence("product", one, NOTHING)) == pytest.approx(
        1 / 3, abs=0.001
    )


@pytest.fixture(scope="module")
def garment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.garment(tmp_path_factory.mktemp("photos") / "plain.jpg", width=1200)


def tagged(garment: Path, name: str, **options: Any) -> Path:
    tag = label_pictures.card(["NF-2207"], ean=label_pictures.EAN)
    return label_pictures.pasted(
        garment, garment.with_name(name), (tag, -12, (0.62, 0.7)), **options
    )


def read(path: Path) -> list[tuple[str, str]]:
    photo = pyvips.Image.new_from_file(str(path))
    return [(each.format, each.text) for each in codes.read_codes(photo)]


@pytest.mark.long
def test_codes_are_read_at_an_angle_and_mirrored_and_nothing_else_is_taken_for_one(
    garment: Path,
) -> None:
    ean = [("EAN-13", label_pictures.EAN)]
    assert read(tagged(garment, "tag.jpg")) == ean
    assert read(tagged(garment, "mirrored.jpg", mirrored=True)) == ean
    assert read(tagged(garment, "blurred.jpg", blur=6)) == []
    assert read(garment) == []
    sheet = label_pictures.card(["Scan me"], link=label_pictures.LINK)
    scan = label_pictures.pasted(garment, garment.with_name("scan.jpg"), (sheet, 20, (0.5, 0.5)))
    assert read(scan) == [("QR Code", label_pictures.LINK)]
    stripes = (pyvips.Image.xyz(1200, 900)[0] % 12 > 5).ifthenelse(20, 230).cast("uchar")
    stripes.write_to_file(str(garment.with_name("stripes.png")))
    assert read(garment.with_name("stripes.png")) == []


def test_a_code_with_characters_that_no_database_takes_is_read_without_them(
    tmp_path: Path,
) -> None:
    image: Any = zxingcpp.create_barcode("a\0b\nc\u202e", zxingcpp.BarcodeFormat.QRCode).to_image(
        scale=8
    )
    pixels = memoryview(image)
    rows, columns = pixels.shape or ()
    photo = pyvips.Image.new_from_memory(pixels.tobytes(), columns, rows, 1, "uchar")
    [code] = codes.read_codes(photo.copy(interpretation="b-w"))
    assert code.text.isprintable() and code.text.startswith("a")


@pytest.mark.long
async def test_an_article_number_is_read_whatever_is_stated(suite: Suite, garment: Path) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    front = await flows.put(ada, garment, asset_pb2.ASSET_KIND_PRODUCT)
    tag = await flows.put(ada, tagged(garment, "tag.jpg"), asset_pb2.ASSET_KIND_PRODUCT)

    bare = await flows.analyse(ada, (front, "front"), (tag, "back"))
    result: Any = json_format.MessageToDict(bare.result)
    assert result["ean"] == label_pictures.EAN
    [code] = result["codes"]
    assert code == {
        "format": "EAN-13",
        "text": label_pictures.EAN,
        "picture": 2,
        "source": "read",
    }
    [ean] = [each for each in bare.findings if each.key == "ean" and "zxing" in each.model]
    assert (ean.source, ean.confidence, ean.picture, ean.disagrees) == (
        pb.VALUE_SOURCE_READ,
        1,
        2,
        False,
    )
    assert ean.note == f"EAN-13 {label_pictures.EAN}"
    box = ean.box
    assert 0.45 < box.left < 0.62 < box.left + box.width < 0.8
    assert 0.6 < box.top < box.top + box.height < 0.8
    assert 0 < bare.confidence <= 0.2 and bare.credits == 1
    [known] = [each.note for each in bare.evidence if each.name == "completeness"]
    assert ("labels: front: " if reading.label_model() else "labels aren't read here") in known

    # Other tasks don't show them, and a caller's facts stay.
    other = await flows.analyse(ada, (tag, "back"), task=pb.ANALYSIS_TASK_CATEGORY)
    assert (dict(other.result), other.credits) == ({}, 0)
    stated = facts_message({"product": {"name": "Coat"}})
    again: Any = json_format.MessageToDict(
        (await flows.analyse(ada, (tag, "back"), facts=stated)).result
    )
    assert (again["name"], again["ean"]) == ("Coat", label_pictures.EAN)


async def test_an_outside_worker_may_say_what_it_read(suite: Suite) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    asked = await flows.analyse(ada, run_externally=True, wait=False)
    claimed = await flows.claim(ada, asked.id)
    read = {
        "ean": label_pictures.EAN,
        "size": "M",
        "origin": "Portugal",
        "care": {"text": ["Wash"]},
    }
    analysis: Any = {"result": read}
    await flows.complete(ada, claimed, analysis=analysis, confidence=0.9)
    kept = await flows.analyses(ada).GetAnalysis(pb.GetAnalysisRequest(analysis_id=claimed.job.id))
    assert json_format.MessageToDict(kept.analysis.result) == read

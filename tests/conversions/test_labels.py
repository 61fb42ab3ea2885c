"""Labels in photographs are read, where the reading extra is installed."""

from pathlib import Path
from typing import Any

import pytest
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import analysis_pb2 as pb
from google.protobuf import json_format

from services.conversions.local.reading import AGREES, CHECKED, SUGGESTED
from services.conversions.providers import reading
from shared.rpc.protos import facts_message
from tests.conversions import flows, label_pictures
from tests.conversions import local_pictures as pictures
from tests.suite import ROOT, Suite

pytestmark = [pytest.mark.needs_reading, pytest.mark.long]

SAYS: dict[str, Any] = {
    "ean": label_pictures.EAN,
    "size": "M",
    "origin": "Portugal",
    "care": {"text": ["Machine wash 30°C", "Do not bleach"], "wash_celsius": 30},
    "composition": [
        {"material": "cotton", "percent": 98, "source": "read"},
        {"material": "elastane", "percent": 2, "source": "read"},
    ],
}


@pytest.fixture(scope="module")
def garment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures.garment(tmp_path_factory.mktemp("photos") / "plain.jpg", width=1600)


def labelled(garment: Path, name: str, **options: Any) -> Path:
    """Writes a photograph of the garment with its care label and hang tag."""
    care = label_pictures.card(label_pictures.CARE_LABEL)
    tag = label_pictures.card(label_pictures.HANG_TAG, ean=label_pictures.EAN)
    on_it = ((care, 8, (0.36, 0.42)), (tag, -12, (0.62, 0.72)))
    return label_pictures.pasted(garment, garment.with_name(name), *on_it, **options)


async def analysed(suite: Suite, *photographs: Path, **fields: Any) -> pb.Analysis:
    ada = suite.client("ada")
    shown = [
        (await flows.put(ada, path, asset_pb2.ASSET_KIND_PRODUCT), view)
        for path, view in zip(photographs, ("front", "back", "side"), strict=False)
    ]
    return await flows.analyse(ada, *shown, **fields)


def result_of(analysis: pb.Analysis) -> dict[str, Any]:
    whole: dict[str, Any] = json_format.MessageToDict(analysis.result)
    return {key: value for key, value in whole.items() if key not in ("colours", "image_quality")}


async def test_three_photographs_without_facts_say_what_stands_on_the_label(
    suite: Suite, garment: Path
) -> None:
    await flows.start(suite)
    side = pictures.blurred(garment, garment.with_name("side.jpg"))
    made = await analysed(suite, garment, labelled(garment, "labels.jpg"), side)
    result = result_of(made)
    assert [code["text"] for code in result.pop("codes")] == [label_pictures.EAN]
    assert result == SAYS
    read = {each.key: each for each in made.findings if each.model == reading.label_model()}
    assert {key for key, each in read.items() if each.confidence >= CHECKED} == set(SAYS)
    assert {key for key, each in read.items() if each.confidence == SUGGESTED} == {
        "brands",
        "model",
    }
    assert (read["model"].value.string_value, read["model"].disagrees) == ("NF-2207-TAN", False)
    origin = read["origin"]
    assert (origin.source, origin.picture, origin.note) == (
        pb.VALUE_SOURCE_READ,
        2,
        "Made in Portugal",
    )
    assert 0.2 < origin.box.left < 0.3 and 0.4 < origin.box.top < 0.5 and origin.box.width < 0.2
    [known] = [each.note for each in made.evidence if each.name == "completeness"]
    assert "labels: front: 0 lines, back: 12 lines, side: " in known
    assert 0 < made.confidence <= 0.2 and made.credits == 1


async def test_what_the_caller_states_is_confirmed_by_the_label(
    suite: Suite, garment: Path
) -> None:
    await flows.start(suite)
    stated = facts_message({"product": {"brand": "Kesterholt", "model": "NF-2207-TAN"}})
    made = await analysed(suite, labelled(garment, "labels.jpg"), facts=stated)
    read = {each.key: each for each in made.findings if each.source == pb.VALUE_SOURCE_READ}
    for key in ("brands", "model"):
        assert (read[key].confidence, read[key].disagrees) == (AGREES, False)
    base = await analysed(suite, labelled(garment, "labels.jpg"), task=pb.ANALYSIS_TASK_BASE_VIEW)
    assert result_of(base)["materials"] == [
        {"material": "98% cotton, 2% elastane", "source": "read"}
    ]


async def test_a_photograph_that_is_out_of_focus_or_mirrored_says_nothing_wrong(
    suite: Suite, garment: Path
) -> None:
    await flows.start(suite)
    for name, options in (
        ("soft.jpg", {"blur": 2}),
        ("blurred.jpg", {"blur": 4}),
        ("lost.jpg", {"blur": 9}),
        ("mirrored.jpg", {"mirrored": True}),
    ):
        result = result_of(await analysed(suite, labelled(garment, name, **options)))
        result.pop("codes", None)
        wrong = {key: value for key, value in result.items() if value != SAYS[key]}
        # Of the care label some lines may be missing.
        if lines := wrong.pop("care", None):
            assert set(lines["text"]) <= set(SAYS["care"]["text"]), name
        assert not wrong, name
        assert name != "soft.jpg" or result == SAYS


async def test_the_photograph_of_the_demo_shows_its_brand(suite: Suite) -> None:
    await flows.start(suite)
    front = ROOT / "examples" / "photos" / "front.jpg"
    bare = await analysed(suite, front)
    [brand] = [each for each in bare.findings if each.key == "brands"]
    assert [each.string_value for each in brand.value.list_value.values] == ["KESTERHOLT"]
    assert brand.confidence == SUGGESTED and "brands" not in bare.result
    assert (bare.confidence, bare.credits) == (0, 0)
    known = await analysed(suite, front, facts=facts_message({"product": {"brand": "Kesterholt"}}))
    [_, brand] = [each for each in known.findings if each.key == "brands"]
    assert (brand.confidence, brand.disagrees) == (AGREES, False)
    assert 0.4 < brand.box.left < 0.5 and 0.2 < brand.box.top < 0.3

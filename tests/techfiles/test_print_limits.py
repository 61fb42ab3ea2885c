"""Whatever the contract accepts is printed whole. The facts are made from the contract's own
limits: a new field is printed too, or this fails."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pypdf
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.common.v1 import facts_pb2
from buf.validate import validate_pb2
from google.protobuf.descriptor import FieldDescriptor

from services.techfiles import contents, diffing, document, printing, revising
from services.techfiles.collection_rows import Collection
from services.techfiles.tech_file_rows import TechFile
from shared.formats.facts import parse_facts
from shared.imaging import ImagingPool
from shared.rpc import protos
from tests.techfiles import flows

# Not for a factory: the pictures asked of a model, the scales that other lengths follow from, the
# prices of others.
NOT_PRINTED = {"closeups", "scales", "market"}
WORDS = {
    "view": "front",
    "unit": "mm",
    "currency": "EUR",
}  # shared.formats.facts accepts only a few words
WIDE = "W"  # the widest letter
OWNER = "user:ada"
MADE_AT = datetime(2026, 1, 1, tzinfo=UTC)


class Filling:
    """Messages filled to their limits; every text ends in a number of its own."""

    def __init__(self, items: int, letter: str, most: int) -> None:
        self.items, self.letter, self.most = items, letter, most
        self.texts: list[str] = []

    def message(self, descriptor: Any, only: str = "") -> dict[str, Any]:
        fields = [field for field in descriptor.fields if only in ("", field.name)]
        return {field.name: self.field(field) for field in fields}

    def field(self, field: Any) -> Any:
        rules = field.GetOptions().Extensions[validate_pb2.field]
        if field.is_repeated:
            count = min(self.items, rules.repeated.max_items)
            assert rules.repeated.max_items, f"{field.full_name} has no limit"
            return [self.value(field, rules.repeated.items) for _ in range(count)]
        return self.value(field, rules)

    def value(self, field: Any, rules: validate_pb2.FieldRules) -> Any:
        if field.message_type is facts_pb2.Point.DESCRIPTOR:
            return {"x": (len(self.texts) * 7 % 97) / 97, "y": (len(self.texts) * 3 % 89) / 89}
        if field.message_type:
            return self.message(field.message_type)
        if field.type == FieldDescriptor.TYPE_DOUBLE:
            return rules.double.lte - 0.0625
        if field.name in WORDS and field.full_name != "atelier.common.v1.BillOfMaterialsFact.unit":
            return WORDS[field.name]
        assert rules.string.max_len, f"{field.full_name} has no limit"
        number = f"#{len(self.texts)}#"
        text = self.letter * (min(rules.string.max_len, self.most) - len(number)) + number
        self.texts.append(text)
        return text


def tech_file(file_type: str) -> TechFile:
    """Returns a completed file of the front, with a picture of its own."""
    return TechFile(
        id=uuid4(),
        owner=OWNER,
        created_by=OWNER,
        version=1,
        slot_id=uuid4(),
        product_id="p-1",
        revision_id="r-1",
        file_type=file_type,
        view_type="front",
        file_category="",
        file_asset_id=uuid4(),
        analysis=None,
        state="completed",
        error_message="",
        credits_used=0,
        model="",
        prompt="",
        batch_id="",
        confidence=None,
        quality_score=None,
        number=1,
        numbered_at=MADE_AT,
        parent_file_id=None,
        is_latest=True,
        collection_id=None,
        export_id=None,
        archived_at=None,
        created_at=MADE_AT,
        updated_at=MADE_AT,
        origin="",
        deleted_at=None,
        expires_at=None,
        parent_purged=False,
        restored_from=None,
        restore_reason="",
    )


def winter_line() -> Collection:
    return Collection(
        id=uuid4(),
        owner=OWNER,
        created_by=OWNER,
        version=1,
        product_id="p-1",
        revision_id="",
        name="Winter line",
        description="",
        collection_type="tech_pack_v2",
        facts={},
        progress_override=None,
        state_override="",
        credits_adjustment=0,
        created_at=MADE_AT,
        updated_at=MADE_AT,
        fact_sources={},
        archived_at=None,
        deleted_at=None,
        expires_at=None,
        facts_number=1,
        facts_by="",
        facts_reason="",
        facts_at=None,
    )


def printed(
    stated: dict[str, Any], collection: Path, analyses: Sequence[dict[str, Any]] = ()
) -> tuple[document.Pack, dict[str, Path]]:
    """Returns a pack of these facts with a base view and a sketch of the front, and its pictures.
    Each analysis is that of one more close-up."""
    picture = collection / "front.jpg"
    picture.write_bytes(flows.photo("front"))
    files = [tech_file("base_view"), tech_file("sketch")]
    for analysis in analyses:
        files.append(replace(tech_file("closeup"), analysis=analysis, model="eye-1"))
    known = {
        picture: asset_pb2.Asset(id=picture, mime_type="image/jpeg", width=750, height=1000)
        for picture in contents.pictures_of(files)
    }
    facts = parse_facts(protos.facts(protos.facts_message(stated), "facts"))
    made = contents.pack_of(winter_line(), files, facts, known, MADE_AT, "v1")
    assert made.warnings == ()
    return made.pack, dict.fromkeys(known, picture)


def letters_of(pdf: Path) -> str:
    """Returns everything printed, without spaces and marks of allowed line breaks."""
    pages = "".join(page.extract_text() for page in pypdf.PdfReader(pdf).pages)
    return re.sub(r"[\s\u200b]", "", pages)


def outside(pdf: Path) -> list[tuple[str, float, float]]:
    """Returns the texts that begin beyond the frame of their page, with their place in points from
    the lower left corner."""
    found: list[tuple[str, float, float]] = []

    def note(text: str, m: list[float], at: list[float], *_: Any) -> None:
        x, y = at[4] * m[0] + at[5] * m[2] + m[4], at[4] * m[1] + at[5] * m[3] + m[5]
        if text.strip() and not (22 < x < 820 and 22 < y < 575):
            found.append((text, x, y))

    for page in pypdf.PdfReader(pdf).pages:
        page.extract_text(visitor_text=note)
    return found


@pytest.mark.long
@pytest.mark.parametrize(
    "field", [f.name for f in facts_pb2.Facts.DESCRIPTOR.fields if f.name not in NOT_PRINTED]
)
def test_every_text_of_the_longest_kind_is_printed_whole(tmp_path: Path, field: str) -> None:
    filling = Filling(2, WIDE, 5_000)
    stated = filling.message(facts_pb2.Facts.DESCRIPTOR, field)
    pack, pictures = printed(stated, tmp_path)
    assert printing.render_pdf(pack, pictures, tmp_path / "pack.pdf") == []

    letters = letters_of(tmp_path / "pack.pdf")
    # Each text ends in a number of its own. The letters are counted over all texts, since a page's
    # head may come in between.
    assert all(re.search(r"#\d+#", text)[0] in letters for text in filling.texts)  # type: ignore[index]
    assert letters.count(WIDE) >= sum(text.count(WIDE) for text in filling.texts)

    numbers = json.dumps(stated).count("9999999.9375")
    assert letters.count("9999999.9375") >= numbers
    assert outside(tmp_path / "pack.pdf") == []


LONG = pytest.mark.faults  # up to a quarter of a minute each


@pytest.mark.long
@pytest.mark.parametrize(
    "field",
    [
        "materials",
        pytest.param("features", marks=LONG),
        pytest.param("points_of_measure", marks=LONG),
    ],
)
async def test_as_many_as_are_allowed_are_printed_in_a_child_process(
    tmp_path: Path, field: str
) -> None:
    filling = Filling(500, "n", 40)
    pack, pictures = printed(filling.message(facts_pb2.Facts.DESCRIPTOR, field), tmp_path)
    await printed_by_a_child(pack, pictures, tmp_path / "pack.pdf")
    letters = letters_of(tmp_path / "pack.pdf")
    assert all(re.search(r"#\d+#", text)[0] in letters for text in filling.texts)  # type: ignore[index]


@pytest.mark.long
@pytest.mark.parametrize("note", ["five letter words ", "a\n", "e\u0301\u0323"])
async def test_a_megabyte_of_facts_is_printed_in_a_child_process(tmp_path: Path, note: str) -> None:
    feature = {
        "name": "n" * 300,
        "view": "front",
        "note": (note * 2_000)[:1_500],
        "at": {"x": 0.5, "y": 0.5},
    }
    count = min(
        500, protos.FACTS_BYTES // (len(json.dumps(feature, ensure_ascii=False).encode()) + 40)
    )

    pack, pictures = printed({"features": [feature] * count}, tmp_path)
    await printed_by_a_child(pack, pictures, tmp_path / "pack.pdf")


@pytest.mark.long
@pytest.mark.faults  # up to a minute
async def test_all_that_a_pack_takes_from_analyses_is_printed_beside_a_megabyte_of_facts(
    tmp_path: Path,
) -> None:
    note = "five letter words " * 80
    stated = {"name": "n" * 300, "view": "front", "note": note, "at": {"x": 0.5, "y": 0.5}}
    found = [
        {"features": [{"name": f"{file}/{n} #{'w' * 180}", "view": "front", "x": n / 500, "y": 0.2}
                      for n in range(500)]}
        for file in range(1)
    ]  # fmt: skip
    pack, pictures = printed({"features": [stated] * 500}, tmp_path, found)
    assert len(pack.views[0].features) == 1_000
    await printed_by_a_child(pack, pictures, tmp_path / "pack.pdf")
    assert "0/499#" in letters_of(tmp_path / "pack.pdf")


@pytest.mark.long
@pytest.mark.parametrize("note", ["five letter words ", "a\n"])
async def test_a_megabyte_of_facts_that_all_changed_is_printed_in_a_child_process(
    tmp_path: Path, note: str
) -> None:
    def stated(end: str) -> dict[str, Any]:
        features = [
            {
                "name": f"{n} {'n' * 290}",
                "view": "front",
                "note": (note * 2_000)[:1_500] + end,
                "at": {"x": 0.5, "y": 0.5},
            }
            for n in range(500)
        ]
        while len(json.dumps(features).encode()) > protos.FACTS_BYTES - 1_000:
            features.pop()
        return {"features": features}

    pack, pictures = printed(stated("after"), tmp_path)
    changes = diffing.compare({"facts": stated("before")}, {"facts": stated("after")})
    release = document.Release(
        title="Draft",
        name="the largest",
        draft=True,
        made=OWNER,
        since="Release 1: the one before",
        revisions=revising.lines(changes, []),
    )
    pack = revising.marked(replace(pack, release=release), changes)

    assert len(release.revisions) > 300
    await printed_by_a_child(pack, pictures, tmp_path / "pack.pdf")


async def printed_by_a_child(pack: document.Pack, pictures: dict[str, Path], target: Path) -> None:
    pool = ImagingPool(1)
    try:
        assert await pool.run(printing.render_pdf, pack, pictures, target, timeout=300) == []
    finally:
        await pool.close()


@pytest.mark.long
def test_lines_without_end_become_a_paragraph_that_says_where_they_ended(tmp_path: Path) -> None:
    notes = [
        {"name": f"feature {n}", "view": "front", "note": f"line of {n}\n" * 100}
        for n in range(400)
    ]
    pack, pictures = printed({"features": notes}, tmp_path)
    assert printing.render_pdf(pack, pictures, tmp_path / "pack.pdf") == []

    pages = pypdf.PdfReader(tmp_path / "pack.pdf").pages
    assert "line of 0 \u00b6 line of 0" in " ".join(
        " ".join(page.extract_text().split()) for page in pages[:8]
    )
    assert len(pages) < 250

"""The promises of a generated tech pack to its readers: every file, every stated fact, and nothing
made up."""

import asyncio
import json
import re
import subprocess
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from atelier.assets.v1 import asset_pb2
from atelier.common.v1 import facts_pb2
from atelier.techfiles.v1 import collection_pb2 as col
from atelier.techfiles.v1 import tech_file_pb2 as tf
from atelier.techfiles.v1 import tech_pack_pb2 as tp
from google.protobuf import json_format, struct_pb2

from tests import forward_zip
from tests.assets import flows as asset_flows
from tests.calls import refused
from tests.suite import Client, Cluster, DiskServer, Keys, Suite, running_suite
from tests.techfiles import flows

ZIP, DONE = tp.EXPORT_FORMAT_ZIP, tp.RUN_STATE_COMPLETED
UNIT = r"(?:mm|cm|m|in|g/m2|g|kg|%|EUR|degrees|piece|tex|px|dpi|pt)\b"
FIGURE = re.compile(rf"\d[\d.,]*\s?{UNIT}")


@dataclass
class Made:
    """A finished run over the three example photographs."""

    suite: Suite
    ada: Client
    facts: facts_pb2.Facts
    run: tp.TechPackRun
    pdf: bytes


def stated() -> facts_pb2.Facts:
    """Returns the example's facts with only two close-ups, and without values for two points of
    measure."""
    facts = flows.example_facts()
    del facts.closeups[2:]
    for point in facts.points_of_measure:
        if point.code in ("B", "M"):
            point.ClearField("value")
    return facts


@pytest.fixture(scope="module")
async def made(cluster: Cluster, keys: Keys, disk: DiskServer) -> AsyncIterator[Made]:
    async with running_suite(cluster, keys, disk) as suite:
        await suite.serve("assets", "conversions", "techfiles")
        await suite.work("assets", "conversions", "techfiles")
        ada = suite.client("ada")
        facts = stated()
        pictures = await flows.revisions(ada, "front", "back", "side")
        started = await flows.generate(ada, pictures, facts=facts, collection_name="Winter line")
        run = await flows.ended(ada, started.id)
        export = await flows.pack_service(ada).GetExport(
            tp.GetExportRequest(export_id=run.export_id)
        )
        yield Made(suite, ada, facts, run, await flows.fetch(export.export))


async def test_a_run_makes_every_file_and_sums_its_credits(made: Made) -> None:
    run = made.run
    assert run.state == tp.RUN_STATE_COMPLETED, run
    assert [step.name for step in run.steps] == [
        "category",
        "base_view/front",
        "base_view/back",
        "base_view/side",
        "closeup/1",
        "closeup/2",
        "sketch/front",
        "sketch/back",
        "sketch/side",
        "pack",
    ]
    assert {step.state for step in run.steps} == {tp.STEP_STATE_COMPLETED}
    # An analysis, a close-up and a sketch cost one each; a sketch step has two of them; a pack
    # costs nothing.
    assert [step.credits for step in run.steps] == [1, 1, 1, 1, 1, 1, 2, 2, 2, 0]
    assert (run.total_credits_used, run.progress_percent) == (
        12,
        100,
    ) and run.generation_time_ms > 0

    shown = await flows.contents(made.ada, run.collection_id, include_urls=True)
    assert (shown.collection.state, shown.collection.progress_percent) == (
        col.COLLECTION_STATE_COMPLETED,
        100,
    )
    assert (shown.collection.total_credits_used, shown.collection.file_count) == (12, 9)
    assert {item.section for item in shown.items} == {
        "category",
        "base_views",
        "closeups",
        "sketches",
    }
    for item in shown.items:
        file = item.tech_file
        assert file.state == tf.TECH_FILE_STATE_COMPLETED and file.batch_id == run.batch_id
        assert file.file_url and file.model and 0 < file.confidence <= 1
    assert shown.facts == made.facts

    pack = await flows.get(made.ada, run.pack_file_id, include_urls=True)
    assert (
        pack.collection_id == run.collection_id
        and pack.export_id == run.export_id
        and pack.file_url
    )
    assert len(await flows.listed(made.ada, batch_id=run.batch_id)) == 10


async def test_what_is_stated_is_printed_and_what_follows_from_a_scale_says_so(made: Made) -> None:
    text = flows.text_of(made.pdf)
    stated = (
        "Canvas field jacket",
        "KH-4107",
        "Kesterholt",
        "340 g/m2",
        "189.00 EUR",
        "do not bleach",
        "front zip",
    )
    for fact in stated:
        assert (fact in text) == (fact != "front zip"), fact
    for point in made.facts.points_of_measure:
        assert point.name in text

    # B is 52.0 and M 44.8 centimetres on the pattern that the pictures were drawn from.
    rows = (
        ("B hem width", "5[12]"),
        ("M shoulder width, from shoulder point to shoulder point", "4[45]"),
    )
    for name, length in rows:
        assert re.search(
            rf"{name} {length}(\.\d)? cm ± 1 cm \w+ measured from declared scale", text
        ), name
    assert "Winter line" in text and "v1" in text


async def test_no_figure_with_a_unit_is_printed_that_is_not_in_the_facts(made: Made) -> None:
    printed = set(FIGURE.findall(flows.text_of(made.pdf)))
    allowed = figures_of(made.facts)
    # The declared scales give more figures, by the picture's own arithmetic: 3 units wide to 4
    # high.
    scales = {scale.view: scale for scale in made.facts.scales}

    for point in made.facts.points_of_measure:
        if not point.HasField("value"):
            scale = scales[point.view]
            length = (
                scale.value
                * pixels(getattr(point, "from"), point.to)
                / pixels(getattr(scale, "from"), scale.to)
            )
            allowed |= {f"{round(length + off, 1):g} cm" for off in (-0.1, 0, 0.1)}
    assert printed and printed <= allowed, printed - allowed


def figures_of(facts: facts_pb2.Facts) -> set[str]:
    """Returns every figure with its unit in the facts, from a text or from a value and a unit."""
    allowed = set(FIGURE.findall(json_format.MessageToJson(facts, ensure_ascii=False)))
    rows: list[Any] = [*facts.dimensions, *facts.points_of_measure]
    allowed |= {f"{row.value:g} {row.unit}" for row in rows}
    allowed |= {f"{row.tolerance:g} {row.unit}" for row in facts.points_of_measure}
    allowed |= {f"{row.quantity:g} {row.unit}" for row in facts.bill_of_materials}
    return allowed | {f"{facts.price.msrp:.2f} {facts.price.currency}"}


def pixels(start: facts_pb2.Point, end: facts_pb2.Point) -> float:
    return (((end.x - start.x) * 3) ** 2 + ((end.y - start.y) * 4) ** 2) ** 0.5


@pytest.mark.long
async def test_what_a_model_or_a_person_put_into_an_analysis_is_printed_with_its_source(
    made: Made,
) -> None:
    collection = await flows.collect(made.ada, name="Found", facts=made.facts)
    found = {
        "materials": [{"part": "shell", "material": "unobtainium", "weight": "777.5 g"}],
        "measurements": [{"name": "hood height", "value": 36.5, "unit": "cm"}],
        "moods": ["calm"],
        "findings": [
            {"key": "name", "value": "Field parka", "source": "VALUE_SOURCE_FOUND",
             "model": "eye-2", "confidence": 0.66, "note": "long hem"},
            {"key": "condition", "value": "new", "source": "confirmed", "by": "user:grace"},
        ],
    }  # fmt: skip
    file = await flows.create(
        made.ada, analysis=json_format.ParseDict(found, struct_pb2.Struct()), model="eye-1"
    )
    await flows.collection_service(made.ada).AddFiles(
        col.AddFilesRequest(collection_id=collection.id, tech_file_ids=[file.id])
    )
    pdf, again = [
        await flows.export(made.ada, collection.id, format=tp.EXPORT_FORMAT_PDF) for _ in range(2)
    ]
    assert pdf.sha256 == again.sha256 and pdf.id != again.id
    [warning] = pdf.warnings
    assert "moods" in warning and "not printed" in warning

    text = flows.text_of(await flows.fetch(pdf))
    assert re.search(r"Canvas field jacket / Field parka ?F1", text)
    assert re.search(r"unobtainium ?F2 777.5 g", text) and "36.5 cm" in text
    assert "F1 name Field parka found by eye-2, 66 % sure Sketch: front long hem" in text
    assert "found by eye-1" in text and "C1 condition agrees confirmed by user:grace" in text


@pytest.mark.long
async def test_two_exports_of_one_collection_are_the_same_bytes(made: Made) -> None:
    for format in (tp.EXPORT_FORMAT_PDF, ZIP):
        first, second = [
            await flows.export(made.ada, made.run.collection_id, format=format) for _ in range(2)
        ]
        assert first.id != second.id and first.sha256 == second.sha256


@pytest.mark.long
async def test_a_zip_has_every_file_in_its_section_with_a_manifest_and_checksums(
    made: Made, tmp_path: Path
) -> None:
    export = await flows.export(made.ada, made.run.collection_id, format=tp.EXPORT_FORMAT_ZIP)
    assert export.file_name == "Winter line.zip" and not export.warnings
    data = await flows.fetch(export)
    with zipfile.ZipFile(BytesIO(data)) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path)
    assert [name for name, _ in forward_zip.entries(BytesIO(data))] == names

    pictures = {name for name in names if name.endswith((".jpg", ".png", ".webp"))}
    assert {
        "01-cover/category.jpg",
        "02-base-views/front.jpg",
        "02-base-views/back.jpg",
        "02-base-views/side.jpg",
        "04-closeups/front button and buttonhole.jpg",
        "04-closeups/front chest pocket flap.jpg",
        "03-sketches/front.png",
        "03-sketches/back.png",
        "03-sketches/side.png",
    } == pictures
    assert (tmp_path / "02-base-views/front.jpg").read_bytes() == flows.photo("front")
    assert (tmp_path / "07-documents/Winter line.pdf").read_bytes().startswith(b"%PDF-")
    assert (
        json.loads((tmp_path / "07-documents/facts.json").read_text())["product"]["model"]
        == "KH-4107"
    )

    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert len(manifest["tech_files"]) == 9 and {file["path"] for file in manifest["files"]} == set(
        names
    ) - {"manifest.json", "SHA256SUMS"}

    sums = ["sha256sum", "-c", "--strict", "--quiet", "SHA256SUMS"]
    await asyncio.to_thread(subprocess.run, sums, cwd=tmp_path, check=True, capture_output=True)


async def test_another_owner_gets_neither_the_run_nor_its_exports(made: Made) -> None:
    bob = made.suite.client("bob")
    service = flows.pack_service(bob)
    for call, request in (
        (service.GetTechPackRun, tp.GetTechPackRunRequest(run_id=made.run.id)),
        (service.CancelTechPackRun, tp.CancelTechPackRunRequest(run_id=made.run.id)),
        (service.GetExport, tp.GetExportRequest(export_id=made.run.export_id)),
        (
            service.ExportCollection,
            tp.ExportCollectionRequest(collection_id=made.run.collection_id, format=ZIP),
        ),
    ):
        await refused(call(request), flows.NOT_FOUND)

    watch = service.WatchTechPackRun(tp.WatchTechPackRunRequest(run_id=made.run.id))
    await refused(watch, flows.NOT_FOUND)
    assert not (await service.ListTechPackRuns(tp.ListTechPackRunsRequest())).runs

    [listed] = (
        await flows.pack_service(made.ada).ListTechPackRuns(tp.ListTechPackRunsRequest(state=DONE))
    ).runs
    assert listed.id == made.run.id and listed.total_credits_used == 12 and not listed.steps


async def test_text_that_looks_like_code_is_printed_and_names_stay_inside_the_archive(
    made: Made,
) -> None:
    attack = '#read("/etc/passwd")'
    facts = facts_pb2.Facts(
        product=facts_pb2.ProductFacts(name=attack, description='"); #panic("'),
        materials=[facts_pb2.MaterialFact(part="$x^2$", material="<script>")],
    )
    collection = await flows.collect(made.ada, name="../../etc/passwd", facts=facts)
    pdf = await flows.export(made.ada, collection.id, format=tp.EXPORT_FORMAT_PDF)
    text = flows.text_of(await flows.fetch(pdf))
    assert attack in text and '"); #panic("' in text and "<script>" in text and "root:" not in text

    archive = await flows.export(made.ada, collection.id, format=tp.EXPORT_FORMAT_ZIP)
    with zipfile.ZipFile(BytesIO(await flows.fetch(archive))) as opened:
        assert sorted(opened.namelist()) == [
            "07-documents/_.._etc_passwd.pdf",
            "07-documents/facts.json",
            "SHA256SUMS",
            "manifest.json",
        ]


async def test_a_pack_that_was_made_elsewhere_is_in_the_archive_as_it_is(made: Made) -> None:
    kind = {
        "kind": asset_pb2.ASSET_KIND_DOCUMENT,
        "mime_type": "application/pdf",
        "file_name": "old.pdf",
    }
    asset = await asset_flows.upload(made.ada, made.pdf, **kind)
    collection = await flows.collect(made.ada, name="Bundle")
    pack = await flows.create(
        made.ada,
        file_type=tf.TECH_FILE_TYPE_COMPLETE_PACK,
        view_type=0,
        file_asset_id=asset.id,
        collection_id=collection.id,
    )
    await flows.collection_service(made.ada).AddFiles(
        col.AddFilesRequest(collection_id=collection.id, tech_file_ids=[pack.id])
    )

    export = await flows.export(made.ada, collection.id, format=tp.EXPORT_FORMAT_ZIP)
    with zipfile.ZipFile(BytesIO(await flows.fetch(export))) as archive:
        assert archive.read("07-documents/complete_pack.pdf") == made.pdf
        assert "07-documents/Bundle.pdf" in archive.namelist()
    assert not export.warnings


async def test_an_export_without_facts_says_not_supplied(made: Made) -> None:
    collection = await flows.collect(made.ada)
    file = await flows.create(
        made.ada, file_type=tf.TECH_FILE_TYPE_CLOSEUP, view_type=0, file_category="Zip"
    )
    await flows.collection_service(made.ada).AddFiles(
        col.AddFilesRequest(collection_id=collection.id, tech_file_ids=[file.id])
    )
    export = await flows.export(made.ada, collection.id, format=tp.EXPORT_FORMAT_PDF)

    text = flows.text_of(await flows.fetch(export))
    for label in ("Model", "Brand", "Category", "Price", "Description", "Care"):
        assert f"{label} not supplied" in text, label
    assert not FIGURE.findall(text)

"""Conversions end to end: what is refused before anything is created, what the result is, what it
costs, how it fails."""

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import conversion_pb2, job_pb2

from tests.assets.flows import announce, get, jpeg, request_id, update, upload
from tests.calls import refused
from tests.conversions import flows
from tests.conversions import local_pictures as pictures
from tests.suite import Client, Suite, browser


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("photos")


async def bytes_of(url: str) -> bytes:
    async with browser() as http:
        return (await http.get(url)).content


@pytest.mark.long
async def test_a_waiting_caller_gets_a_finished_preview_with_its_recipe_and_evidence(
    suite: Suite, drawn: Path
) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    user, garment = await flows.person(ada, drawn), await flows.cloth(ada, drawn, free=False)
    fields = {
        "style_name": "relaxed warm",
        "product_id": "p1",
        "metadata": {"campaign": "spring", "round": 2},
    }
    made = await flows.convert(ada, user, garment, wait=True, **fields)

    assert made.state == job_pb2.JOB_STATE_COMPLETED, made.error_message
    assert (made.owner, made.created_by, made.style_name, made.product_id) == (
        "user:ada",
        "ada",
        "relaxed warm",
        "p1",
    )
    assert dict(made.metadata) == {"campaign": "spring", "round": 2.0}
    assert (made.progress, made.error_class, made.free, made.credits) == (1.0, "", False, 2)
    assert made.processing_time_ms > 0

    assert (made.recipe.model, made.recipe.model_version) == ("local", "1.1.0")
    assert made.recipe.parameters["fit"] == "relaxed"
    assert made.recipe.parameters["tone"] == "warm"

    digests = {"user": drawn / "person.jpg", "cloth": drawn / "cloth.jpg"}
    assert {item.role: item.sha256 for item in made.recipe.inputs} == {
        role: hashlib.sha256(path.read_bytes()).hexdigest() for role, path in digests.items()
    }

    weights = sum(item.weight for item in made.evidence)
    mean = sum(item.value * item.weight for item in made.evidence) / weights
    assert made.confidence == pytest.approx(
        min(mean, *(item.value for item in made.evidence)), abs=0.001
    )

    asset = await get(ada, made.result_asset_id)
    assert asset.kind == asset_pb2.ASSET_KIND_RESULT
    assert asset.provenance.model == "local"
    assert list(asset.provenance.source_asset_ids) == [user, garment]
    assert asset.scope.product_id == "p1"
    assert hashlib.sha256(await bytes_of(made.image_url)).hexdigest() == asset.sha256

    listed = await flows.conversions(ada).ListConversions(
        conversion_pb2.ListConversionsRequest(include_urls=True)
    )
    assert [conversion.image_url != "" for conversion in listed.conversions] == [True]
    assert (await flows.read(ada, made.id)).image_url == ""


@pytest.mark.long
async def test_changing_either_picture_changes_the_preview_and_repeating_does_not(
    suite: Suite, drawn: Path, tmp_path: Path
) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    user, garment = await flows.person(ada, drawn), await flows.cloth(ada, drawn)
    lit = pictures.person(tmp_path / "lit.jpg", backdrop=(214, 205, 190))
    sand = pictures.garment(tmp_path / "sand.jpg", pictures.SAND)
    other_user = await flows.put(ada, lit, asset_pb2.ASSET_KIND_USER)
    other_garment = await flows.put(ada, sand, asset_pb2.ASSET_KIND_CLOTH)

    async def preview(name: str, *pair: str) -> Path:
        made = await flows.convert(ada, *pair, wait=True)
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(await bytes_of(made.image_url))
        return path

    first, again = await preview("first", user, garment), await preview("again", user, garment)
    by_user, by_garment = (
        await preview("u", other_user, garment),
        await preview("g", user, other_garment),
    )
    assert first.read_bytes() == again.read_bytes()
    assert pictures.difference(first, by_user) > 10
    assert pictures.difference(first, by_garment) > 60


@pytest.mark.long
async def test_a_conversion_is_free_only_if_both_pictures_are(suite: Suite, drawn: Path) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    free, paid = (
        await flows.person(ada, drawn, free=True),
        await flows.person(ada, drawn, free=False),
    )
    garment = await flows.cloth(ada, drawn, free=True)
    gratis = await flows.convert(ada, free, garment, wait=True)

    charged = await flows.convert(ada, paid, garment, wait=True)
    assert (gratis.free, gratis.credits) == (True, 0)
    assert (charged.free, charged.credits) == (False, 2)


async def test_what_cannot_be_converted_is_refused_before_anything_is_taken_on(
    suite: Suite, drawn: Path
) -> None:
    await flows.start(suite, working=False)
    ada, eve = suite.client("ada"), suite.client("eve")
    user, garment = await flows.person(ada, drawn), await flows.cloth(ada, drawn)
    foreign = await flows.cloth(eve, drawn)
    data = jpeg()
    pending = (await announce(ada, data, kind=asset_pb2.ASSET_KIND_CLOTH)).asset.id
    unknown = "01890000-0000-7000-8000-000000000000"
    stub = flows.conversions(ada)

    async def create(**fields: Any) -> Any:
        values: dict[str, Any] = {"user_asset_id": user, "cloth_asset_id": garment, **fields}
        return await stub.CreateConversion(conversion_pb2.CreateConversionRequest(**values))

    invalid, unseen = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
    for fields, code, field in (
        (
            {"cloth_asset_id": user},
            invalid,
            "cloth_asset_id",
        ),  # the same picture as person and garment
        ({"user_asset_id": garment}, invalid, "user_asset_id"),
        ({"user_asset_id": garment, "cloth_asset_id": user}, invalid, "user_asset_id"),
        ({"cloth_asset_id": foreign}, unseen, "cloth_asset_id"),
        ({"user_asset_id": unknown}, unseen, "user_asset_id"),
        ({"cloth_asset_id": pending}, grpc.StatusCode.FAILED_PRECONDITION, "cloth_asset_id"),
        ({"cloth_asset_id": "../../etc/passwd"}, invalid, "cloth_asset_id"),
        ({"cloth_asset_id": ""}, invalid, "cloth_asset_id"),
        ({"style_name": "x" * 201}, invalid, "style_name"),
        ({"style_name": "nul\0"}, invalid, None),
        ({"request_id": "r" * 129}, invalid, "request_id"),
        ({"metadata": {"blob": "x" * 1_000_000}}, invalid, "metadata"),
        ({"metadata": {"a": float("nan")}}, invalid, "metadata"),
    ):
        found = await refused(create(**fields), code)
        if field is not None:
            named = found.metadata.get("field") or found.fields[0]
            assert named == field, (fields, found)
    deep: list[object] = []
    for _ in range(35):
        deep = [deep]
    assert (await refused(create(metadata={"a": deep}), invalid)).fields == ["metadata"]
    assert not (await stub.ListConversions(conversion_pb2.ListConversionsRequest())).conversions
    assert suite.sql("SELECT count(*) FROM conversions_jobs.procrastinate_jobs") == [(0,)]
    assert suite.sql("SELECT count(*) FROM assets.asset_references") == [(0,)]


@pytest.mark.long
async def test_a_public_garment_of_a_vendor_can_be_tried_on_and_is_held(
    suite: Suite, drawn: Path
) -> None:
    await flows.start(suite)
    ada, acme = suite.client("ada"), suite.client("acme", "vendor")
    garment = await flows.cloth(acme, drawn, visibility=asset_pb2.VISIBILITY_PUBLIC)
    made = await flows.convert(ada, await flows.person(ada, drawn), garment, wait=True)
    assert made.state == job_pb2.JOB_STATE_COMPLETED
    assert (await get(ada, made.result_asset_id)).owner == "user:ada"

    held = suite.sql(
        "SELECT owner, holder FROM assets.asset_references WHERE asset_id = %s", (garment,)
    )
    assert held == [("user:ada", f"conversions/conversions/{made.id}")]

    # An asset that isn't public any more can't be used any more.
    await update(acme, garment, visibility=asset_pb2.VISIBILITY_PRIVATE)
    request = conversion_pb2.CreateConversionRequest(
        user_asset_id=made.user_asset_id, cloth_asset_id=garment
    )
    await refused(flows.conversions(ada).CreateConversion(request), grpc.StatusCode.NOT_FOUND)


@pytest.mark.long
async def test_a_vendor_and_a_caller_without_account_convert_too(suite: Suite, drawn: Path) -> None:
    await flows.start(suite)
    for client in (suite.client("acme", "vendor"), suite.client("x7k", "anonymous")):
        made = await flows.convert(
            client, await flows.person(client, drawn), await flows.cloth(client, drawn), wait=True
        )
        assert made.state == job_pb2.JOB_STATE_COMPLETED, made


async def test_a_repeat_of_a_request_is_the_same_conversion(suite: Suite, drawn: Path) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    user, garment = await flows.person(ada, drawn), await flows.cloth(ada, drawn)
    same = {"request_id": request_id(), "style_name": "loose"}
    made = await asyncio.gather(*(flows.convert(ada, user, garment, **same) for _ in range(5)))
    assert len({conversion.id for conversion in made}) == 1

    # Even when a picture can't be used any more: the first answer is kept.
    await suite.change("UPDATE assets.assets SET kind = 'photo'")
    assert (await flows.convert(ada, user, garment, **same)).id == made[0].id

    changed = conversion_pb2.CreateConversionRequest(
        user_asset_id=user,
        cloth_asset_id=garment,
        request_id=same["request_id"],
        style_name="fitted",
    )
    found = await refused(
        flows.conversions(ada).CreateConversion(changed), grpc.StatusCode.INVALID_ARGUMENT
    )
    assert found.reason == "REQUEST_ID_REUSED"
    assert suite.sql("SELECT count(*) FROM conversions.conversions") == [(1,)]


def tamper(suite: Suite, asset_id: str) -> None:
    """Replaces an asset's stored bytes without the knowledge of assets."""
    [(key,)] = suite.sql("SELECT storage_key FROM assets.assets WHERE id = %s", (asset_id,))
    [path] = suite.storage.root.rglob(key.rpartition("/")[2])
    path.chmod(0o644)
    path.write_bytes(jpeg(seed=99))


@pytest.mark.long
@pytest.mark.parametrize(
    "fault",
    [
        "a strip that no garment can be cut from",
        "a street instead of a garment",
        "bytes that were tampered with",
    ],
)
async def test_a_failure_is_recorded_and_free_and_does_not_bar_another_conversion(
    suite: Suite, drawn: Path, fault: str
) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    user, good = (
        await flows.person(ada, drawn, free=False),
        await flows.cloth(ada, drawn, free=False),
    )

    if "strip" in fault:
        garment = (
            await upload(ada, jpeg(2000, 16), kind=asset_pb2.ASSET_KIND_CLOTH, free=False)
        ).id
    elif "street" in fault:
        photo = pictures.street(drawn / "street.jpg").read_bytes()
        garment = (await upload(ada, photo, kind=asset_pb2.ASSET_KIND_CLOTH, free=False)).id
    else:
        garment = await flows.cloth(ada, drawn, free=False)
        tamper(suite, garment)

    request = {"request_id": request_id(), "wait": True}
    failed = await flows.convert(ada, user, garment, **request)
    assert (failed.state, failed.error_class, failed.credits) == (
        job_pb2.JOB_STATE_FAILED,
        "BAD_INPUT",
        0,
    )
    assert (
        failed.error_message
        and "Traceback" not in failed.error_message
        and "/tmp" not in failed.error_message
    )
    assert not failed.result_asset_id and not failed.image_url
    if "street" in fault:
        assert failed.error_message.startswith("no garment could be told from its backdrop: ")
        assert "Send the garment alone" in failed.error_message

    [attempt] = await flows.attempts_of(ada, failed.id)
    assert (attempt.outcome, attempt.error_class) == (job_pb2.ATTEMPT_OUTCOME_FAILED, "BAD_INPUT")
    # Bytes that can't be read are noticed before any model is asked.
    model = "" if "tampered" in fault else "local 1.1.0"
    assert (attempt.model, attempt.credits, attempt.output_bytes) == (model, 0, 0)
    assert attempt.input_bytes > 0
    assert failed.processing_time_ms > 0

    await flows.given_back(suite, failed.id)
    assert (await flows.convert(ada, user, garment, **request)).id == failed.id
    assert (await flows.convert(ada, user, good, wait=True)).state == job_pb2.JOB_STATE_COMPLETED


@pytest.mark.long
async def test_nothing_is_taken_on_while_assets_is_away(suite: Suite, drawn: Path) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    user, garment = await flows.person(ada, drawn), await flows.cloth(ada, drawn)
    await suite.stop("assets")
    request = conversion_pb2.CreateConversionRequest(user_asset_id=user, cloth_asset_id=garment)

    found = await refused(
        flows.conversions(ada).CreateConversion(request), grpc.StatusCode.UNAVAILABLE
    )
    assert found.reason == "DEPENDENCY_UNAVAILABLE"
    assert not (
        await flows.conversions(ada).ListConversions(conversion_pb2.ListConversionsRequest())
    ).conversions


async def test_a_waiting_call_answers_before_its_deadline_with_what_is_there(
    suite: Suite, drawn: Path
) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    request = conversion_pb2.CreateConversionRequest(
        user_asset_id=await flows.person(ada, drawn),
        cloth_asset_id=await flows.cloth(ada, drawn),
        wait=True,
    )

    answer = await flows.conversions(ada).CreateConversion(request, timeout=1.5)
    assert answer.conversion.state == job_pb2.JOB_STATE_PENDING


async def test_conversions_are_listed_newest_first_by_state_product_and_date(
    suite: Suite, drawn: Path
) -> None:
    await flows.start(suite, working=False)
    ada, eve = suite.client("ada"), suite.client("eve")
    user, garment = await flows.person(ada, drawn), await flows.cloth(ada, drawn)
    made = [
        await flows.convert(ada, user, garment, product_id=f"p{number % 2}") for number in range(5)
    ]
    stopped = conversion_pb2.CancelConversionRequest(conversion_id=made[2].id)
    await flows.conversions(ada).CancelConversion(stopped)

    async def listed(client: Client, **fields: Any) -> list[conversion_pb2.Conversion]:
        token, found = "", []
        while True:
            request = conversion_pb2.ListConversionsRequest(page_size=2, page_token=token, **fields)
            page = await flows.conversions(client).ListConversions(request)
            found += page.conversions
            token = page.next_page_token
            if not token:
                return found

    newest_first = [conversion.id for conversion in reversed(made)]
    assert [conversion.id for conversion in await listed(ada)] == newest_first
    assert [conversion.id for conversion in await listed(ada, skip=1)] == newest_first[1:]
    assert [c.id for c in await listed(ada, product_id="p1")] == [made[3].id, made[1].id]
    assert [c.id for c in await listed(ada, created_before=made[2].create_time)] == [
        made[1].id,
        made[0].id,
    ]
    assert [c.id for c in await listed(ada, created_from=made[3].create_time)] == newest_first[:2]
    assert [c.id for c in await listed(ada, state=job_pb2.JOB_STATE_CANCELLED)] == [made[2].id]
    assert not await listed(eve)

    request = conversion_pb2.ListConversionsRequest(state=99)  # type: ignore[arg-type]
    refusal = await refused(
        flows.conversions(ada).ListConversions(request), grpc.StatusCode.INVALID_ARGUMENT
    )
    assert refusal.fields == ["state"]


@pytest.mark.long
async def test_another_owner_finds_no_conversion(suite: Suite, drawn: Path) -> None:
    await flows.start(suite, working=False)
    ada, eve = suite.client("ada"), suite.client("eve")
    made = await flows.convert(ada, await flows.person(ada, drawn), await flows.cloth(ada, drawn))
    stub = flows.conversions(eve)
    for call in (
        stub.GetConversion(conversion_pb2.GetConversionRequest(conversion_id=made.id)),
        stub.CancelConversion(conversion_pb2.CancelConversionRequest(conversion_id=made.id)),
    ):
        await refused(call, grpc.StatusCode.NOT_FOUND)

    assert (await flows.read(ada, made.id)).state == job_pb2.JOB_STATE_PENDING

"""A job that was purged is still followed: revoking a consent erases what was made of its picture,
a disclosure gives its reasons, and the lineage shows that it was there."""

import asyncio
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import consent_pb2, conversion_pb2, generation_pb2, job_pb2
from atelier.conversions.v1 import marking_pb2 as pb

from tests.assets import flows as assets
from tests.calls import holding, refused
from tests.conversions import flows
from tests.conversions.test_consents import COMPLETE, erased, is_gone, revoke
from tests.conversions.test_lineage import edges, lineage
from tests.conversions.test_marks import TRAINED, disclosed, labelled, mark
from tests.conversions.test_trash import CONVERSION, GENERATION, eventually
from tests.shared.imaging import signing
from tests.suite import Client, Suite

PICTURE = assets.jpeg(320, 240)
# Keeps a worker, or a call, from writing what it found, while others read.
LOCK = "LOCK TABLE conversions.{} IN EXCLUSIVE MODE"


async def put(
    client: Client, kind: int = asset_pb2.ASSET_KIND_REFERENCE, content: bytes = PICTURE
) -> str:
    return (await assets.upload(client, content, kind=kind)).id


async def made_outside(client: Client, job_id: str, content: bytes = PICTURE) -> str:
    """Completes a job as an outside worker, with a picture, and returns that."""
    made = await put(client, content=content)
    claimed = await flows.claim(client, job_id)
    await flows.complete(client, claimed, picture=job_pb2.PictureResult(asset_id=made))
    return made


async def try_on(client: Client, person: str, content: bytes = PICTURE) -> tuple[Any, str]:
    """Returns a conversion of the photograph, and its picture."""
    cloth = await put(client, asset_pb2.ASSET_KIND_CLOTH)
    job = await flows.convert(client, person, cloth, run_externally=True)
    return job, await made_outside(client, job.id, content)


async def scene(client: Client, reference: str, content: bytes = PICTURE) -> tuple[Any, str]:
    """Returns a generation with a picture as its reference, and what it made."""
    asked = {"prompt": "a shop", "reference_asset_ids": [reference], "wait": False}
    job = await flows.generate(client, **asked, run_externally=True)
    return job, await made_outside(client, job.id, content)


@pytest.mark.long
@pytest.mark.parametrize("by", ["purge", "trash"])
async def test_revoking_follows_purged_jobs_and_those_in_the_trash(suite: Suite, by: str) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    person = await put(ada, asset_pb2.ASSET_KIND_USER)
    consent = await flows.consent(ada, person)
    worn, first = await try_on(ada, person)
    shop, second = await scene(ada, first)
    copy = await labelled(ada, first)
    aside, other = await try_on(ada, await put(ada, asset_pb2.ASSET_KIND_USER))
    for job in (worn, aside):
        await CONVERSION.call(ada, "Purge" if by == "purge" else "Delete", job.id)
        await flows.given_back(suite, job.id)
    assert not await is_gone(ada, first), "the other job still uses it"

    await revoke(ada, consent.id)
    receipt = await erased(ada, consent.id)

    assert (receipt.state, receipt.pictures_purged) == (COMPLETE, 3)
    for made in (first, second, copy):
        assert await is_gone(ada, made)
    assert not await is_gone(ada, person)
    assert await is_gone(ada, other) == (by == "purge"), "a purge alone takes the picture with it"
    assert not flows.held(suite, shop.id)


@pytest.mark.long
async def test_what_was_made_of_a_purged_picture_by_a_purged_job_is_found(suite: Suite) -> None:
    """Both jobs and the first picture are gone; a dataset keeps the last one."""
    await flows.start(suite)
    ada = suite.client("ada")
    person = await put(ada, asset_pb2.ASSET_KIND_USER)
    consent = await flows.consent(ada, person)
    worn, first = await try_on(ada, person)
    shop, second = await scene(ada, first)
    dataset = await flows.dataset(ada, image_asset_ids=[second])
    await GENERATION.call(ada, "Purge", shop.id)
    await flows.given_back(suite, shop.id)
    await CONVERSION.call(ada, "Purge", worn.id)

    async def purged() -> bool:
        return await is_gone(ada, first)

    await eventually(purged)
    await revoke(ada, consent.id)
    receipt = await erased(ada, consent.id)

    assert receipt.state == consent_pb2.ERASURE_STATE_HELD
    assert [each.asset_id for each in receipt.held] == [second]
    assert list(receipt.held[0].holders) == [f"conversions/datasets/{dataset.id}"]


@pytest.mark.long
async def test_disclosure_and_lineage_have_the_steps_of_purged_jobs(suite: Suite) -> None:
    await flows.start(suite, working=False)
    ada, eve = suite.client("ada"), suite.client("eve")
    person = await put(ada, asset_pb2.ASSET_KIND_USER)
    trained = signing.signed(PICTURE, source_type=f"{signing.CAPTURE[:-14]}{TRAINED}")
    worn, first = await try_on(ada, person, trained)
    shop, second = await scene(ada, first, trained)
    drawn = await flows.generate(ada, prompt="a chair", wait=False, run_externally=True)
    chair = await made_outside(ada, drawn.id)  # of no photograph, and nobody says by what
    room, third = await scene(ada, chair, trained)
    before = [await disclosed(ada, each) for each in (second, third)]
    steps = edges(await lineage(ada, asset_id=second))
    assert before[0].duty == pb.DISCLOSURE_DUTY_DISCLOSE
    assert before[1].duty == pb.DISCLOSURE_DUTY_MARK

    await CONVERSION.call(ada, "Purge", worn.id)
    await GENERATION.call(ada, "Purge", drawn.id)

    assert [await disclosed(ada, each) for each in (second, third)] == before
    causes = {(each.cause, each.asset_id) for each in before[0].reasons}
    assert (pb.DISCLOSURE_CAUSE_PERSON, person) in causes
    match = (await mark(ada, asset_id=first)).registry_match
    assert (match.job_id, match.job_kind) == (worn.id, job_pb2.JOB_KIND_CONVERSION)

    for start in ({"asset_id": second}, {"asset_id": person}, {"job_id": worn.id}):
        graph = await lineage(ada, **start)
        assert edges(graph) == steps
        assert [each.job_id for each in graph.jobs] == [worn.id, shop.id]
        [gone, there] = graph.jobs
        assert gone.HasField("purge_time") and not there.HasField("purge_time")
        assert (gone.kind, gone.task) == (job_pb2.JOB_KIND_CONVERSION, "")
    await refused(lineage(eve, job_id=worn.id), grpc.StatusCode.NOT_FOUND)
    assert (await lineage(ada, job_id=room.id)).jobs[0].job_id == drawn.id


async def test_nothing_stays_of_a_purged_job_that_made_no_picture(suite: Suite) -> None:
    await flows.start(suite, working=False)
    ada = suite.client("ada")
    person = await put(ada, asset_pb2.ASSET_KIND_USER)
    cloth = await put(ada, asset_pb2.ASSET_KIND_CLOTH)
    job = await flows.convert(ada, person, cloth, run_externally=True)
    cancel = conversion_pb2.CancelConversionRequest(conversion_id=job.id)
    await flows.conversions(ada).CancelConversion(cancel)
    await CONVERSION.call(ada, "Purge", job.id)

    for table in ("purged_makers", "job_inputs"):
        assert suite.sql(f"SELECT 1 FROM conversions.{table}") == []
    await refused(lineage(ada, job_id=job.id), grpc.StatusCode.NOT_FOUND)


@pytest.mark.long
async def test_a_copy_that_is_labelled_while_its_picture_is_erased_goes_too(suite: Suite) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    person = await put(ada, asset_pb2.ASSET_KIND_USER)
    consent = await flows.consent(ada, person)
    _, made = await try_on(ada, person)
    named = {"request_id": "label-1"}

    # The copy is there, and isn't noted before the erasure has ended.
    with holding(suite, LOCK.format("picture_copies"), ()):
        labelling = asyncio.create_task(
            refused(labelled(ada, made, **named), grpc.StatusCode.NOT_FOUND, made)
        )
        await flows.blocked(suite, "conversions_app")
        await revoke(ada, consent.id)
        assert (await erased(ada, consent.id)).state == COMPLETE
    await labelling

    [(left,)] = suite.sql("SELECT count(*) FROM assets.assets WHERE owner = 'user:ada'")
    assert left == 2, "the photograph and the garment"
    await refused(labelled(ada, made, **named), grpc.StatusCode.NOT_FOUND, made)


@pytest.mark.long
async def test_a_copy_that_is_noted_while_its_picture_is_erased_goes_too(suite: Suite) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    person = await put(ada, asset_pb2.ASSET_KIND_USER)
    consent = await flows.consent(ada, person)
    _, made = await try_on(ada, person)

    # The worker has looked for copies, and hasn't purged the picture yet.
    with holding(suite, LOCK.format("erasure_items"), ()):
        await revoke(ada, consent.id)
        await flows.blocked(suite, "conversions_worker")
        copy = await labelled(ada, made)
    receipt = await erased(ada, consent.id)

    assert (receipt.state, receipt.pictures_purged) == (COMPLETE, 2)
    assert await is_gone(ada, made) and await is_gone(ada, copy)


async def test_a_job_that_is_purged_while_its_consent_is_revoked_holds_nothing_up(
    suite: Suite, capfd: pytest.CaptureFixture[str]
) -> None:
    await flows.start(suite)
    ada = suite.client("ada")
    person = await put(ada, asset_pb2.ASSET_KIND_USER)
    consent = await flows.consent(ada, person)
    cloth = await put(ada, asset_pb2.ASSET_KIND_CLOTH)
    waiting = await flows.convert(ada, person, cloth, run_externally=True)
    asked = {"prompt": "a shop", "reference_asset_ids": [person], "run_externally": True}
    other = await flows.generate(ada, **asked, wait=False)

    # The worker knows both jobs, and waits for the first one.
    lock = "SELECT FROM conversions.conversions WHERE id = %s FOR UPDATE"
    with holding(suite, lock, (waiting.id,)):
        await revoke(ada, consent.id)
        await flows.blocked(suite, "conversions_worker")
        cancel = generation_pb2.CancelGenerationRequest(generation_id=other.id)
        await flows.generations(ada).CancelGeneration(cancel)
        await GENERATION.call(ada, "Purge", other.id)
    receipt = await erased(ada, consent.id)

    assert (receipt.state, receipt.jobs_cancelled) == (COMPLETE, 1)
    assert "Traceback" not in "".join(capfd.readouterr()), "no pass of the worker failed"

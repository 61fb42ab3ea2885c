"""Consents: what a person agreed to is recorded, checked before a job is created and before a
provider is asked, and revoking it erases what was made."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import (
    analysis_pb2,
    conversion_pb2,
    credit_pb2,
    dataset_pb2,
    generation_pb2,
    job_pb2,
    lineage_pb2,
    lineage_pb2_grpc,
    work_pb2,
    work_pb2_grpc,
)
from atelier.conversions.v1 import consent_pb2 as pb

from shared.settings import WrongSetting
from tests.assets import flows as assets
from tests.calls import holding, refused
from tests.conversions import flows, model_servers
from tests.conversions import local_pictures as pictures
from tests.conversions.model_servers import Scripted, answering
from tests.conversions.test_marks import labelled
from tests.suite import Client, Suite

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
TRY_ON = pb.CONSENT_PURPOSE_TRY_ON
RUNNING, COMPLETE, HELD = (
    pb.ERASURE_STATE_RUNNING,
    pb.ERASURE_STATE_COMPLETE,
    pb.ERASURE_STATE_HELD,
)
PICTURE = assets.jpeg(64, 48)
# A claimed job can't continue while somebody locks the asset's row.
HOLD = "SELECT FROM assets.assets WHERE id = %s FOR UPDATE"


async def photo(client: Client, kind: int = asset_pb2.ASSET_KIND_USER, **fields: Any) -> str:
    return (await assets.upload(client, PICTURE, kind=kind, **fields)).id


async def cloth(client: Client) -> str:
    return await photo(client, asset_pb2.ASSET_KIND_CLOTH)


async def read(client: Client, consent_id: str) -> pb.Consent:
    request = pb.GetConsentRequest(consent_id=consent_id)
    found: pb.Consent = (await flows.consents(client).GetConsent(request)).consent
    return found


async def listed(client: Client, **filters: Any) -> list[str]:
    answer = await flows.consents(client).ListConsents(pb.ListConsentsRequest(**filters))
    return [each.id for each in answer.consents]


async def revoke(client: Client, consent_id: str, **fields: Any) -> pb.Consent:
    request = pb.RevokeConsentRequest(consent_id=consent_id, **fields)
    revoked: pb.Consent = (await flows.consents(client).RevokeConsent(request)).consent
    return revoked


async def erased(client: Client, consent_id: str, seconds: float = 30) -> pb.ConsentErasure:
    """Returns the receipt once the erasure has ended."""
    async with asyncio.timeout(seconds):
        while True:
            receipt = (await read(client, consent_id)).erasure
            if receipt.state != RUNNING:
                return receipt
            await asyncio.sleep(0.05)


async def is_gone(client: Client, asset_id: str) -> bool:
    found = await assets.assets(client).BatchGetAssets(
        asset_pb2.BatchGetAssetsRequest(asset_ids=[asset_id])
    )
    return not found.assets


def expire(suite: Suite, consent_id: str) -> None:
    """Lets the consent's time pass."""
    suite.sql(
        "UPDATE conversions.consents SET given_at = now() - interval '2 days',"
        " expires_at = now() - interval '1 second' WHERE id = %s",
        (consent_id,),
    )


class TestTheRecord:
    async def test_it_is_recorded_once_read_and_listed(self, suite: Suite) -> None:
        await flows.start(suite, working=False)
        ada = suite.client("ada")
        person = await photo(ada)
        given = datetime(2026, 11, 1, 9, tzinfo=UTC)
        fields = {
            "request_id": "r1",
            "purpose": TRY_ON,
            "wording": "I agree.",
            "note": "folder 3",
            "give_time": given,
            "expire_time": datetime(2100, 1, 1, tzinfo=UTC),
        }

        first = await flows.consent(ada, person, **fields)
        assert await flows.consent(ada, person, **fields) == first
        other = await flows.consent(ada, await photo(ada))

        assert (first.owner, first.created_by, first.asset_id) == ("user:ada", "ada", person)
        assert (first.wording_version, first.given_by) == ("2026-11", "customer 17")
        assert first.give_time.ToDatetime(UTC) == given
        assert first.state == pb.CONSENT_STATE_ACTIVE
        assert not first.HasField("erasure") and not first.HasField("revoke_time")
        assert await read(ada, first.id) == first
        assert await listed(ada) == [other.id, first.id]
        assert await listed(ada, asset_id=person) == [first.id]
        await refused(read(suite.client("eve"), first.id), NOT_FOUND)

    async def test_lists_filter_by_the_state_of_now(self, suite: Suite) -> None:
        await flows.start(suite, working=False)
        ada = suite.client("ada")
        person = await photo(ada)
        active, expired, revoked = [(await flows.consent(ada, person)).id for _ in range(3)]
        expire(suite, expired)
        await revoke(ada, revoked)

        for state, wanted in (
            (pb.CONSENT_STATE_ACTIVE, active),
            (pb.CONSENT_STATE_EXPIRED, expired),
            (pb.CONSENT_STATE_REVOKED, revoked),
        ):
            assert await listed(ada, state=state) == [wanted]
            assert (await read(ada, wanted)).state == state

    async def test_what_is_not_a_photograph_of_a_person_or_a_possible_time_is_refused(
        self, suite: Suite
    ) -> None:
        await flows.start(suite, working=False)
        ada, eve = suite.client("ada"), suite.client("eve")
        person = await photo(ada)
        now = datetime.now(UTC)
        later = now + timedelta(days=1)

        for fields, field in (
            ({"expire_time": now - timedelta(seconds=1)}, "expire_time"),
            ({"expire_time": None}, "expire_time"),
            ({"give_time": later}, "give_time"),
            ({"purpose": 0}, "purpose"),
            ({"purpose": 9}, "purpose"),
            ({"wording_version": ""}, "wording_version"),
            ({"given_by": ""}, "given_by"),
            ({"wording": "w" * 10_001}, "wording"),
        ):
            refusal = await refused(flows.consent(ada, person, **fields), INVALID)
            assert refusal.fields == [field]
        garment = await cloth(ada)
        refusal = await refused(flows.consent(ada, garment), INVALID, "kind CLOTH", "USER")
        assert refusal.fields == ["asset_id"]
        await refused(flows.consent(eve, person), NOT_FOUND)
        assert await listed(ada) == [] and await listed(eve) == []

    @pytest.mark.long
    async def test_a_watch_tells_that_one_was_recorded_expired_and_revoked(
        self, suite: Suite
    ) -> None:
        await flows.start(suite)
        ada = suite.client("ada")
        stream = flows.consents(ada).WatchConsents(pb.WatchConsentsRequest())
        async with asyncio.timeout(30):
            assert (await stream.read()).bookmark.ready
            made = await flows.consent(ada, await photo(ada))
            assert (await stream.read()).consent == made
            expire(suite, made.id)
            await suite.stop_work("conversions")
            await suite.work("conversions")  # looks at once
            assert (await stream.read()).consent.state == pb.CONSENT_STATE_EXPIRED
            await revoke(ada, made.id)
            told = [(await stream.read()).consent for _ in range(2)]
        assert [each.state for each in told] == [pb.CONSENT_STATE_REVOKED] * 2
        assert [each.erasure.state for each in told] == [RUNNING, COMPLETE]
        stream.cancel()


class TestTheCheck:
    async def test_a_conversion_without_a_consent_that_covers_it_is_refused(
        self, suite: Suite
    ) -> None:
        suite.overrides["consent_required"] = ["conversion"]
        await flows.start(suite, working=False)
        ada = suite.client("ada")
        person, garment = await photo(ada), await cloth(ada)

        async def missing(*words: str) -> None:
            call = flows.convert(ada, person, garment)
            refusal = await refused(call, PRECONDITION, person, "RecordConsent", *words)
            assert refusal.reason == "CONSENT_REQUIRED"
            assert refusal.metadata == {"asset_id": person, "purpose": "try_on"}

        await missing("no consent")
        quote = credit_pb2.QuoteJobRequest(
            conversion=conversion_pb2.CreateConversionRequest(
                user_asset_id=person, cloth_asset_id=garment
            )
        )
        await refused(flows.credits(ada).QuoteJob(quote), PRECONDITION, "no consent")
        await flows.consent(ada, person, purpose=pb.CONSENT_PURPOSE_GENERATION)
        await missing("no consent")
        covering = await flows.consent(ada, person, purpose=TRY_ON)
        made = await flows.convert(ada, person, garment)
        assert made.consent_id == covering.id
        expire(suite, covering.id)
        await missing("expired at")
        renewed = await flows.consent(ada, person)
        assert (await flows.convert(ada, person, garment)).consent_id == renewed.id
        await revoke(ada, renewed.id)
        await missing("was revoked at")

    async def test_the_setting_names_tasks_and_other_pictures_need_none(self, suite: Suite) -> None:
        suite.overrides["consent_required"] = ["generation.image", "analysis"]
        await flows.start(suite, working=False)
        ada = suite.client("ada")
        person, garment = await photo(ada), await cloth(ada)

        converted = await flows.convert(ada, person, garment)
        assert converted.consent_id == ""
        sketch = generation_pb2.GENERATION_TASK_SKETCH
        drawn = await flows.generate(ada, task=sketch, source_asset_id=person, wait=False)
        assert not drawn.consent_ids
        scene = {"prompt": "on a beach", "reference_asset_ids": [garment, person], "wait": False}
        await refused(flows.generate(ada, **scene), PRECONDITION, person, "generation")
        await refused(flows.analyse(ada, (person, "front"), wait=False), PRECONDITION, "analysis")
        assert not (await flows.analyse(ada, (garment, "front"), wait=False)).consent_ids

        consent = await flows.consent(ada, person)
        assert list((await flows.generate(ada, **scene)).consent_ids) == [consent.id]
        analysed = await flows.analyse(ada, (person, "front"), wait=False)
        assert list(analysed.consent_ids) == [consent.id]
        lineage = await ada.stub(lineage_pb2_grpc.LineageServiceStub).GetLineage(
            lineage_pb2.GetLineageRequest(job_id=analysed.id)
        )
        assert [list(each.consent_ids) for each in lineage.jobs if each.job_id == analysed.id] == [
            [consent.id]
        ]

    async def test_another_owners_consent_covers_nothing(self, suite: Suite) -> None:
        suite.overrides["consent_required"] = ["conversion"]
        await flows.start(suite, working=False)
        ada, eve = suite.client("ada"), suite.client("eve")
        await flows.consent(eve, await photo(eve))

        await refused(
            flows.convert(ada, await photo(ada), await cloth(ada)), PRECONDITION, "no consent"
        )

    async def test_a_setting_that_names_no_task_stops_the_start(self, suite: Suite) -> None:
        suite.overrides["consent_required"] = ["tryon"]
        await suite.serve("assets")
        with pytest.raises(WrongSetting, match="ATELIER_CONSENT_REQUIRED has no task 'tryon'"):
            await suite.serve("conversions")

    @pytest.mark.long
    @pytest.mark.parametrize("renewed", [False, True])
    async def test_a_consent_that_expires_while_the_job_waits_keeps_it_from_the_provider(
        self, suite: Suite, tmp_path: Path, renewed: bool
    ) -> None:
        made = pictures.person(tmp_path / "made.jpg", width=256).read_bytes()
        async with model_servers.serving(
            Scripted(answering(*model_servers.picture(made)))
        ) as server:
            suite.overrides |= {
                "consent_required": ["conversion"],
                "providers": {"conversion": ["grpc"]},
                "models_address": server.address,
                "models_tasks": {"conversion": "paste"},
            }
            await flows.start(suite, working=False)
            ada = suite.client("ada")
            person, garment = await flows.person(ada, tmp_path), await flows.cloth(ada, tmp_path)
            consent = await flows.consent(ada, person)
            job = await flows.convert(ada, person, garment)
            expire(suite, consent.id)
            if renewed:
                await flows.consent(ada, person)
            await suite.work("conversions")
            ended = await flows.until(ada, job.id, *flows.FINISHED)
        if renewed:
            assert (ended.state, len(server.started)) == (job_pb2.JOB_STATE_COMPLETED, 1)
            return

        assert (ended.state, ended.error_class) == (job_pb2.JOB_STATE_FAILED, "CONSENT")
        assert "expired at" in ended.error_message and "RecordConsent" in ended.error_message
        assert (ended.credits, ended.credits_reserved) == (0, 0)
        assert server.started == []
        [attempt] = await flows.attempts_of(ada, job.id)
        assert (attempt.outcome, attempt.error_class) == (
            job_pb2.ATTEMPT_OUTCOME_FAILED,
            "CONSENT",
        )
        explained = await flows.jobs(ada).ExplainJob(job_pb2.ExplainJobRequest(job_id=job.id))
        assert "RecordConsent" in explained.answers[0].next_step

    async def test_an_outside_worker_is_not_given_a_photograph_without_consent(
        self, suite: Suite
    ) -> None:
        suite.overrides["consent_required"] = ["conversion"]
        await flows.start(suite, working=False)
        ada = suite.client("ada")
        person = await photo(ada)
        consent = await flows.consent(ada, person)
        job = await flows.convert(ada, person, await cloth(ada), run_externally=True)
        expire(suite, consent.id)

        await refused(flows.claim(ada, job.id), PRECONDITION, "FAILED now", "expired at")
        ended = await flows.read(ada, job.id)
        assert (ended.state, ended.error_class) == (job_pb2.JOB_STATE_FAILED, "CONSENT")

    @pytest.mark.long
    async def test_a_labelled_copy_of_a_photograph_needs_consent_and_is_followed(
        self, suite: Suite
    ) -> None:
        suite.overrides["consent_required"] = ["analysis"]
        await flows.start(suite)
        ada = suite.client("ada")
        person = await assets.upload(ada, assets.jpeg(640, 480), kind=asset_pb2.ASSET_KIND_USER)
        copy = await labelled(ada, person.id)
        await refused(flows.analyse(ada, (copy, "front")), PRECONDITION, copy, "no consent")

        consent = await flows.consent(ada, person.id)
        sketch = await flows.generate(
            ada, task=generation_pb2.GENERATION_TASK_SKETCH, source_asset_id=copy
        )
        await revoke(ada, consent.id)
        receipt = await erased(ada, consent.id)
        assert (receipt.state, receipt.pictures_purged) == (COMPLETE, 1)
        assert await is_gone(ada, sketch.result_asset_id)
        assert not await is_gone(ada, copy) and not await is_gone(ada, person.id)

    async def test_a_consent_that_ends_after_the_claim_withholds_the_photograph(
        self, suite: Suite
    ) -> None:
        suite.overrides["consent_required"] = ["conversion"]
        await flows.start(suite, working=False)
        ada = suite.client("ada")
        person = await photo(ada)
        consent = await flows.consent(ada, person)
        job = await flows.convert(ada, person, await cloth(ada), run_externally=True)
        claimed = await flows.claim(ada, job.id)
        request = work_pb2.GetWorkRequest(job_id=job.id, attempt_token=claimed.attempt_token)
        stub = ada.stub(work_pb2_grpc.WorkServiceStub)
        assert len((await stub.GetWork(request)).pictures) == 2

        expire(suite, consent.id)
        refusal = await refused(stub.GetWork(request), PRECONDITION, "expired at")
        assert refusal.reason == "CONSENT_REQUIRED"

    async def test_explain_says_on_which_consent_a_job_rests_and_whether_it_holds(
        self, suite: Suite
    ) -> None:
        suite.overrides["consent_required"] = ["conversion"]
        await flows.start(suite, working=False)
        ada = suite.client("ada")
        person = await photo(ada)
        consent = await flows.consent(ada, person)
        job = await flows.convert(ada, person, await cloth(ada))

        async def explained() -> job_pb2.JobAnswer:
            answer = await flows.jobs(ada).ExplainJob(job_pb2.ExplainJobRequest(job_id=job.id))
            [found] = [each for each in answer.answers if "consent" in each.question]
            return found

        found = await explained()
        assert (found.answer, found.ok) == (f"yes, on {consent.id} (active)", True)
        expire(suite, consent.id)
        found = await explained()
        assert (found.answer, found.ok) == (f"yes, on {consent.id} (expired)", False)
        assert "RecordConsent" in found.next_step


@pytest.mark.long
class TestTheErasure:
    async def test_everything_that_was_made_of_the_photograph_is_erased(
        self, suite: Suite, tmp_path: Path
    ) -> None:
        await flows.start(suite)
        ada = suite.client("ada")
        person, garment = await flows.person(ada, tmp_path), await flows.cloth(ada, tmp_path)
        consent = await flows.consent(ada, person)
        worn = await flows.convert(ada, person, garment, wait=True)
        assert worn.state == job_pb2.JOB_STATE_COMPLETED, worn.error_message
        again = await flows.convert(ada, person, garment, wait=True, reuse_result=True)
        assert again.answered_from == worn.id
        sketch = await flows.generate(
            ada,
            task=generation_pb2.GENERATION_TASK_SKETCH,
            source_asset_id=worn.result_asset_id,
        )
        facts = {"product": {"name": "coat"}}
        analysis = await flows.analyse(ada, (sketch.result_asset_id, "front"), facts=facts)
        assert analysis.result["name"] == "coat"
        copy = await labelled(ada, worn.result_asset_id)
        aside = await flows.generate(
            ada, prompt="alone", reference_asset_ids=[garment], quality="draft"
        )

        revoked = await revoke(ada, consent.id)
        assert (revoked.state, revoked.erasure.state) == (pb.CONSENT_STATE_REVOKED, RUNNING)
        receipt = await erased(ada, consent.id)

        assert receipt.state == COMPLETE
        assert (receipt.jobs_cancelled, receipt.pictures_purged) == (0, 3)
        assert (receipt.analyses_emptied, receipt.pictures_held) == (1, 0)
        for made in (worn.result_asset_id, sketch.result_asset_id, copy):
            assert await is_gone(ada, made)
        for kept in (person, garment, aside.result_asset_id):
            assert not await is_gone(ada, kept)
        for job in (worn, again, sketch, analysis):
            assert not flows.held(suite, job.id)
        request = analysis_pb2.GetAnalysisRequest(analysis_id=analysis.id)
        read_again = (await flows.analyses(ada).GetAnalysis(request)).analysis
        assert not read_again.result.fields and not read_again.findings
        for job in (worn, analysis):
            explain = job_pb2.ExplainJobRequest(job_id=job.id)
            first, *_ = (await flows.jobs(ada).ExplainJob(explain)).answers
            assert "deleted or erased since" in first.answer and not first.ok
        new = await flows.convert(ada, person, garment, wait=True, reuse_result=True)
        assert new.answered_from == "" and new.state == job_pb2.JOB_STATE_COMPLETED

        # It looks again, and the figures go on.
        await revoke(ada, consent.id)
        receipt = await erased(ada, consent.id)
        assert (receipt.state, receipt.pictures_purged) == (COMPLETE, 4)
        assert receipt.analyses_emptied == 1 and not await is_gone(ada, person)

    async def test_what_something_holds_is_in_the_receipt_until_it_lets_go(
        self, suite: Suite, tmp_path: Path
    ) -> None:
        await flows.start(suite)
        ada = suite.client("ada")
        person, garment = await flows.person(ada, tmp_path), await flows.cloth(ada, tmp_path)
        consent = await flows.consent(ada, person)
        worn = await flows.convert(ada, person, garment, wait=True)
        dataset = await flows.dataset(ada, image_asset_ids=[worn.result_asset_id])

        await revoke(ada, consent.id)
        receipt = await erased(ada, consent.id)

        assert (receipt.state, receipt.pictures_held, receipt.pictures_purged) == (HELD, 1, 0)
        [held] = receipt.held
        assert held.asset_id == worn.result_asset_id
        assert list(held.holders) == [f"conversions/datasets/{dataset.id}"]
        assert not await is_gone(ada, worn.result_asset_id)

        removal = dataset_pb2.RemoveDatasetImagesRequest(
            dataset_id=dataset.id, asset_ids=[worn.result_asset_id]
        )
        await flows.datasets(ada).RemoveDatasetImages(removal)
        await flows.given_back(suite, dataset.id)
        await revoke(ada, consent.id)
        receipt = await erased(ada, consent.id)
        assert (receipt.state, receipt.pictures_purged, list(receipt.held)) == (COMPLETE, 1, [])
        assert await is_gone(ada, worn.result_asset_id)

    async def test_jobs_under_way_are_cancelled_and_what_they_made_is_not_kept(
        self, suite: Suite, tmp_path: Path
    ) -> None:
        await flows.start(suite, working=False)
        ada = suite.client("ada")
        person, garment = await flows.person(ada, tmp_path), await flows.cloth(ada, tmp_path)
        consent = await flows.consent(ada, person)
        outside = await flows.convert(ada, person, garment, run_externally=True)
        await flows.claim(ada, outside.id)
        running = await flows.convert(ada, person, garment)

        with holding(suite, HOLD, (garment,)):
            await suite.work("conversions")
            await flows.until(ada, running.id, job_pb2.JOB_STATE_PROCESSING)
            waiting = await flows.convert(ada, person, garment, run_externally=True)
            await revoke(ada, consent.id)
            for job in (outside, running, waiting):
                ended = await flows.until(ada, job.id, *flows.FINISHED)
                assert (ended.state, ended.credits) == (job_pb2.JOB_STATE_CANCELLED, 0)
        receipt = await erased(ada, consent.id)
        assert (receipt.state, receipt.jobs_cancelled, receipt.pictures_purged) == (COMPLETE, 3, 0)

    async def test_the_photograph_goes_too_if_that_is_asked_for(
        self, suite: Suite, tmp_path: Path
    ) -> None:
        await flows.start(suite)
        ada = suite.client("ada")
        person, garment = await flows.person(ada, tmp_path), await flows.cloth(ada, tmp_path)
        consent = await flows.consent(ada, person, purpose=TRY_ON)
        worn = await flows.convert(ada, person, garment, wait=True)
        # It isn't a try-on, so that it isn't erased, and holds the photograph.
        sketch = await flows.generate(
            ada, task=generation_pb2.GENERATION_TASK_SKETCH, source_asset_id=person
        )

        copy = await labelled(ada, person)
        await revoke(ada, consent.id, erase_photo=True)
        receipt = await erased(ada, consent.id)
        assert (receipt.state, receipt.pictures_purged, receipt.photo_purged) == (HELD, 2, False)
        assert await is_gone(ada, copy)
        [held] = receipt.held
        assert held.asset_id == person
        assert list(held.holders) == [f"conversions/generations/{sketch.id}"]
        assert await is_gone(ada, worn.result_asset_id)

        other = await flows.consent(ada, person, purpose=pb.CONSENT_PURPOSE_GENERATION)
        await revoke(ada, other.id, erase_photo=True)
        receipt = await erased(ada, other.id)
        assert (receipt.state, receipt.pictures_purged, receipt.photo_purged) == (COMPLETE, 1, True)
        assert await is_gone(ada, person) and await is_gone(ada, sketch.result_asset_id)
        await refused(flows.convert(ada, person, garment), NOT_FOUND)

    async def test_what_rests_on_another_consent_that_holds_is_kept(
        self, suite: Suite, tmp_path: Path
    ) -> None:
        suite.overrides["consent_required"] = ["conversion"]
        await flows.start(suite)
        ada = suite.client("ada")
        person, garment = await flows.person(ada, tmp_path), await flows.cloth(ada, tmp_path)
        first = await flows.consent(ada, person)
        old = await flows.convert(ada, person, garment, wait=True)
        second = await flows.consent(ada, person, expire_time=datetime.now(UTC) + timedelta(days=2))
        new = await flows.convert(ada, person, garment, wait=True)
        assert (old.consent_id, new.consent_id) == (first.id, second.id)

        await revoke(ada, first.id)
        receipt = await erased(ada, first.id)
        assert (receipt.state, receipt.pictures_purged) == (COMPLETE, 1)
        assert await is_gone(ada, old.result_asset_id)
        assert not await is_gone(ada, new.result_asset_id)

    @pytest.mark.parametrize("purged", [False, True])
    @pytest.mark.parametrize("order", [(0, 1), (1, 0)])
    async def test_a_picture_stays_as_long_as_one_of_its_jobs_rests_on_a_consent_that_holds(
        self, suite: Suite, tmp_path: Path, order: tuple[int, int], purged: bool
    ) -> None:
        suite.overrides["consent_required"] = ["conversion", "analysis"]
        await flows.start(suite)
        ada = suite.client("ada")
        person, garment = await flows.person(ada, tmp_path), await flows.cloth(ada, tmp_path)
        consents, worn, analyses = [], [], []
        for days in (1, 2):
            expires = datetime.now(UTC) + timedelta(days=days)
            consents.append((await flows.consent(ada, person, expire_time=expires)).id)
            again = {"wait": True, "reuse_result": True}
            worn.append(await flows.convert(ada, person, garment, **again))
            facts = {"product": {"name": "coat"}}
            analyses.append(await flows.analyse(ada, (person, "front"), facts=facts, **again))
        assert [each.consent_id for each in worn] == consents
        assert [worn[1].answered_from, analyses[1].answered_from] == [worn[0].id, analyses[0].id]
        made = worn[0].result_asset_id
        copy = await labelled(ada, made)
        first, last = order
        if purged:
            purge = conversion_pb2.PurgeConversionRequest(conversion_id=worn[first].id)
            await flows.conversions(ada).PurgeConversion(purge)

        async def found(index: int) -> bool:
            request = analysis_pb2.GetAnalysisRequest(analysis_id=analyses[index].id)
            answer = await flows.analyses(ada).GetAnalysis(request)
            return bool(answer.analysis.result.fields)

        await revoke(ada, consents[first])
        receipt = await erased(ada, consents[first])
        assert (receipt.state, receipt.pictures_purged) == (COMPLETE, 0)
        assert receipt.analyses_emptied == 1
        assert not await is_gone(ada, made) and not await is_gone(ada, copy)
        assert (await found(first), await found(last)) == (False, True)

        await revoke(ada, consents[last])
        receipt = await erased(ada, consents[last])
        assert (receipt.state, receipt.pictures_purged) == (COMPLETE, 2)
        assert await is_gone(ada, made) and await is_gone(ada, copy)
        assert not await found(last)

"""Cases for every rpc of conversions. No worker runs: the rows stay pending, and a call that
cancels them is served.

Each rpc that a worker of the owner's own calls has a row of its own: a claimed one, or the one that
waits.
"""

from dataclasses import dataclass
from typing import Any

import grpc
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import (
    analysis_pb2,
    batch_pb2,
    batch_pb2_grpc,
    consent_pb2,
    conversion_pb2,
    credit_pb2,
    dataset_pb2,
    dead_job_pb2,
    generation_pb2,
    job_pb2,
    lineage_pb2,
    marking_pb2,
    provider_pb2,
    retention_pb2,
    statistics_pb2,
    work_pb2,
)

from tests.assets import flows as assets
from tests.conversions import flows
from tests.suite import Client, Suite
from tests.tenancy_cases import NOT_FOUND, Case, empty, nothing, only_ready

PICTURE = assets.jpeg(64, 48)
INVALID = grpc.StatusCode.INVALID_ARGUMENT
PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED


@dataclass
class Owned:
    """Rows of one owner."""

    owner: str
    user_id: str
    cloth_id: str
    conversion_id: str
    generation_id: str
    analysis_id: str
    product_id: str
    waiting_id: str
    cancelled: "Cancelled"
    trashed: dict[
        str, list[str]
    ]  # jobs that have ended, by kind: one to archive, one to delete, one to purge
    dataset_id: str
    trash_ids: list[str]  # datasets: one to delete, one to purge
    consent_ids: list[str]  # one to revoke, one to keep
    dead_ids: list[str]  # two to requeue, one to dismiss
    beating: job_pb2.ClaimJobResponse
    completing: job_pb2.ClaimJobResponse
    failing: job_pb2.ClaimJobResponse
    batch_ids: list[str]  # one to run, one to cancel, one to keep
    ended_batch_id: str


@dataclass
class Cancelled:
    """Rows that can be tried again."""

    conversion_id: str
    generation_id: str
    analysis_id: str


async def _cancelled(owner: Client, user: str, cloth: str) -> Cancelled:
    conversion = await flows.convert(owner, user, cloth)
    await flows.conversions(owner).CancelConversion(
        conversion_pb2.CancelConversionRequest(conversion_id=conversion.id)
    )
    generation = await flows.generate(owner, prompt="a coat", wait=False)
    await flows.generations(owner).CancelGeneration(
        generation_pb2.CancelGenerationRequest(generation_id=generation.id)
    )
    analysis = await flows.analyse(owner, (cloth, "front"), wait=False)
    await flows.analyses(owner).CancelAnalysis(
        analysis_pb2.CancelAnalysisRequest(analysis_id=analysis.id)
    )
    return Cancelled(conversion.id, generation.id, analysis.id)


async def _ended(owner: Client, user: str, cloth: str) -> dict[str, list[str]]:
    made = [await _cancelled(owner, user, cloth) for _ in range(3)]
    return {
        "conversion": [each.conversion_id for each in made],
        "generation": [each.generation_id for each in made],
        "analysis": [each.analysis_id for each in made],
    }


async def _dead(owner: Client, canary: str) -> list[str]:
    """Returns jobs that failed for good."""
    dead = [await flows.analyse(owner, run_externally=True, wait=False) for _ in range(3)]
    for each in dead:
        claimed = await flows.claim(owner, each.id)
        await flows.fail(owner, claimed, error_message=canary)
    return [each.id for each in dead]


async def prepare(suite: Suite, owner: Client, canary: str) -> Owned:
    user = await assets.upload(owner, PICTURE, kind=asset_pb2.ASSET_KIND_USER, file_name=canary)
    cloth = await assets.upload(owner, PICTURE, kind=asset_pb2.ASSET_KIND_CLOTH, file_name=canary)
    # They come first: the newest row of each kind has the canary.
    cancelled = await _cancelled(owner, user.id, cloth.id)
    trashed = await _ended(owner, user.id, cloth.id)
    dead_ids = await _dead(owner, canary)
    described = {"product_id": canary, "wait": False}
    conversion = await flows.convert(
        owner, user.id, cloth.id, style_name=canary, metadata={"a": canary}, **described
    )
    generation = await flows.generate(owner, prompt=canary, name=canary, **described)
    analysis = await flows.analyse(owner, (cloth.id, "front"), **described)
    dataset = await flows.dataset(
        owner, name=canary, brand=canary, vibe=canary, image_asset_ids=[cloth.id]
    )
    suite.sql(
        "INSERT INTO conversions.attempts (id, owner, job, job_id, number, worker)"
        " VALUES (gen_random_uuid(), %s, 'conversions', %s, 1, %s)",
        (conversion.owner, conversion.id, canary),
    )
    suite.sql(
        "INSERT INTO conversions.provider_calls (id, owner, job, job_id, attempt_id, provider,"
        " model, task, state, handle, usage, category) VALUES (gen_random_uuid(), %(owner)s,"
        " 'conversions', %(job)s, gen_random_uuid(), 'gemini', %(canary)s, 'conversion',"
        " 'submitted', %(canary)s, jsonb_build_object('note', %(canary)s::text), %(canary)s)",
        {"owner": conversion.owner, "job": conversion.id, "canary": canary},
    )
    await flows.grant(suite, 1_000, owner=conversion.owner, reason=canary, reference=canary)
    elsewhere = [await flows.analyse(owner, run_externally=True, **described) for _ in range(4)]
    batch_ids = await _batches(owner, canary)
    suite.sql(
        "UPDATE conversions.batches SET state = 'completed', pause_reason = '', ended_at = now()"
        " WHERE id = %s",
        (batch_ids[3],),
    )
    claimed = [await flows.claim(owner, each.id, worker=canary) for each in elsewhere[1:]]
    return Owned(
        conversion.owner,
        user.id,
        cloth.id,
        conversion.id,
        generation.id,
        analysis.id,
        canary,
        elsewhere[0].id,
        cancelled,
        trashed,
        dataset.id,
        [(await flows.dataset(owner, name=canary)).id for _ in range(2)],
        await _consents(owner, user.id, canary),
        dead_ids,
        claimed[0],
        claimed[1],
        claimed[2],
        batch_ids[:3],
        batch_ids[3],
    )


async def _consents(owner: Client, photo: str, canary: str) -> list[str]:
    """Records one to revoke and one to keep; returns their ids."""
    texts = {"wording_version": canary, "wording": canary, "given_by": canary, "note": canary}
    return [(await flows.consent(owner, photo, **texts)).id for _ in range(2)]


async def _batches(owner: Client, canary: str) -> list[str]:
    """Creates four paused ones; returns their ids."""
    service = owner.stub(batch_pb2_grpc.BatchServiceStub)
    asked = batch_pb2.BatchGenerations(prompts=[canary], dataset_id=canary, style=canary)
    request = batch_pb2.CreateBatchRequest(name=canary, generations=asked, paused=True)
    return [(await service.CreateBatch(request)).batch.id for _ in range(4)]


_CONVERSIONS = "atelier.conversions.v1.ConversionService."
_GENERATIONS = "atelier.conversions.v1.GenerationService."
_ANALYSES = "atelier.conversions.v1.AnalysisService."
_DATASETS = "atelier.conversions.v1.DatasetService."
_STATISTICS = "atelier.conversions.v1.StatisticsService."
_JOBS = "atelier.conversions.v1.JobService."
_LINEAGE = "atelier.conversions.v1.LineageService."
_MARKING = "atelier.conversions.v1.MarkingService."
_RETENTION = "atelier.conversions.v1.RetentionService."
_PROVIDERS = "atelier.conversions.v1.ProviderService."
_CONSENTS = "atelier.conversions.v1.ConsentService."
_DEAD_JOBS = "atelier.conversions.v1.DeadJobService."
_WORK = "atelier.conversions.v1.WorkService."
_CREDITS = "atelier.conversions.v1.CreditService."
_BATCHES = "atelier.conversions.v1.BatchService."

CASES = {
    _CONVERSIONS + "CreateConversion": Case(
        lambda o: conversion_pb2.CreateConversionRequest(
            request_id=f"convert {o.conversion_id}",
            user_asset_id=o.user_id,
            cloth_asset_id=o.cloth_id,
        ),
        NOT_FOUND,
    ),
    _CONVERSIONS + "GetConversion": Case(
        lambda o: conversion_pb2.GetConversionRequest(
            conversion_id=o.conversion_id, include_urls=True
        ),
        NOT_FOUND,
    ),
    _CONVERSIONS + "ListConversions": Case(
        lambda o: conversion_pb2.ListConversionsRequest(product_id=o.product_id),
        empty("conversions"),
    ),
    _CONVERSIONS + "CancelConversion": Case(
        lambda o: conversion_pb2.CancelConversionRequest(
            request_id="cancel", conversion_id=o.conversion_id
        ),
        NOT_FOUND,
    ),
    _CONVERSIONS + "RetryConversion": Case(
        lambda o: conversion_pb2.RetryConversionRequest(
            request_id="retry", conversion_id=o.cancelled.conversion_id
        ),
        NOT_FOUND,
    ),
    _CONVERSIONS + "WatchConversions": Case(
        lambda o: conversion_pb2.WatchConversionsRequest(conversion_ids=[o.conversion_id]),
        only_ready,
    ),
    _GENERATIONS + "CreateGeneration": Case(
        lambda o: generation_pb2.CreateGenerationRequest(
            request_id="close-up",
            task=generation_pb2.GENERATION_TASK_CLOSEUP,
            source_asset_id=o.cloth_id,
        ),
        NOT_FOUND,
    ),
    _GENERATIONS + "GetGeneration": Case(
        lambda o: generation_pb2.GetGenerationRequest(
            generation_id=o.generation_id, include_urls=True
        ),
        NOT_FOUND,
    ),
    _GENERATIONS + "ListGenerations": Case(
        lambda o: generation_pb2.ListGenerationsRequest(product_id=o.product_id),
        empty("generations"),
    ),
    _GENERATIONS + "RegenerateGeneration": Case(
        lambda o: generation_pb2.RegenerateGenerationRequest(
            request_id="again", generation_id=o.generation_id
        ),
        NOT_FOUND,
    ),
    _GENERATIONS + "CancelGeneration": Case(
        lambda o: generation_pb2.CancelGenerationRequest(
            request_id="cancel", generation_id=o.generation_id
        ),
        NOT_FOUND,
    ),
    _GENERATIONS + "RetryGeneration": Case(
        lambda o: generation_pb2.RetryGenerationRequest(
            request_id="retry", generation_id=o.cancelled.generation_id
        ),
        NOT_FOUND,
    ),
    _GENERATIONS + "WatchGenerations": Case(
        lambda o: generation_pb2.WatchGenerationsRequest(generation_ids=[o.generation_id]),
        only_ready,
    ),
    _ANALYSES + "CreateAnalysis": Case(
        lambda o: analysis_pb2.CreateAnalysisRequest(
            request_id="analyse",
            task=analysis_pb2.ANALYSIS_TASK_PRODUCT,
            images=[analysis_pb2.AnalysisImage(asset_id=o.cloth_id, view="front")],
        ),
        NOT_FOUND,
    ),
    _ANALYSES + "GetAnalysis": Case(
        lambda o: analysis_pb2.GetAnalysisRequest(analysis_id=o.analysis_id), NOT_FOUND
    ),
    _ANALYSES + "ListAnalyses": Case(
        lambda o: analysis_pb2.ListAnalysesRequest(product_id=o.product_id), empty("analyses")
    ),
    _ANALYSES + "CancelAnalysis": Case(
        lambda o: analysis_pb2.CancelAnalysisRequest(
            request_id="cancel", analysis_id=o.analysis_id
        ),
        NOT_FOUND,
    ),
    _ANALYSES + "RetryAnalysis": Case(
        lambda o: analysis_pb2.RetryAnalysisRequest(
            request_id="retry", analysis_id=o.cancelled.analysis_id
        ),
        NOT_FOUND,
    ),
    _ANALYSES + "WatchAnalyses": Case(
        lambda o: analysis_pb2.WatchAnalysesRequest(analysis_ids=[o.analysis_id]), only_ready
    ),
    _CREDITS + "GetBalance": Case(
        lambda o: credit_pb2.GetBalanceRequest(owner="user:ada"), NOT_FOUND
    ),
    _CREDITS + "ListCreditEntries": Case(
        lambda o: credit_pb2.ListCreditEntriesRequest(owner="user:ada"), NOT_FOUND
    ),
    _CREDITS + "QuoteJob": Case(
        lambda o: credit_pb2.QuoteJobRequest(
            conversion=conversion_pb2.CreateConversionRequest(
                user_asset_id=o.user_id, cloth_asset_id=o.cloth_id
            )
        ),
        NOT_FOUND,
    ),
    _CREDITS + "GrantCredits": Case(
        lambda o: credit_pb2.GrantCreditsRequest(
            request_id=f"grant {o.conversion_id}", owner="user:ada", credits=5, reason="a gift"
        ),
        nothing,
        owner_role="admin",
    ),
    _CREDITS + "AdjustCredits": Case(
        lambda o: credit_pb2.AdjustCreditsRequest(
            request_id=f"adjust {o.conversion_id}", owner="user:ada", credits=-5, reason="an error"
        ),
        nothing,
        owner_role="admin",
    ),
    _CREDITS + "SetBudget": Case(
        lambda o: credit_pb2.SetBudgetRequest(
            request_id=f"budget {o.conversion_id}", owner="user:ada", daily_credits=100_000
        ),
        NOT_FOUND,
    ),
    _JOBS + "ListJobs": Case(lambda o: job_pb2.ListJobsRequest(), nothing),
    _JOBS + "ClaimJob": Case(
        lambda o: job_pb2.ClaimJobRequest(request_id="claim", job_id=o.waiting_id, worker="w"),
        NOT_FOUND,
    ),
    _JOBS + "HeartbeatJob": Case(
        lambda o: job_pb2.HeartbeatJobRequest(
            job_id=o.beating.job.id, attempt_token=o.beating.attempt_token, progress=0.5
        ),
        NOT_FOUND,
    ),
    _JOBS + "CompleteJob": Case(
        lambda o: job_pb2.CompleteJobRequest(
            request_id="complete",
            job_id=o.completing.job.id,
            attempt_token=o.completing.attempt_token,
            analysis=job_pb2.AnalysisResult(result={"name": "coat"}),
            model="studio",
        ),
        NOT_FOUND,
    ),
    _JOBS + "FailJob": Case(
        lambda o: job_pb2.FailJobRequest(
            request_id="fail",
            job_id=o.failing.job.id,
            attempt_token=o.failing.attempt_token,
            error_class="NO_GPU",
            error_message="none is free",
        ),
        NOT_FOUND,
    ),
    _JOBS + "ExplainJob": Case(
        lambda o: job_pb2.ExplainJobRequest(job_id=o.conversion_id), NOT_FOUND
    ),
    _JOBS + "ListAttempts": Case(
        lambda o: job_pb2.ListAttemptsRequest(job_id=o.conversion_id), empty("attempts")
    ),
    _DEAD_JOBS + "ListDeadJobs": Case(
        lambda o: dead_job_pb2.ListDeadJobsRequest(owner=o.owner),
        nothing,
        owner_role="admin",
    ),
    _DEAD_JOBS + "RequeueJob": Case(
        lambda o: dead_job_pb2.RequeueJobRequest(
            request_id=f"requeue {o.dead_ids[0]}",
            owner=o.owner,
            job_id=o.dead_ids[0],
            reason=o.product_id,
        ),
        nothing,
        owner_role="admin",
    ),
    _DEAD_JOBS + "RequeueJobs": Case(
        lambda o: dead_job_pb2.RequeueJobsRequest(
            request_id=f"requeue {o.dead_ids[1]}", owner=o.owner, reason=o.product_id, max_jobs=1
        ),
        nothing,
        owner_role="admin",
    ),
    _DEAD_JOBS + "DismissJob": Case(
        lambda o: dead_job_pb2.DismissJobRequest(
            request_id=f"dismiss {o.dead_ids[2]}",
            owner=o.owner,
            job_id=o.dead_ids[2],
            reason=o.product_id,
        ),
        nothing,
        owner_role="admin",
    ),
    _WORK + "GetWork": Case(
        lambda o: work_pb2.GetWorkRequest(
            job_id=o.beating.job.id, attempt_token=o.beating.attempt_token
        ),
        NOT_FOUND,
    ),
    # It is an analysis, for which no picture is uploaded.
    _WORK + "RequestResultUpload": Case(
        lambda o: work_pb2.RequestResultUploadRequest(
            job_id=o.beating.job.id,
            attempt_token=o.beating.attempt_token,
            mime_type="image/jpeg",
            size_bytes=1,
        ),
        NOT_FOUND,
        INVALID,
    ),
    _LINEAGE + "GetLineage": Case(
        lambda o: lineage_pb2.GetLineageRequest(job_id=o.conversion_id), NOT_FOUND
    ),
    _MARKING + "VerifyMark": Case(
        lambda o: marking_pb2.VerifyMarkRequest(asset_id=o.user_id), NOT_FOUND
    ),
    _MARKING + "CreateLabelledPicture": Case(
        lambda o: marking_pb2.CreateLabelledPictureRequest(
            request_id="label", asset_id=o.user_id, text="AI"
        ),
        NOT_FOUND,
    ),
    _MARKING + "GetDisclosure": Case(
        lambda o: marking_pb2.GetDisclosureRequest(asset_id=o.user_id), NOT_FOUND
    ),
    _PROVIDERS + "ListProviders": Case(lambda o: provider_pb2.ListProvidersRequest(), nothing),
    # This deployment has no provider that can be switched.
    _PROVIDERS + "SwitchProvider": Case(
        lambda o: provider_pb2.SwitchProviderRequest(
            request_id="switch", provider="gemini", on=True, reason=o.product_id
        ),
        NOT_FOUND,
        NOT_FOUND,
        owner_role="admin",
    ),
    _PROVIDERS + "SetProviderRoute": Case(
        lambda o: provider_pb2.SetProviderRouteRequest(
            request_id=f"route {o.analysis_id}",
            owner="user:ada",
            task="conversion",
            providers=["local"],
        ),
        nothing,
        owner_role="admin",
    ),
    _PROVIDERS + "ListProviderRoutes": Case(
        lambda o: provider_pb2.ListProviderRoutesRequest(owner="user:ada"),
        nothing,
        owner_role="admin",
    ),
    # Only the web front of the deployment passes callbacks on.
    _PROVIDERS + "DeliverCallback": Case(
        lambda o: provider_pb2.DeliverCallbackRequest(provider="fal", body=b"{}"),
        PERMISSION_DENIED,
        PERMISSION_DENIED,
    ),
    _PROVIDERS + "ListProviderCalls": Case(
        lambda o: provider_pb2.ListProviderCallsRequest(job_id=o.conversion_id), empty("calls")
    ),
    _DATASETS + "CreateDataset": Case(
        lambda o: dataset_pb2.CreateDatasetRequest(
            request_id="create", name="n", image_asset_ids=[o.cloth_id]
        ),
        NOT_FOUND,
    ),
    _DATASETS + "GetDataset": Case(
        lambda o: dataset_pb2.GetDatasetRequest(dataset_id=o.dataset_id, include_urls=True),
        NOT_FOUND,
    ),
    _DATASETS + "ListDatasets": Case(
        lambda o: dataset_pb2.ListDatasetsRequest(show_archived=True, show_deleted=True), nothing
    ),
    _DATASETS + "UpdateDataset": Case(
        lambda o: dataset_pb2.UpdateDatasetRequest(
            request_id="update",
            dataset_id=o.dataset_id,
            update_mask={"paths": ["vibe"]},
            vibe="v",
        ),
        NOT_FOUND,
    ),
    _DATASETS + "AddDatasetImages": Case(
        lambda o: dataset_pb2.AddDatasetImagesRequest(
            request_id="add", dataset_id=o.dataset_id, asset_ids=[o.cloth_id]
        ),
        NOT_FOUND,
    ),
    _DATASETS + "RemoveDatasetImages": Case(
        lambda o: dataset_pb2.RemoveDatasetImagesRequest(
            request_id="remove", dataset_id=o.dataset_id, asset_ids=[o.user_id]
        ),
        NOT_FOUND,
    ),
    _DATASETS + "OrderDatasetImages": Case(
        lambda o: dataset_pb2.OrderDatasetImagesRequest(
            request_id="order", dataset_id=o.dataset_id, asset_ids=[o.cloth_id]
        ),
        NOT_FOUND,
    ),
    _DATASETS + "ArchiveDataset": Case(
        lambda o: dataset_pb2.ArchiveDatasetRequest(request_id="a", dataset_id=o.dataset_id),
        NOT_FOUND,
    ),
    _DATASETS + "UnarchiveDataset": Case(
        lambda o: dataset_pb2.UnarchiveDatasetRequest(request_id="u", dataset_id=o.dataset_id),
        NOT_FOUND,
    ),
    _DATASETS + "DeleteDataset": Case(
        lambda o: dataset_pb2.DeleteDatasetRequest(request_id="d", dataset_id=o.trash_ids[0]),
        NOT_FOUND,
    ),
    _DATASETS + "UndeleteDataset": Case(
        lambda o: dataset_pb2.UndeleteDatasetRequest(request_id="b", dataset_id=o.trash_ids[0]),
        NOT_FOUND,
    ),
    _DATASETS + "WatchDatasets": Case(lambda o: dataset_pb2.WatchDatasetsRequest(), nothing),
    _DATASETS + "PurgeDataset": Case(
        lambda o: dataset_pb2.PurgeDatasetRequest(request_id="p", dataset_id=o.trash_ids[1]),
        NOT_FOUND,
    ),
    _RETENTION + "GetRetention": Case(lambda o: retention_pb2.GetRetentionRequest(), nothing),
    _RETENTION + "ListRetentionCounts": Case(
        lambda o: retention_pb2.ListRetentionCountsRequest(), nothing, owner_role="admin"
    ),
    # Other owners ask for the figures of the one whose rows these are.
    _STATISTICS + "GetJobStatistics": Case(
        lambda o: statistics_pb2.GetJobStatisticsRequest(owner=o.owner), NOT_FOUND
    ),
    _STATISTICS + "GetGenerationStatistics": Case(
        lambda o: statistics_pb2.GetGenerationStatisticsRequest(owner=o.owner), NOT_FOUND
    ),
    _CONSENTS + "RecordConsent": Case(
        lambda o: consent_pb2.RecordConsentRequest(
            request_id="record",
            asset_id=o.user_id,
            purpose=consent_pb2.CONSENT_PURPOSE_ALL,
            wording_version="1",
            given_by="a person",
            expire_time={"seconds": 4_000_000_000},
        ),
        NOT_FOUND,
    ),
    _CONSENTS + "GetConsent": Case(
        lambda o: consent_pb2.GetConsentRequest(consent_id=o.consent_ids[1]), NOT_FOUND
    ),
    _CONSENTS + "ListConsents": Case(
        lambda o: consent_pb2.ListConsentsRequest(asset_id=o.user_id), empty("consents")
    ),
    _CONSENTS + "RevokeConsent": Case(
        lambda o: consent_pb2.RevokeConsentRequest(
            request_id="revoke", consent_id=o.consent_ids[0]
        ),
        NOT_FOUND,
    ),
    _CONSENTS + "WatchConsents": Case(lambda o: consent_pb2.WatchConsentsRequest(), nothing),
    _BATCHES + "CreateBatch": Case(
        lambda o: batch_pb2.CreateBatchRequest(
            request_id=f"batch {o.user_id}",
            conversions=batch_pb2.BatchConversions(
                user_asset_ids=[o.user_id], cloth_asset_ids=[o.cloth_id]
            ),
            paused=True,
        ),
        NOT_FOUND,
    ),
    _BATCHES + "GetBatch": Case(
        lambda o: batch_pb2.GetBatchRequest(batch_id=o.batch_ids[2]), NOT_FOUND
    ),
    _BATCHES + "ListBatches": Case(lambda o: batch_pb2.ListBatchesRequest(), empty("batches")),
    _BATCHES + "PauseBatch": Case(
        lambda o: batch_pb2.PauseBatchRequest(request_id="p", batch_id=o.batch_ids[0]), NOT_FOUND
    ),
    _BATCHES + "ResumeBatch": Case(
        lambda o: batch_pb2.ResumeBatchRequest(request_id="r", batch_id=o.batch_ids[0]), NOT_FOUND
    ),
    _BATCHES + "PrioritizeBatch": Case(
        lambda o: batch_pb2.PrioritizeBatchRequest(request_id="f", batch_id=o.batch_ids[0]),
        NOT_FOUND,
    ),
    _BATCHES + "RetryBatch": Case(
        lambda o: batch_pb2.RetryBatchRequest(request_id="a", batch_id=o.batch_ids[0]), NOT_FOUND
    ),
    _BATCHES + "CancelBatch": Case(
        lambda o: batch_pb2.CancelBatchRequest(request_id="c", batch_id=o.batch_ids[1]), NOT_FOUND
    ),
    _BATCHES + "DeleteBatch": Case(
        lambda o: batch_pb2.DeleteBatchRequest(request_id="d", batch_id=o.ended_batch_id),
        NOT_FOUND,
    ),
    _BATCHES + "DownloadBatch": Case(
        lambda o: batch_pb2.DownloadBatchRequest(batch_id=o.batch_ids[2]), NOT_FOUND
    ),
    _BATCHES + "WatchBatches": Case(lambda o: batch_pb2.WatchBatchesRequest(), nothing),
}


def _trash(kind: str, messages: Any, service: str) -> dict[str, Case]:
    """Returns the cases of the calls about archive and trash of a kind of job."""

    def case(verb: str, number: int) -> Case:
        request = getattr(messages, f"{verb}{kind.capitalize()}Request")
        return Case(
            lambda o: request(request_id=verb, **{f"{kind}_id": o.trashed[kind][number]}),
            NOT_FOUND,
        )

    of_verb = {"Archive": 0, "Unarchive": 0, "Delete": 1, "Undelete": 1, "Purge": 2}
    return {
        f"{service}{verb}{kind.capitalize()}": case(verb, number)
        for verb, number in of_verb.items()
    }


CASES |= _trash("conversion", conversion_pb2, _CONVERSIONS)
CASES |= _trash("generation", generation_pb2, _GENERATIONS)
CASES |= _trash("analysis", analysis_pb2, _ANALYSES)

"""Cases for every rpc of conversions. No worker runs: the rows stay pending, and a call that
cancels them is served.

Each rpc that a worker of the owner's own calls has a row of its own: a claimed one, or the one that
waits.
"""

from dataclasses import dataclass

from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import analysis_pb2, conversion_pb2, generation_pb2, job_pb2

from tests.assets import flows as assets
from tests.conversions import flows
from tests.suite import Client, Suite
from tests.tenancy_cases import NOT_FOUND, Case, empty, nothing, only_ready

PICTURE = assets.jpeg(64, 48)


@dataclass
class Owned:
    """Rows of one owner."""

    user_id: str
    cloth_id: str
    conversion_id: str
    generation_id: str
    analysis_id: str
    product_id: str
    waiting_id: str
    beating: job_pb2.ClaimJobResponse
    completing: job_pb2.ClaimJobResponse
    failing: job_pb2.ClaimJobResponse


async def prepare(suite: Suite, owner: Client, canary: str) -> Owned:
    user = await assets.upload(owner, PICTURE, kind=asset_pb2.ASSET_KIND_USER, file_name=canary)
    cloth = await assets.upload(owner, PICTURE, kind=asset_pb2.ASSET_KIND_CLOTH, file_name=canary)
    described = {"product_id": canary, "wait": False}
    conversion = await flows.convert(
        owner, user.id, cloth.id, style_name=canary, metadata={"a": canary}, **described
    )
    generation = await flows.generate(owner, prompt=canary, name=canary, **described)
    analysis = await flows.analyse(owner, (cloth.id, "front"), **described)
    suite.sql(
        "INSERT INTO conversions.attempts (id, owner, job, job_id, number, worker)"
        " VALUES (gen_random_uuid(), %s, 'conversions', %s, 1, %s)",
        (conversion.owner, conversion.id, canary),
    )
    elsewhere = [await flows.analyse(owner, run_externally=True, **described) for _ in range(4)]
    claimed = [await flows.claim(owner, each.id, worker=canary) for each in elsewhere[1:]]
    return Owned(
        user.id,
        cloth.id,
        conversion.id,
        generation.id,
        analysis.id,
        canary,
        elsewhere[0].id,
        *claimed,
    )


_CONVERSIONS = "atelier.conversions.v1.ConversionService."
_GENERATIONS = "atelier.conversions.v1.GenerationService."
_ANALYSES = "atelier.conversions.v1.AnalysisService."
_JOBS = "atelier.conversions.v1.JobService."

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
    _ANALYSES + "WatchAnalyses": Case(
        lambda o: analysis_pb2.WatchAnalysesRequest(analysis_ids=[o.analysis_id]), only_ready
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
    _JOBS + "ListAttempts": Case(
        lambda o: job_pb2.ListAttemptsRequest(job_id=o.conversion_id), empty("attempts")
    ),
}

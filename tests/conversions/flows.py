"""Steps of a client of conversions, for tests to build on."""

import asyncio
from pathlib import Path
from typing import Any

from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import (
    analysis_pb2,
    analysis_pb2_grpc,
    conversion_pb2,
    conversion_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
)

from tests.assets.flows import request_id, upload
from tests.conversions import local_pictures as pictures
from tests.suite import Client, Suite

FINISHED = (job_pb2.JOB_STATE_COMPLETED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED)


async def start(suite: Suite, *, working: bool = True) -> None:
    """Serves assets and conversions; with `working`, conversions has a worker."""
    await suite.serve("assets", "conversions")
    if working:
        await suite.work("conversions")


def conversions(client: Client) -> Any:
    return client.stub(conversion_pb2_grpc.ConversionServiceStub)


def generations(client: Client) -> Any:
    return client.stub(generation_pb2_grpc.GenerationServiceStub)


def analyses(client: Client) -> Any:
    return client.stub(analysis_pb2_grpc.AnalysisServiceStub)


def jobs(client: Client) -> Any:
    return client.stub(job_pb2_grpc.JobServiceStub)


async def put(client: Client, path: Path, kind: int, **fields: Any) -> str:
    """Uploads a file and returns the asset's id."""
    mime_type = "image/png" if path.suffix == ".png" else "image/jpeg"
    return (await upload(client, path.read_bytes(), kind=kind, mime_type=mime_type, **fields)).id


async def person(client: Client, directory: Path, **fields: Any) -> str:
    return await put(
        client,
        pictures.person(directory / "person.jpg", width=320),
        asset_pb2.ASSET_KIND_USER,
        **fields,
    )


async def cloth(client: Client, directory: Path, **fields: Any) -> str:
    return await put(
        client,
        pictures.garment(directory / "cloth.jpg", width=400),
        asset_pb2.ASSET_KIND_CLOTH,
        **fields,
    )


async def convert(
    client: Client, user: str, garment: str, **fields: Any
) -> conversion_pb2.Conversion:
    """Creates a conversion; with `wait=True` it has ended."""
    request = conversion_pb2.CreateConversionRequest(
        user_asset_id=user, cloth_asset_id=garment, **{"request_id": request_id(), **fields}
    )
    answer = await conversions(client).CreateConversion(request, timeout=60)
    conversion: conversion_pb2.Conversion = answer.conversion
    return conversion


async def generate(client: Client, **fields: Any) -> generation_pb2.Generation:
    values = {
        "task": generation_pb2.GENERATION_TASK_IMAGE,
        "request_id": request_id(),
        "wait": True,
        **fields,
    }
    answer = await generations(client).CreateGeneration(
        generation_pb2.CreateGenerationRequest(**values), timeout=60
    )
    generation: generation_pb2.Generation = answer.generation
    return generation


async def analyse(client: Client, *images: tuple[str, str], **fields: Any) -> analysis_pb2.Analysis:
    """Creates an analysis; `images` are (asset id, view)."""
    values = {
        "task": analysis_pb2.ANALYSIS_TASK_PRODUCT,
        "request_id": request_id(),
        "wait": True,
        **fields,
    }
    shown = [analysis_pb2.AnalysisImage(asset_id=asset_id, view=view) for asset_id, view in images]
    request = analysis_pb2.CreateAnalysisRequest(images=shown, **values)
    analysis: analysis_pb2.Analysis = (
        await analyses(client).CreateAnalysis(request, timeout=60)
    ).analysis
    return analysis


async def read(client: Client, conversion_id: str, **fields: Any) -> conversion_pb2.Conversion:
    request = conversion_pb2.GetConversionRequest(conversion_id=conversion_id, **fields)
    conversion: conversion_pb2.Conversion = (
        await conversions(client).GetConversion(request)
    ).conversion
    return conversion


async def until(
    client: Client, conversion_id: str, *states: int, seconds: float = 30
) -> conversion_pb2.Conversion:
    """Returns the conversion once it is in one of the states."""
    async with asyncio.timeout(seconds):
        while True:
            conversion = await read(client, conversion_id)
            if conversion.state in states:
                return conversion
            await asyncio.sleep(0.05)


async def claim(client: Client, job_id: str = "", **fields: Any) -> job_pb2.ClaimJobResponse:
    """Claims a job as an outside runner: this one, or by `kind`."""
    wanted: dict[str, Any] = {"request_id": request_id(), "worker": "gpu-1", **fields}
    request = job_pb2.ClaimJobRequest(**wanted, **({"job_id": job_id} if job_id else {}))
    answer: job_pb2.ClaimJobResponse = await jobs(client).ClaimJob(request)
    return answer


async def complete(client: Client, claimed: job_pb2.ClaimJobResponse, **fields: Any) -> job_pb2.Job:
    """Completes a claimed job as an outside runner."""
    values: dict[str, Any] = {"request_id": request_id(), "model": "studio", **fields}
    request = job_pb2.CompleteJobRequest(
        job_id=claimed.job.id, attempt_token=claimed.attempt_token, **values
    )
    job: job_pb2.Job = (await jobs(client).CompleteJob(request)).job
    return job


async def fail(client: Client, claimed: job_pb2.ClaimJobResponse, **fields: Any) -> job_pb2.Job:
    values: dict[str, Any] = {
        "request_id": request_id(),
        "error_class": "NO_GPU",
        "error_message": "none is free",
    }
    request = job_pb2.FailJobRequest(
        job_id=claimed.job.id, attempt_token=claimed.attempt_token, **{**values, **fields}
    )
    job: job_pb2.Job = (await jobs(client).FailJob(request)).job
    return job


async def heartbeat(
    client: Client, claimed: job_pb2.ClaimJobResponse, **fields: Any
) -> job_pb2.HeartbeatJobResponse:
    request = job_pb2.HeartbeatJobRequest(
        job_id=claimed.job.id, attempt_token=claimed.attempt_token, **fields
    )
    answer: job_pb2.HeartbeatJobResponse = await jobs(client).HeartbeatJob(request)
    return answer


def held(suite: Suite, job_id: str) -> set[str]:
    """Returns the assets that a job holds references to."""
    rows = suite.sql(
        "SELECT asset_id::text FROM assets.asset_references WHERE holder LIKE %s", (f"%/{job_id}",)
    )
    return {asset_id for (asset_id,) in rows}


async def given_back(suite: Suite, job_id: str, seconds: float = 20) -> None:
    """Returns once the job holds no reference."""
    async with asyncio.timeout(seconds):
        while held(suite, job_id):
            await asyncio.sleep(0.05)


async def attempts_of(client: Client, job_id: str) -> list[job_pb2.Attempt]:
    """Returns the job's attempts, newest first."""
    return list(
        (await jobs(client).ListAttempts(job_pb2.ListAttemptsRequest(job_id=job_id))).attempts
    )

"""Steps of a client of conversions, for tests to build on."""

import asyncio
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from atelier.assets.v1 import asset_pb2
from atelier.common.v1 import facts_pb2
from atelier.conversions.v1 import (
    analysis_pb2,
    analysis_pb2_grpc,
    consent_pb2,
    consent_pb2_grpc,
    conversion_pb2,
    conversion_pb2_grpc,
    credit_pb2,
    credit_pb2_grpc,
    dataset_pb2,
    dataset_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
)

from services.conversions import credit_rows, prices
from services.conversions.job_rows import JobKind
from services.conversions.providers import registry
from services.conversions.providers.local import LocalProvider
from services.conversions.runs.asking import Providers
from services.conversions.runs.runner import Runner
from services.conversions.spending import Spending
from shared.background.jobs import JobQueue
from shared.database.db import Database
from shared.imaging import ImagingPool
from shared.rpc.calls import Peers
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


def datasets(client: Client) -> Any:
    return client.stub(dataset_pb2_grpc.DatasetServiceStub)


async def dataset(client: Client, **fields: Any) -> dataset_pb2.Dataset:
    request = dataset_pb2.CreateDatasetRequest(**{"name": "Autumn", **fields})
    made: dataset_pb2.Dataset = (await datasets(client).CreateDataset(request)).dataset
    return made


def consents(client: Client) -> Any:
    return client.stub(consent_pb2_grpc.ConsentServiceStub)


async def consent(client: Client, photo: str, **fields: Any) -> consent_pb2.Consent:
    """Records a consent for a day."""
    values = {
        "request_id": request_id(),
        "purpose": consent_pb2.CONSENT_PURPOSE_ALL,
        "wording_version": "2026-11",
        "given_by": "customer 17",
        "expire_time": datetime.now(UTC) + timedelta(days=1),
        **fields,
    }
    request = consent_pb2.RecordConsentRequest(asset_id=photo, **values)
    recorded: consent_pb2.Consent = (await consents(client).RecordConsent(request)).consent
    return recorded


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


async def analyse_facts(client: Client, **fields: Any) -> analysis_pb2.Analysis:
    """Creates an analysis that costs a credit: a name is known, so that it finds something."""
    facts = facts_pb2.Facts(product={"name": "coat"})
    return await analyse(client, facts=facts, **fields)


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
    """Claims a job as an outside worker: this one, or by `kind`."""
    wanted: dict[str, Any] = {"request_id": request_id(), "worker": "gpu-1", **fields}
    request = job_pb2.ClaimJobRequest(**wanted, **({"job_id": job_id} if job_id else {}))
    answer: job_pb2.ClaimJobResponse = await jobs(client).ClaimJob(request)
    return answer


async def complete(client: Client, claimed: job_pb2.ClaimJobResponse, **fields: Any) -> job_pb2.Job:
    """Completes a claimed job as an outside worker."""
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


def credits(client: Client) -> Any:
    return client.stub(credit_pb2_grpc.CreditServiceStub)


async def grant(
    suite: Suite, amount: int, owner: str = "user:ada", **fields: Any
) -> credit_pb2.GrantCreditsResponse:
    """Grants credits as an operator."""
    values = {"request_id": request_id(), "reason": "a test", **fields}
    request = credit_pb2.GrantCreditsRequest(owner=owner, credits=amount, **values)
    answer: credit_pb2.GrantCreditsResponse = await credits(
        suite.client("olga", "admin")
    ).GrantCredits(request)
    return answer


async def balance(client: Client, owner: str = "") -> credit_pb2.Balance:
    answer = await credits(client).GetBalance(credit_pb2.GetBalanceRequest(owner=owner))
    found: credit_pb2.Balance = answer.balance
    return found


async def entries(client: Client, **fields: Any) -> list[credit_pb2.CreditEntry]:
    """Returns the ledger's entries, oldest first."""
    request = credit_pb2.ListCreditEntriesRequest(page_size=1000, **fields)
    return list(reversed((await credits(client).ListCreditEntries(request)).entries))


@asynccontextmanager
async def running(
    suite: Suite, kind: JobKind[Any, Any], table: Path | None = None
) -> AsyncIterator[Callable[[Any, str], Awaitable[None]]]:
    """Yields a function that runs a job of this kind as a worker does, given its work and its id.
    `table`: a price table instead of the shipped one."""
    settings = suite.settings("conversions", "worker")
    db, peers = Database(settings, "conversions"), Peers(settings, "conversions")
    pool, routes = ImagingPool(1), registry.routes(settings)
    local = LocalProvider(pool)
    providers = Providers(db, settings, routes, registry.open_providers(settings, pool, local))
    spending = Spending(credit_rows.limits_of(settings), prices.load_prices(table), routes)
    runner = Runner(db, JobQueue(db), peers, providers, local, spending)
    await db.open()
    try:
        yield functools.partial(runner.run, kind)
    finally:
        await pool.close()
        await peers.close()
        await db.close()


def held(suite: Suite, job_id: str) -> set[str]:
    """Returns the assets that a job holds references to."""
    rows = suite.sql(
        "SELECT asset_id::text FROM assets.asset_references WHERE holder LIKE %s", (f"%/{job_id}",)
    )
    return {asset_id for (asset_id,) in rows}


async def blocked(suite: Suite, role: str, seconds: float = 20) -> None:
    """Returns once a session of this role waits for a lock."""
    waits = (
        "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND usename = %s AND datname"
        " = %s"
    )
    async with asyncio.timeout(seconds):
        while not suite.sql(waits, (role, suite.database)):
            await asyncio.sleep(0.02)


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

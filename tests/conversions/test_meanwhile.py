"""What two calls about one job do to it when they meet."""

import asyncio
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import analysis_pb2, conversion_pb2, provider_pb2, provider_pb2_grpc

from services.conversions.runs.run import Run
from tests.assets import flows as assets
from tests.calls import holding, refused
from tests.conversions import flows
from tests.conversions import local_pictures as pictures
from tests.conversions import test_dead_jobs as dead_jobs
from tests.conversions.credit_flows import account
from tests.conversions.queues import Answer, FalQueue, ReplicateQueue, serving
from tests.conversions.test_polled import configure
from tests.conversions.test_providers import calls_of, try_on
from tests.suite import Client, Suite

WRONG_STATE = grpc.StatusCode.FAILED_PRECONDITION


@pytest.fixture
async def ada(suite: Suite) -> Client:
    await flows.start(suite, working=False)
    return suite.client("ada")


async def until_waits(suite: Suite, count: int) -> None:
    """Returns once so many sessions wait for a lock."""
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    async with asyncio.timeout(10):
        while suite.sql(waits)[0][0] < count:
            await asyncio.sleep(0.02)


async def test_a_dead_job_is_requeued_or_tried_again_and_charged_once(
    suite: Suite, ada: Client
) -> None:
    suite.overrides["credits"] = "enforced"
    await flows.grant(suite, 10)
    olga = suite.client("olga", "admin")
    job_id = await dead_jobs.died(suite, ada)
    accounts = "SELECT FROM conversions.credit_accounts WHERE owner = 'user:ada' FOR UPDATE"
    with holding(suite, accounts, ()):
        requeued = asyncio.create_task(dead_jobs.requeue(olga, job_id))
        await until_waits(suite, 1)
        request = analysis_pb2.RetryAnalysisRequest(analysis_id=job_id)
        retried = asyncio.ensure_future(flows.analyses(ada).RetryAnalysis(request))
        await until_waits(suite, 2)

    assert (await requeued).state == dead_jobs.PENDING
    await refused(retried, WRONG_STATE, "was requeued by an operator")
    assert (await account(ada))[1] == 1


async def test_a_dead_job_that_is_purged_while_it_is_requeued_stops_no_other(
    suite: Suite, ada: Client
) -> None:
    olga = suite.client("olga", "admin")
    purged, other = [await dead_jobs.died(suite, ada) for _ in range(2)]
    with psycopg.connect(suite.cluster.url(suite.database)) as conn:
        conn.execute("SELECT FROM conversions.analyses WHERE id = %s FOR UPDATE", (purged,))
        requeued = asyncio.create_task(dead_jobs.requeue_all(olga))
        await until_waits(suite, 1)
        conn.execute("DELETE FROM conversions.analyses WHERE id = %s", (purged,))
        conn.commit()
    results = {each.job_id: each.refusal_message for each in (await requeued).results}
    assert results.keys() == {purged, other} and not results[other]
    assert "there is no job" in results[purged]


@pytest.mark.long
async def test_a_picture_that_no_row_names_yet_goes_with_its_cancelled_job(
    suite: Suite, ada: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached = asyncio.Event()

    async def pause(self: Any, asset_id: uuid.UUID) -> None:
        reached.set()
        await asyncio.sleep(30)  # as a process does that is slow right then

    monkeypatch.setattr(Run, "_purge_earlier", pause)
    await suite.work("conversions")
    person, garment = await flows.person(ada, tmp_path), await flows.cloth(ada, tmp_path)
    job = await flows.convert(ada, person, garment)
    await asyncio.wait_for(reached.wait(), 20)

    cancelling = conversion_pb2.CancelConversionRequest(conversion_id=job.id)
    await flows.conversions(ada).CancelConversion(cancelling)

    await flows.until(ada, job.id, *flows.FINISHED)
    found = (await assets.assets(ada).ListAssets(asset_pb2.ListAssetsRequest())).assets
    assert {each.id for each in found} == {person, garment}


@pytest.mark.parametrize("body", [b'{"id": "\\ud800"}', b'{"id": "\xed\xa0\x80"}'])
async def test_a_callback_with_half_a_character_names_no_call(suite: Suite, body: bytes) -> None:
    suite.overrides |= {"fashn_api_key": "k" * 20, "providers": {"conversion": ["fashn"]}}
    await flows.start(suite, working=False)
    web = suite.as_token(suite.keys.worker_token("web")).stub(provider_pb2_grpc.ProviderServiceStub)
    request = provider_pb2.DeliverCallbackRequest(provider="fashn", body=body)
    await refused(web.DeliverCallback(request), grpc.StatusCode.INVALID_ARGUMENT, "names no call")


class HugeFal(FalQueue):
    def poll(self, path: str) -> Answer:
        made = super().poll(path)
        if path.endswith("/status"):
            return made
        return Answer(made.status, made.body, {"x-fal-billable-units": "9" * 400})


class HugeReplicate(ReplicateQueue):
    def poll(self, path: str) -> Answer:
        name = path.rpartition("/")[2]
        answer = {"output": [self.picture_url], "metrics": {"predict_time": 10**400}}
        return Answer(200, self.prediction(name, status="succeeded", **answer))


@pytest.mark.long
@pytest.mark.parametrize(("name", "kind"), [("fal", HugeFal), ("replicate", HugeReplicate)])
async def test_an_absurd_figure_of_a_provider_costs_no_result(
    suite: Suite, tmp_path: Path, name: str, kind: Any
) -> None:
    made = pictures.person(tmp_path / "made.png", width=320)
    async with serving(kind(made)) as queue:
        configure(suite, queue.url, {"conversion": [name]})
        await flows.start(suite)
        ada = suite.client("ada")
        started = await try_on(ada, tmp_path)
        done = await flows.until(ada, started.id, *flows.FINISHED)
        calls: Sequence[Any] = await calls_of(ada, job_id=done.id)
        assert (done.error_class, len(queue.created), len(calls)) == ("", 1, 1)

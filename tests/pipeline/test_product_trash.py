"""What archive and trash of products promise: archived ones are hidden, deleted ones stop and can
come back, and a purge takes all that belongs to the product and lets go of its images."""

import asyncio
from datetime import timedelta
from typing import Any

import grpc
import pytest
from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import analysis_pb2, analysis_pb2_grpc, job_pb2
from atelier.pipeline.v1 import log_pb2, phase_pb2, product_pb2, review_pb2
from grpc import StatusCode

from services.pipeline import holding
from tests.assets import flows as assets
from tests.calls import refused
from tests.pipeline import flows
from tests.suite import Client, Suite

STOPPED = product_pb2.PRODUCT_STATE_STOPPED


@pytest.fixture
async def suite(own_suite: Suite) -> Suite:
    await own_suite.serve("assets", "pipeline")
    return own_suite


async def listed(client: Client, **fields: Any) -> list[str]:
    answer = await flows.products(client).ListProducts(product_pb2.ListProductsRequest(**fields))
    return [product.id for product in answer.products]


async def summary(client: Client, **fields: Any) -> product_pb2.GetSummaryResponse:
    answer: product_pb2.GetSummaryResponse = await flows.products(client).GetSummary(
        product_pb2.GetSummaryRequest(**fields)
    )
    return answer


def phase(client: Client, rpc: str, product_id: str, number: int = 1, **fields: Any) -> Any:
    message = getattr(phase_pb2, f"{rpc}Request")(product_id=product_id, phase=number, **fields)
    return getattr(flows.phases(client), rpc)(message)


def rows(suite: Suite, product_id: str) -> dict[str, int]:
    """Returns how many rows of a product each table has."""
    tables = ("product_images", "phases", "results", "reviews", "logs")
    counted = {
        table: suite.sql(
            f"SELECT count(*) FROM pipeline.{table} WHERE product_id = %s", (product_id,)
        )[0][0]
        for table in tables
    }
    of_id = "SELECT count(*) FROM pipeline.product_terms WHERE id = %s"
    return {**counted, "product_terms": suite.sql(of_id, (product_id,))[0][0]}


async def test_an_archived_product_is_hidden_and_goes_on(suite: Suite) -> None:
    await suite.work("pipeline")
    ada = suite.client("ada")
    asset = await assets.upload(ada, flows.photo())
    made = await flows.outside(ada, asset.id)
    archived = (await flows.change(ada, "ArchiveProduct", made.id)).product
    assert archived.HasField("archive_time")
    again = (await flows.change(ada, "ArchiveProduct", made.id)).product
    assert again == archived, "it is archived already"
    assert await listed(ada) == [] and await listed(ada, show_archived=True) == [made.id]
    counted = await summary(ada)
    assert (counted.total_products, counted.archived_products) == (0, 1)

    claimed = await flows.claim(ada, made.id, 1)
    await flows.complete(ada, claimed, flows.analysis("Coat"), confidence=0.9)
    await flows.change(ada, "UpdateProduct", made.id, name="x", update_mask={"paths": ["name"]})

    back = (await flows.change(ada, "UnarchiveProduct", made.id)).product
    assert not back.HasField("archive_time") and await listed(ada) == [made.id]
    assert (await summary(ada)).archived_products == 0


async def test_a_deleted_product_is_in_the_trash_and_comes_back(suite: Suite) -> None:
    ada, eve = suite.client("ada"), suite.client("eve")
    made = await flows.create(ada)
    deleted = (await flows.change(ada, "DeleteProduct", made.id, etag=made.etag)).product
    days = (deleted.expire_time.seconds - deleted.delete_time.seconds) / 86400
    assert days == 30 and deleted.state == STOPPED
    assert (await flows.change(ada, "DeleteProduct", made.id)).product == deleted
    assert await listed(ada, show_archived=True) == []
    assert await listed(ada, show_deleted=True) == [made.id]
    counted = await summary(ada)
    assert (counted.total_products, counted.stopped_products, counted.deleted_products) == (0, 0, 1)
    assert (await flows.get(ada, made.id)).product == deleted, "it can be read"

    for rpc in ("DeleteProduct", "UndeleteProduct", "PurgeProduct", "ArchiveProduct"):
        await refused(flows.change(eve, rpc, made.id), StatusCode.NOT_FOUND)

    back = (await flows.change(ada, "UndeleteProduct", made.id)).product
    assert not back.HasField("delete_time") and not back.HasField("expire_time")
    assert await listed(ada) == [made.id] and back.state == STOPPED
    retried = await phase(ada, "RetryPhase", made.id)
    assert retried.phase.state == phase_pb2.PHASE_STATE_PENDING
    await refused(flows.change(ada, "PurgeProduct", made.id, etag=made.etag), StatusCode.ABORTED)


async def test_nothing_of_a_deleted_product_changes_or_starts(suite: Suite) -> None:
    await suite.work("pipeline")
    ada = suite.client("ada")
    asset = await assets.upload(ada, flows.photo())
    made = await flows.outside(ada, asset.id)
    claimed = await flows.claim(ada, made.id, 1)
    await flows.change(ada, "DeleteProduct", made.id)

    forbidden = StatusCode.FAILED_PRECONDITION
    line = log_pb2.AppendLogRequest(product_id=made.id, level=log_pb2.LOG_LEVEL_INFO, message="x")
    for call in (
        flows.change(ada, "UpdateProduct", made.id, name="x", update_mask={"paths": ["name"]}),
        flows.change(ada, "AddProductImages", made.id, images=[{"asset_id": asset.id}]),
        flows.change(ada, "RemoveProductImages", made.id, asset_ids=[asset.id]),
        flows.change(ada, "ArrangeProductImages", made.id, asset_ids=[asset.id]),
        flows.change(ada, "ArchiveProduct", made.id),
        flows.change(ada, "UnarchiveProduct", made.id),
        phase(ada, "RetryPhase", made.id),
        flows.logs(ada).AppendLog(line),
    ):
        await refused(call, forbidden, "UndeleteProduct")
    await refused(phase(ada, "StartPhase", made.id), forbidden)
    await refused(phase(ada, "ClaimPhase", made.id), forbidden, "stopped")
    late = flows.complete(ada, claimed, flows.analysis("Coat"), confidence=0.9)
    assert (await refused(late, forbidden)).reason == "ATTEMPT_SUPERSEDED"


async def test_a_phase_that_waits_for_its_start_is_not_started_in_the_trash(suite: Suite) -> None:
    await suite.work("pipeline")
    ada = suite.client("ada")
    asset = await assets.upload(ada, flows.photo())
    made = await flows.outside(ada, asset.id, auto_advance=False)
    claimed = await flows.claim(ada, made.id, 1)
    await flows.complete(ada, claimed, flows.analysis("Coat"), confidence=0.9)
    deleted = (await flows.change(ada, "DeleteProduct", made.id)).product
    assert deleted.phases[1].state == phase_pb2.PHASE_STATE_PENDING, "nothing ran"
    start = phase(ada, "StartPhase", made.id, 2)
    await refused(start, StatusCode.FAILED_PRECONDITION, "UndeleteProduct")

    await flows.change(ada, "UndeleteProduct", made.id)
    assert (await phase(ada, "StartPhase", made.id, 2)).phase.due


async def test_a_review_of_a_deleted_product_is_withdrawn(suite: Suite) -> None:
    await suite.work("pipeline")
    ada = suite.client("ada")
    asset = await assets.upload(ada, flows.photo())
    made = await flows.outside(ada, asset.id)
    claimed = await flows.claim(ada, made.id, 1)
    await flows.complete(ada, claimed, flows.analysis("Coat"), confidence=0.4)
    [review] = (await flows.reviews(ada).ListReviews(review_pb2.ListReviewsRequest())).reviews
    await flows.change(ada, "DeleteProduct", made.id)
    [withdrawn] = (await flows.reviews(ada).ListReviews(review_pb2.ListReviewsRequest())).reviews
    assert withdrawn.state == review_pb2.REVIEW_STATE_WITHDRAWN
    submit = review_pb2.SubmitReviewRequest(
        review_id=review.id,
        etag=withdrawn.etag,
        decision=review_pb2.REVIEW_DECISION_APPROVE,
    )
    await refused(flows.reviews(ada).SubmitReview(submit), StatusCode.FAILED_PRECONDITION)

    # One that a worker opened while it was asked to stop is not decided either.
    suite.sql("UPDATE pipeline.reviews SET state = 'open' WHERE id = %s", (review.id,))
    claim = flows.reviews(ada).ClaimReview(review_pb2.ClaimReviewRequest(review_id=review.id))
    await refused(claim, StatusCode.FAILED_PRECONDITION, "UndeleteProduct")
    await refused(
        flows.reviews(ada).SubmitReview(submit),
        StatusCode.FAILED_PRECONDITION,
        "UndeleteProduct",
    )


async def test_a_purge_takes_everything_and_lets_go_of_the_images(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "_SETTLED_AFTER", timedelta(seconds=1))
    await suite.work("pipeline")
    ada = suite.client("ada")
    asset = await assets.upload(ada, flows.photo())
    made = await flows.outside(ada, asset.id)
    watching = flows.watch(ada, made.id)
    await watching.ready()
    claimed = await flows.claim(ada, made.id, 1)
    await flows.complete(ada, claimed, flows.analysis("Coat"), confidence=0.4)
    assert min(rows(suite, made.id).values()) > 0

    await flows.change(ada, "DeleteProduct", made.id)
    assert flows.held(suite, made.id) == {asset.id}, "it may come back"
    await flows.change(ada, "PurgeProduct", made.id)
    purged = await watching.until(lambda change: change.HasField("purged"))
    assert purged.purged.product_id == made.id
    await watching.close()
    assert set(rows(suite, made.id).values()) == {0}
    assert suite.sql("SELECT FROM pipeline.attempts") == []
    await flows.held_are(suite, made.id, [])
    await assets.assets(ada).DeleteAsset(asset_pb2.DeleteAssetRequest(asset_id=asset.id))

    for rpc in ("UndeleteProduct", "PurgeProduct", "DeleteProduct", "ArchiveProduct"):
        await refused(flows.change(ada, rpc, made.id), StatusCode.NOT_FOUND)
    async with asyncio.timeout(20):
        while suite.sql("SELECT FROM pipeline.product_releases"):
            await asyncio.sleep(0.05)


async def test_a_product_whose_phase_a_worker_runs_is_stopped_before_it_is_purged(
    suite: Suite,
) -> None:
    ada = suite.client("ada")
    made = await flows.create(ada)
    running = """
        UPDATE pipeline.phases SET state = 'running', started = true, attempt_number = 1
        WHERE product_id = %s AND number = 1
    """
    suite.sql(running, (made.id,))
    purge = flows.change(ada, "PurgeProduct", made.id)
    await refused(purge, StatusCode.FAILED_PRECONDITION, "DeleteProduct or StopPhase")

    deleted = (await flows.change(ada, "DeleteProduct", made.id)).product
    assert deleted.phases[0].stop_requested
    purge = flows.change(ada, "PurgeProduct", made.id)
    await refused(purge, StatusCode.FAILED_PRECONDITION, "is being stopped")
    stopped = "UPDATE pipeline.phases SET state = 'stopped' WHERE product_id = %s"
    suite.sql(stopped, (made.id,))
    await flows.change(ada, "PurgeProduct", made.id)


async def test_a_worker_purges_what_was_in_the_trash_long_enough(suite: Suite) -> None:
    ada = suite.client("ada")
    asset = await assets.upload(ada, flows.photo())
    old, young = [await flows.create(ada, asset.id) for _ in range(2)]
    for each in (old, young):
        await flows.change(ada, "DeleteProduct", each.id)
    suite.sql("UPDATE pipeline.products SET expires_at = now() WHERE id = %s", (old.id,))
    await suite.work("pipeline")
    async with asyncio.timeout(20):
        while len(await listed(ada, show_deleted=True)) > 1:
            await asyncio.sleep(0.02)
    assert await listed(ada, show_deleted=True) == [young.id]


async def test_a_watch_tells_each_step_of_the_trash(suite: Suite) -> None:
    await suite.work("pipeline")
    ada = suite.client("ada")
    watching = flows.Watching(
        flows.products(ada).WatchProducts(product_pb2.WatchProductsRequest(include_logs=True))
    )
    await watching.ready()
    made = await flows.create(ada)
    await flows.change(ada, "ArchiveProduct", made.id)
    await watching.until(lambda change: change.product.HasField("archive_time"))
    await flows.change(ada, "DeleteProduct", made.id)
    await watching.until(lambda change: change.product.HasField("delete_time"))
    await watching.until(lambda change: change.log.action == "product_deleted")
    await flows.change(ada, "PurgeProduct", made.id)
    await watching.until(lambda change: change.purged.product_id == made.id)
    await watching.close()


async def test_all_that_may_be_done_to_a_product_at_once_ends_without_a_deadlock(
    suite: Suite,
) -> None:
    await suite.work("pipeline")
    ada = suite.client("ada")
    a, b = [(await assets.upload(ada, assets.jpeg(64, 48, seed))).id for seed in (1, 2)]
    made = await flows.outside(ada, a)
    mask = {"paths": ["name"]}

    def round_of(number: int) -> list[Any]:
        return [
            flows.change(ada, "UpdateProduct", made.id, name=f"n{number}", update_mask=mask),
            flows.change(ada, "AddProductImages", made.id, images=[{"asset_id": b}]),
            flows.change(ada, "RemoveProductImages", made.id, asset_ids=[b]),
            flows.change(ada, "DeleteProduct", made.id),
            phase(ada, "ClaimPhase", made.id),
            phase(ada, "RetryPhase", made.id),
            phase(ada, "StopPhase", made.id),
            flows.change(ada, "UndeleteProduct", made.id),
        ]

    calls = [call for number in range(6) for call in round_of(number)]
    ends = await asyncio.gather(*calls, return_exceptions=True)
    codes = {end.code() for end in ends if isinstance(end, grpc.aio.AioRpcError)}
    assert codes <= {StatusCode.FAILED_PRECONDITION}, "a deadlock is ABORTED"
    others = [end for end in ends if isinstance(end, BaseException)]
    assert all(isinstance(end, grpc.aio.AioRpcError) for end in others)


@pytest.mark.long
async def test_a_phase_that_a_worker_runs_is_stopped_with_its_analysis_when_its_product_is_deleted(
    own_suite: Suite,
) -> None:
    suite = own_suite
    await suite.serve("assets", "conversions", "pipeline")
    await suite.work("pipeline")  # nobody runs the analysis
    ada = suite.client("ada")
    made = await flows.create(ada)
    watching = flows.watch(ada, made.id)
    await watching.until(flows.phase_is(1, phase_pb2.PHASE_STATE_RUNNING))
    analyses = ada.stub(analysis_pb2_grpc.AnalysisServiceStub)
    mine = analysis_pb2.ListAnalysesRequest(product_id=made.id)
    async with asyncio.timeout(20):
        while not (found := (await analyses.ListAnalyses(mine)).analyses):
            await asyncio.sleep(0.05)
    explain = product_pb2.ExplainProductRequest(product_id=made.id)
    said = (await flows.products(ada).ExplainProduct(explain)).summary
    assert f"its analysis {found[0].id} at conversions is PENDING" in said

    deleted = (await flows.change(ada, "DeleteProduct", made.id)).product
    assert deleted.phases[0].stop_requested and deleted.HasField("delete_time")
    await watching.until(flows.phase_is(1, phase_pb2.PHASE_STATE_STOPPED))
    await watching.close()
    [cancelled] = (await analyses.ListAnalyses(mine)).analyses
    assert cancelled.state == job_pb2.JOB_STATE_CANCELLED
    await flows.change(ada, "PurgeProduct", made.id)

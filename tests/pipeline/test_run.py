"""Products go through their phases: all services and workers are real, and one client only
watches."""

import asyncio

import pytest
from atelier.conversions.v1 import analysis_pb2, analysis_pb2_grpc, job_pb2
from atelier.pipeline.v1 import phase_pb2, product_pb2, result_pb2, review_pb2

from tests.assets import flows as asset_flows
from tests.pipeline import flows
from tests.suite import Client, Suite

RUNNING, COMPLETED = phase_pb2.PHASE_STATE_RUNNING, phase_pb2.PHASE_STATE_COMPLETED
BOOK = b"brand,model,marketplace,price,msrp,currency,link\nKesterholt,KH-4107,Marktplatz,149.90,189,EUR,https://m.example/1\n"


async def analyses_of(client: Client, product_id: str) -> list[analysis_pb2.Analysis]:
    stub = client.stub(analysis_pb2_grpc.AnalysisServiceStub)
    answer = await stub.ListAnalyses(analysis_pb2.ListAnalysesRequest(product_id=product_id))
    return list(answer.analyses)


async def cancel_first_analysis(client: Client, product_id: str) -> None:
    """Cancels the first analysis as soon as there is one. It polls, since no watch tells without a
    worker of conversions."""
    for _ in range(200):
        for analysis in await analyses_of(client, product_id):
            request = analysis_pb2.CancelAnalysisRequest(
                request_id=flows.request_id(), analysis_id=analysis.id
            )
            await client.stub(analysis_pb2_grpc.AnalysisServiceStub).CancelAnalysis(request)
            return
        await asyncio.sleep(0.05)
    raise AssertionError("no analysis was asked for")


@pytest.mark.long
async def test_an_owner_with_many_products_lets_another_ones_begin(suite: Suite) -> None:
    suite.overrides["worker_concurrency"] = 1
    await suite.serve("assets", "conversions", "pipeline")
    await suite.work("assets", "conversions")
    ada, bob = suite.client("ada"), suite.client("bob")

    for _ in range(5):
        await flows.create(ada)
    product = await flows.create(bob)

    watching = flows.watch(bob, product.id)
    await watching.ready()
    await suite.work("pipeline")
    await watching.until(flows.phase_is(1, COMPLETED))
    await watching.close()

    begun = [
        owner for (owner,) in suite.sql("SELECT owner FROM pipeline.attempts ORDER BY created_at")
    ]
    assert begun.index("user:bob") <= 2, begun


@pytest.mark.long
async def test_four_phases_run_while_a_client_only_watches(suite: Suite) -> None:
    await suite.serve("assets", "conversions", "pipeline")
    await suite.work("assets", "conversions")
    ada = suite.client("ada")
    await flows.price_book(ada).ImportPriceBook(flows.book(BOOK))
    first = await asset_flows.upload(ada, flows.photo())
    second = await asset_flows.upload(ada, flows.photo(2))

    created = await flows.create(ada, first.id, second.id)
    assert created.state == product_pb2.PRODUCT_STATE_UPLOADED
    assert [image.primary for image in created.images] == [True, False]

    watching = flows.watch(ada, created.id)
    await watching.ready()
    standing = len(watching.changes)
    await asyncio.sleep(1.5)
    assert len(watching.changes) == standing, "nothing works, so nothing changes"
    assert watching.changes[0].product.state == product_pb2.PRODUCT_STATE_UPLOADED

    await suite.work("pipeline")
    done = await watching.until(flows.product_is(product_pb2.PRODUCT_STATE_COMPLETED))
    await watching.close()
    assert not done.product.is_pipeline_running
    assert done.product.confidence > 0.8

    results = {}
    for number in (1, 2, 3, 4):
        running = watching.index(flows.phase_is(number, RUNNING))
        found = watching.index(lambda change, n=number: change.result.phase == n)  # type: ignore[misc]
        completed = watching.index(flows.phase_is(number, COMPLETED))
        assert running < found < completed
        results[number] = watching.changes[found].result

    too_early = suite.sql(
        "SELECT r.phase FROM pipeline.results r JOIN pipeline.attempts a ON a.outcome = 'succeeded'"
        " JOIN pipeline.phases p ON p.id = a.job_id AND p.number = r.phase WHERE r.created_at <="
        " a.created_at"
    )
    assert too_early == [], "RUNNING is committed before the result exists"

    analysis = results[1].value.product_analysis
    assert (analysis.name, list(analysis.brands)) == ("Canvas field jacket", ["Kesterholt"])
    assert (
        analysis.image_quality.score > 0.5
        and results[1].provider == "local"
        and results[1].evidence
    )

    market = results[2].value.market_research
    assert (market.marketplace.price.amount, market.msrp.amount, market.matched_by) == (
        149.9,
        189,
        "model",
    )

    assert results[3].value.seo_analysis.slug and results[3].value.seo_analysis.scores
    listing = results[4].value.product_listing
    assert (listing.price.amount, listing.price.currency, listing.price_source) == (
        189,
        "EUR",
        "supplied",
    )
    assert [image.asset_id for image in listing.images] == [first.id, second.id]
    assert {variant.preset for variant in listing.images[0].variants} == {
        "thumb",
        "small",
        "large",
        "avif",
    }

    held = suite.sql(
        "SELECT asset_id::text FROM assets.asset_references WHERE holder = %s",
        [f"pipeline/products/{created.id}"],
    )
    assert {row[0] for row in held} == {first.id, second.id}


@pytest.mark.long
async def test_a_low_confidence_waits_for_a_person(suite: Suite) -> None:
    await flows.everything(suite)
    ada = suite.client("ada")

    created = await flows.create(ada, stated=flows.UNSURE)
    watching = flows.watch(ada, created.id)
    waiting = await watching.until(flows.product_is(product_pb2.PRODUCT_STATE_AWAITING_REVIEW))
    assert waiting.product.requires_manual_review and not waiting.product.is_pipeline_running
    assert waiting.product.confidence < 0.8

    review = (await watching.until(lambda change: change.HasField("review"))).review
    assert review.model_confidence < 0.8 and review.evidence
    assert not review.model_value.product_analysis.name

    said = result_pb2.ProductAnalysis(
        name="Field jacket", model="KH-1", condition="used", brands=["Kesterholt"]
    )
    decided = await flows.reviews(ada).SubmitReview(
        review_pb2.SubmitReviewRequest(
            request_id=flows.request_id(),
            review_id=review.id,
            decision=review_pb2.REVIEW_DECISION_EDIT,
            value=result_pb2.PhaseValue(product_analysis=said),
            etag=review.etag,
        )
    )
    assert decided.phase.state == COMPLETED and decided.phase.confidence == 1

    done = await watching.until(flows.product_is(product_pb2.PRODUCT_STATE_COMPLETED))
    await watching.close()
    assert done.product.confidence == 1 and not done.product.requires_manual_review

    shown = await flows.get(ada, created.id)
    kept = shown.reviews[0]
    assert kept.state == review_pb2.REVIEW_STATE_EDITED and kept.decided_by == "ada"
    assert kept.model_value == review.model_value
    assert kept.reviewer_value.product_analysis == said

    effective = kept.effective_value.product_analysis
    assert (effective.name, effective.condition) == ("Field jacket", "used")
    assert effective.image_quality == review.model_value.product_analysis.image_quality
    assert shown.results[0].value == kept.effective_value

    assert (
        shown.results[0].source == result_pb2.RESULT_SOURCE_REVIEWER
        and shown.results[0].confidence == 1
    )
    assert "Field jacket" in shown.results[3].value.product_listing.title


@pytest.mark.long
async def test_a_running_phase_is_stopped_and_run_again(suite: Suite) -> None:
    await suite.serve("assets", "conversions", "pipeline")
    await suite.work("assets", "pipeline")  # no worker runs the analysis, so phase 1 stays RUNNING
    ada = suite.client("ada")

    created = await flows.create(ada)
    watching = flows.watch(ada, created.id)
    running = await watching.until(flows.phase_is(1, RUNNING))

    stop = phase_pb2.StopPhaseRequest(request_id=flows.request_id(), product_id=created.id, phase=1)
    answer = await flows.phases(ada).StopPhase(stop)
    assert answer.outcome == phase_pb2.STOP_OUTCOME_REQUESTED and answer.phase.stop_requested
    assert answer.phase.start_time == running.phase.start_time, "its attempt began before"
    await watching.until(flows.product_is(product_pb2.PRODUCT_STATE_STOPPED))
    assert (await flows.phases(ada).StopPhase(stop)).outcome == phase_pb2.STOP_OUTCOME_REQUESTED, (
        "a repeat"
    )

    [analysis] = await analyses_of(ada, created.id)
    assert analysis.state == job_pb2.JOB_STATE_CANCELLED

    again = phase_pb2.RetryPhaseRequest(
        request_id=flows.request_id(), product_id=created.id, phase=1
    )
    retried = await flows.phases(ada).RetryPhase(again)
    assert retried.phase.retry_count == 1 and retried.phase.due

    await suite.work("conversions")
    await watching.until(flows.product_is(product_pb2.PRODUCT_STATE_COMPLETED))
    await watching.close()
    assert len(await analyses_of(ada, created.id)) == 4, (
        "one per analysing phase, and the one that was stopped"
    )


@pytest.mark.long
async def test_a_failed_phase_is_an_error_until_it_is_retried(suite: Suite) -> None:
    await suite.serve("assets", "conversions", "pipeline")
    await suite.work("assets", "pipeline")
    ada = suite.client("ada")

    created = await flows.create(ada)
    watching = flows.watch(ada, created.id)
    await watching.until(flows.phase_is(1, RUNNING))
    await cancel_first_analysis(ada, created.id)

    await suite.work("conversions")
    failed = await watching.until(flows.product_is(product_pb2.PRODUCT_STATE_ERROR))
    assert (
        failed.product.error_class == "ANALYSIS_CANCELLED"
        and "phase 1" in failed.product.error_message
    )

    again = phase_pb2.RetryPhaseRequest(
        request_id=flows.request_id(), product_id=created.id, phase=1
    )
    await flows.phases(ada).RetryPhase(again)
    await watching.until(flows.product_is(product_pb2.PRODUCT_STATE_PROCESSING))
    done = await watching.until(flows.product_is(product_pb2.PRODUCT_STATE_COMPLETED))
    await watching.close()
    assert not done.product.error_class


@pytest.mark.long
async def test_many_products_run_side_by_side(suite: Suite) -> None:
    await flows.everything(suite)
    ada = suite.client("ada")
    image = (await asset_flows.upload(ada, flows.photo())).id
    done = await asyncio.gather(
        *(flows.create(ada, image, name=f"jacket {n}", wait=True) for n in range(3))
    )
    assert {product.state for product in done} == {product_pb2.PRODUCT_STATE_COMPLETED}

    summary = await flows.products(ada).GetSummary(product_pb2.GetSummaryRequest())
    assert (summary.total_products, summary.completed_products, summary.active_pipelines) == (
        3,
        3,
        0,
    )


@pytest.mark.long
async def test_conversions_may_be_away_for_a_while(suite: Suite) -> None:
    await suite.serve("assets", "conversions", "pipeline")
    await suite.stop("conversions")
    await suite.work("pipeline")
    ada = suite.client("ada")
    created = await flows.create(ada)
    watching = flows.watch(ada, created.id)
    waiting = await watching.until(
        lambda change: change.phase.due and change.phase.attempt_number == 1
    )
    assert waiting.phase.error_class == "DEPENDENCY_UNAVAILABLE"

    await suite.stop_work("pipeline")
    await suite.serve("conversions")
    await suite.work("assets", "conversions", "pipeline")
    await watching.until(flows.product_is(product_pb2.PRODUCT_STATE_COMPLETED))
    await watching.close()
    shown = (await flows.get(ada, created.id)).product.phases[0]
    assert not shown.error_class and shown.attempt_number >= 2

import asyncio
from typing import Any

import psycopg
from atelier.pipeline.v1 import phase_pb2, product_pb2, result_pb2, review_pb2
from google.protobuf.field_mask_pb2 import FieldMask
from grpc import StatusCode

from tests.assets import flows as asset_flows
from tests.calls import refused
from tests.pipeline import flows
from tests.suite import Client, Suite

SAID = flows.analysis(
    "Jacket",
    model="X-1",
    condition="new",
    brands=["Nobody's"],
    categories=["apparel", "jacket"],
    image_quality=result_pb2.ImageQuality(score=0.5),
)


async def unsure(suite: Suite) -> tuple[Client, str, review_pb2.Review]:
    """Returns a product whose phase 1 an outside worker was not sure of; all its phases are run
    from outside."""
    await suite.serve("assets", "pipeline")
    await suite.work("pipeline")
    ada = suite.client("ada")
    image = await asset_flows.upload(ada, flows.photo())
    created = await flows.outside(ada, image.id)
    evidence = [result_pb2.Evidence(name="sharpness", value=0.3, weight=1, note="blurred")]
    claimed = await flows.claim(ada, created.id, 1)
    await flows.complete(ada, claimed, SAID, confidence=0.42, evidence=evidence, provider="ours")
    return ada, created.id, (await listed(ada))[0]


async def listed(client: Client, **fields: Any) -> list[review_pb2.Review]:
    request = review_pb2.ListReviewsRequest(**fields)
    return list((await flows.reviews(client).ListReviews(request)).reviews)


def submit(
    review: review_pb2.Review, decision: str, **fields: object
) -> review_pb2.SubmitReviewRequest:
    number = review_pb2.ReviewDecision.Value(f"REVIEW_DECISION_{decision}")
    values = {
        "request_id": flows.request_id(),
        "review_id": review.id,
        "decision": number,
        **fields,
    }
    return review_pb2.SubmitReviewRequest(**values)  # type: ignore[arg-type]


async def test_an_approved_value_stands_and_the_next_phase_starts(suite: Suite) -> None:
    ada, product_id, review = await unsure(suite)
    assert review.state == review_pb2.REVIEW_STATE_OPEN and review.model_value == SAID
    assert round(review.model_confidence, 3) == 0.42 and review.evidence[0].note == "blurred"

    decided = await flows.reviews(ada).SubmitReview(submit(review, "APPROVE", note="looks right"))
    assert (
        decided.review.state == review_pb2.REVIEW_STATE_APPROVED
        and decided.review.effective_value == SAID
    )
    assert decided.review.decided_by == "ada" and decided.review.note == "looks right"

    shown = await flows.get(ada, product_id)
    assert shown.results[0].confidence == 1 and shown.results[0].provider == "ours"
    assert shown.product.confidence == 1 and shown.product.phases[1].due

    again = flows.reviews(ada).SubmitReview(submit(review, "APPROVE"))
    assert (
        await refused(again, StatusCode.FAILED_PRECONDITION, "it is approved already")
    ).metadata["state"]


async def test_an_edit_keeps_what_the_reviewer_did_not_touch(suite: Suite) -> None:
    ada, _, review = await unsure(suite)
    said = flows.analysis("", condition="used")
    decided = await flows.reviews(ada).SubmitReview(submit(review, "EDIT", value=said))
    effective = decided.review.effective_value.product_analysis
    assert (effective.name, effective.condition, effective.model) == ("Jacket", "used", "X-1")
    assert effective.image_quality.score == 0.5
    assert decided.review.model_value == SAID and decided.review.reviewer_value == said


async def test_a_mask_can_empty_a_field_that_the_model_made_up(suite: Suite) -> None:
    ada, _, review = await unsure(suite)
    said = flows.analysis("Coat", condition="used")
    wrong = submit(review, "EDIT", value=said, update_mask={"paths": ["colour"]})
    await refused(
        flows.reviews(ada).SubmitReview(wrong), StatusCode.INVALID_ARGUMENT, "is not a field"
    )

    masked = submit(review, "EDIT", value=said, update_mask={"paths": ["name", "brands"]})
    effective = (
        await flows.reviews(ada).SubmitReview(masked)
    ).review.effective_value.product_analysis
    assert (effective.name, list(effective.brands), effective.condition) == ("Coat", [], "new")


async def test_a_rejected_product_is_an_error_until_it_is_retried(suite: Suite) -> None:
    ada, product_id, review = await unsure(suite)
    decided = await flows.reviews(ada).SubmitReview(
        submit(review, "REJECT", note="another product")
    )
    assert decided.phase.state == phase_pb2.PHASE_STATE_FAILED

    product = (await flows.get(ada, product_id)).product
    assert product.error_class == "REVIEW_REJECTED" and "another product" in product.error_message
    again = phase_pb2.RetryPhaseRequest(product_id=product_id, phase=1)
    assert (await flows.phases(ada).RetryPhase(again)).phase.due


async def test_a_phase_that_is_sent_back_runs_again_and_may_ask_again(suite: Suite) -> None:
    ada, product_id, review = await unsure(suite)
    decided = await flows.reviews(ada).SubmitReview(submit(review, "SEND_BACK"))
    assert decided.phase.due and decided.phase.retry_count == 1

    await flows.complete(ada, await flows.claim(ada, product_id, 1), SAID, confidence=0.5)
    assert [r.state for r in await listed(ada)] == [
        review_pb2.REVIEW_STATE_OPEN,
        review_pb2.REVIEW_STATE_SENT_BACK,
    ]

    still_open = await listed(ada, state=review_pb2.REVIEW_STATE_OPEN, product_id=product_id)
    assert len(still_open) == 1


async def test_stopping_withdraws_the_open_review(suite: Suite) -> None:
    ada, product_id, review = await unsure(suite)
    await flows.phases(ada).StopPhase(phase_pb2.StopPhaseRequest(product_id=product_id, phase=1))
    assert (await listed(ada))[0].state == review_pb2.REVIEW_STATE_WITHDRAWN
    assert (await flows.get(ada, product_id)).product.state == product_pb2.PRODUCT_STATE_STOPPED
    late = flows.reviews(ada).SubmitReview(submit(review, "APPROVE"))
    await refused(late, StatusCode.FAILED_PRECONDITION, "withdrawn")


async def test_a_claimed_review_is_one_persons(suite: Suite) -> None:
    ada, _, review = await unsure(suite)
    bob = suite.client("bob", owner="user:ada")
    claim = review_pb2.ClaimReviewRequest(request_id=flows.request_id(), review_id=review.id)
    claimed = (await flows.reviews(bob).ClaimReview(claim)).review
    assert claimed.claimed_by == "bob" and claimed.HasField("claim_expire_time")

    hers = review_pb2.ClaimReviewRequest(request_id=flows.request_id(), review_id=review.id)
    info = await refused(
        flows.reviews(ada).ClaimReview(hers), StatusCode.FAILED_PRECONDITION, "bob has claimed it"
    )
    assert info.metadata["claimed_by"] == "bob"
    await refused(
        flows.reviews(ada).SubmitReview(submit(review, "APPROVE")), StatusCode.FAILED_PRECONDITION
    )

    stale = submit(review, "APPROVE", etag=review.etag)
    refusal = await refused(flows.reviews(bob).SubmitReview(stale), StatusCode.ABORTED)
    assert refusal.reason == "ETAG_MISMATCH"

    fresh = submit(review, "APPROVE", etag=claimed.etag)
    assert (await flows.reviews(bob).SubmitReview(fresh)).review.decided_by == "bob"


async def test_a_claim_that_has_passed_holds_nobody_up(suite: Suite) -> None:
    ada, _, review = await unsure(suite)
    bob = suite.client("bob", owner="user:ada")
    await flows.reviews(bob).ClaimReview(review_pb2.ClaimReviewRequest(review_id=review.id))

    await suite.change("UPDATE pipeline.reviews SET claim_expires_at = now() - interval '1 second'")
    assert (
        await flows.reviews(ada).SubmitReview(submit(review, "APPROVE"))
    ).review.decided_by == "ada"


async def test_a_decision_and_its_value_must_fit(suite: Suite) -> None:
    ada, _, review = await unsure(suite)
    service = flows.reviews(ada)
    await refused(
        service.SubmitReview(submit(review, "EDIT")), StatusCode.INVALID_ARGUMENT, "value is needed"
    )
    await refused(
        service.SubmitReview(submit(review, "APPROVE", value=SAID)), StatusCode.INVALID_ARGUMENT
    )
    await refused(
        service.SubmitReview(submit(review, "UNSPECIFIED")), StatusCode.INVALID_ARGUMENT, "decision"
    )

    market = result_pb2.PhaseValue(market_research=result_pb2.MarketResearch())
    wrong = submit(review, "EDIT", value=market)
    await refused(
        service.SubmitReview(wrong), StatusCode.INVALID_ARGUMENT, "needs product_analysis"
    )

    many = submit(review, "EDIT", value=SAID, update_mask=FieldMask(paths=["name"] * 101))
    await refused(service.SubmitReview(many), StatusCode.INVALID_ARGUMENT, "at most 100")
    unusable = submit(review, "EDIT", value=flows.analysis("two\nlines"))
    await refused(service.SubmitReview(unusable), StatusCode.INVALID_ARGUMENT, "one line")


async def test_an_approval_does_not_take_back_what_was_stated_while_it_was_open(
    suite: Suite,
) -> None:
    ada, product_id, review = await unsure(suite)
    await flows.change(
        ada, "UpdateProduct", product_id, update_mask={"paths": ["name"]}, name="Stated meanwhile"
    )

    await flows.reviews(ada).SubmitReview(submit(review, "APPROVE"))

    shown = await flows.get(ada, product_id)
    assert (shown.product.name, shown.product.model) == ("Stated meanwhile", "X-1")


async def test_an_edit_of_something_else_leaves_what_was_stated_while_it_was_open(
    suite: Suite,
) -> None:
    ada, product_id, review = await unsure(suite)
    await flows.change(
        ada, "UpdateProduct", product_id, update_mask={"paths": ["name"]}, name="Stated meanwhile"
    )

    value = result_pb2.PhaseValue(product_analysis=result_pb2.ProductAnalysis(condition="worn"))
    await flows.reviews(ada).SubmitReview(submit(review, "EDIT", value=value))

    product = (await flows.get(ada, product_id)).product
    assert (product.name, product.model) == ("Stated meanwhile", "X-1")


async def test_an_edit_counts_more_than_what_was_stated_before_it(suite: Suite) -> None:
    ada, product_id, review = await unsure(suite)
    await flows.change(
        ada, "UpdateProduct", product_id, update_mask={"paths": ["name"]}, name="Stated meanwhile"
    )

    value = flows.analysis("Decided later")
    await flows.reviews(ada).SubmitReview(submit(review, "EDIT", value=value))

    assert (await flows.get(ada, product_id)).product.name == "Decided later"


async def test_a_claim_that_waits_for_a_review_keeps_nobody_from_its_product(
    suite: Suite,
) -> None:
    ada, product_id, review = await unsure(suite)
    url = suite.cluster.url(suite.database)
    async with await psycopg.AsyncConnection.connect(url) as conn:
        await conn.execute("SELECT FROM pipeline.reviews WHERE id = %s FOR UPDATE", (review.id,))
        request = review_pb2.ClaimReviewRequest(review_id=review.id)
        claiming = asyncio.ensure_future(flows.reviews(ada).ClaimReview(request))
        while not suite.sql(
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = %s",
            (suite.database,),
        ):
            await asyncio.sleep(0.02)
        # As who submits the review or deletes the product does after that.
        await conn.execute(
            "SELECT FROM pipeline.products WHERE id = %s FOR UPDATE NOWAIT", (product_id,)
        )
        await conn.rollback()
        assert (await claiming).review.claimed_by == "ada"


async def test_a_deletion_locks_reviews_before_the_product(suite: Suite) -> None:
    ada, product_id, review = await unsure(suite)
    url = suite.cluster.url(suite.database)
    async with await psycopg.AsyncConnection.connect(url) as conn:
        await conn.execute("SELECT FROM pipeline.reviews WHERE id = %s FOR UPDATE", (review.id,))
        deleting = asyncio.ensure_future(flows.change(ada, "DeleteProduct", product_id))
        while not suite.sql(
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = %s",
            (suite.database,),
        ):
            await asyncio.sleep(0.02)
        await conn.execute(
            "SELECT FROM pipeline.products WHERE id = %s FOR UPDATE NOWAIT", (product_id,)
        )
        await conn.rollback()
        assert (await deleting).product.HasField("delete_time")

"""ExplainProduct says what a product waits for, who must act, and what to call."""

import asyncio
import uuid
from typing import Any

import pytest
from atelier.pipeline.v1 import phase_pb2, product_pb2, review_pb2
from grpc import StatusCode

from tests.assets import flows as assets
from tests.calls import refused
from tests.pipeline import flows
from tests.suite import Client, Suite


@pytest.fixture
async def suite(own_suite: Suite) -> Suite:
    await own_suite.serve("assets", "pipeline")
    return own_suite


async def explain(
    client: Client, product_id: str, **fields: Any
) -> product_pb2.ExplainProductResponse:
    answer: product_pb2.ExplainProductResponse = await flows.products(client).ExplainProduct(
        product_pb2.ExplainProductRequest(product_id=product_id, **fields)
    )
    return answer


async def first(client: Client, product_id: str, *words: str) -> product_pb2.ProductAnswer:
    """Returns the first answer that says what is wrong. The summary and the answer have these
    words."""
    explained = await explain(client, product_id)
    wrong = next(answer for answer in explained.answers if not answer.ok)
    said = f"{wrong.question} {wrong.answer} {wrong.next_step}"
    assert all(word in said for word in words), said
    assert explained.summary == f"{wrong.question} {wrong.answer}"
    return wrong


async def test_it_says_which_image_it_waits_for(suite: Suite) -> None:
    ada = suite.client("ada")
    ready = await assets.upload(ada, flows.photo())
    pending = (await assets.announce(ada, flows.photo(2))).asset.id
    made = await flows.create(ada, ready.id, pending, run_phases_externally=[1])
    wrong = await first(ada, made.id, "images ready", pending, "PENDING", "confirm the uploads")
    assert ready.id not in wrong.answer
    answers = (await explain(ada, made.id)).answers
    assert "starts by itself once the images are ready" in answers[1].answer
    assert "waits for phase 1" in answers[2].answer

    await suite.stop("assets")
    await first(ada, made.id, "assets can't be asked right now")


async def test_it_says_which_image_is_the_problem_and_how_to_mend_it(suite: Suite) -> None:
    await suite.work("pipeline")
    ada = suite.client("ada")
    missing = str(uuid.uuid4())
    made = await flows.create(ada, missing)
    watching = flows.watch(ada, made.id)
    await watching.until(flows.product_is(product_pb2.PRODUCT_STATE_ERROR))
    await watching.close()
    await first(ada, made.id, missing, "RemoveProductImages", "RetryPhase")


async def test_it_follows_a_product_through_its_phases(suite: Suite) -> None:
    await suite.work("pipeline")
    ada, eve = suite.client("ada"), suite.client("eve")
    asset = await assets.upload(ada, flows.photo())
    made = await flows.outside(ada, asset.id, auto_advance=False)
    await first(ada, made.id, "phase 1", "outside worker", "ClaimPhase")

    claimed = await flows.claim(ada, made.id, 1)
    await first(ada, made.id, "attempt 1 is under way", "lease", "HeartbeatPhase")

    await flows.complete(ada, claimed, flows.analysis("Coat"), confidence=0.4)
    [review] = (await flows.reviews(ada).ListReviews(review_pb2.ListReviewsRequest())).reviews
    await first(ada, made.id, "waits for a person", "0.40", review.id, "SubmitReview")
    claim = review_pb2.ClaimReviewRequest(review_id=review.id)
    taken = (await flows.reviews(ada).ClaimReview(claim)).review
    await first(ada, made.id, "ada has claimed it until")
    await flows.reviews(ada).SubmitReview(
        review_pb2.SubmitReviewRequest(
            review_id=review.id,
            etag=taken.etag,
            decision=review_pb2.REVIEW_DECISION_APPROVE,
        )
    )
    await first(ada, made.id, "phase 2", "auto_advance", "StartPhase")

    start = phase_pb2.StartPhaseRequest(product_id=made.id, phase=2)
    await flows.phases(ada).StartPhase(start)
    claimed = await flows.claim(ada, made.id, 2)
    await flows.phases(ada).FailPhase(
        phase_pb2.FailPhaseRequest(
            product_id=made.id,
            phase=2,
            attempt_token=claimed.attempt_token,
            error_class="NO_MARKET",
            error_message="the shop is closed",
        )
    )
    await first(ada, made.id, "phase 2", "NO_MARKET", "the shop is closed", "RetryPhase")

    await flows.change(ada, "ArchiveProduct", made.id)
    await first(ada, made.id, "in lists", "archived", "UnarchiveProduct")
    await flows.change(ada, "DeleteProduct", made.id)
    await first(ada, made.id, "deleted", "recovered until", "UndeleteProduct")

    await refused(explain(eve, made.id), StatusCode.NOT_FOUND)
    await refused(explain(ada, str(uuid.uuid4())), StatusCode.NOT_FOUND)
    admin = suite.client("root", "admin")
    assert (await explain(admin, made.id, owner="user:ada")) == await explain(ada, made.id)


async def test_it_says_what_a_phase_of_this_service_waits_for(suite: Suite) -> None:
    await suite.work("pipeline")
    ada = suite.client("ada")
    asset = await assets.upload(ada, flows.photo())
    made = await flows.create(ada, asset.id)  # conversions isn't there
    watching = flows.watch(ada, made.id)
    await watching.until(lambda change: change.phase.HasField("wait"))
    await watching.close()
    async with asyncio.timeout(20):
        while True:
            said = (await explain(ada, made.id)).summary
            if "waits for" in said:
                break
            await asyncio.sleep(0.05)
    assert "conversions" in said and "since" in said


async def test_a_stopped_phase_and_one_in_the_queue_are_explained(suite: Suite) -> None:
    await suite.work("pipeline")
    ada = suite.client("ada")
    asset = await assets.upload(ada, flows.photo())
    made = await flows.outside(ada, asset.id)
    stop = phase_pb2.StopPhaseRequest(product_id=made.id, phase=1)
    await flows.phases(ada).StopPhase(stop)
    await first(ada, made.id, "phase 1", "was stopped", "RetryPhase")
    await suite.stop_work("pipeline")
    suite.sql("UPDATE pipeline.phases SET external = false WHERE product_id = %s", (made.id,))
    retry = phase_pb2.RetryPhaseRequest(product_id=made.id, phase=1)
    await flows.phases(ada).RetryPhase(retry)
    await first(ada, made.id, "phase 1", "number 1 in the queue")


async def test_a_completed_product_has_nothing_wrong(suite: Suite) -> None:
    await suite.work("pipeline")
    ada = suite.client("ada")
    asset = await assets.upload(ada, flows.photo())
    made = await flows.outside(ada, asset.id)
    suite.sql(
        "UPDATE pipeline.phases SET state = 'completed', completed_at = now(), confidence = 0.9"
        " WHERE product_id = %s",
        (made.id,),
    )
    explained = await explain(ada, made.id)
    assert explained.summary == "all four phases are completed"
    assert all(answer.ok for answer in explained.answers)

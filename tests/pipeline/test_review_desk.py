import asyncio
from typing import Any

import pytest
from atelier.pipeline.v1 import (
    phase_pb2,
    review_desk_pb2,
    review_desk_pb2_grpc,
    review_pb2,
)
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode
from pydantic import ValidationError

from shared.rpc.paging import ANSWER_BYTES
from tests.assets import flows as asset_flows
from tests.calls import refused
from tests.pipeline import flows
from tests.pipeline.test_reviews import SAID, listed, submit, unsure
from tests.suite import Client, Suite


def desk(client: Client) -> Any:
    return client.stub(review_desk_pb2_grpc.ReviewDeskServiceStub)


async def following(client: Client, **fields: Any) -> review_desk_pb2.NextReviewResponse:
    request = review_desk_pb2.NextReviewRequest(request_id=flows.request_id(), **fields)
    answer: review_desk_pb2.NextReviewResponse = await desk(client).NextReview(request)
    return answer


async def report(client: Client, **fields: Any) -> review_desk_pb2.GetReviewReportResponse:
    request = review_desk_pb2.GetReviewReportRequest(**fields)
    answer: review_desk_pb2.GetReviewReportResponse = await desk(client).GetReviewReport(request)
    return answer


def team(suite: Suite, name: str) -> Client:
    return suite.client(name, owner="user:ada")


async def more(suite: Suite, ada: Client, confidence: float = 0.3) -> str:
    """Makes another product whose phase 1 has this confidence. Returns its id."""
    image = await asset_flows.upload(ada, flows.photo(2))
    created = await flows.outside(ada, image.id)
    claimed = await flows.claim(ada, created.id, 1)
    await flows.complete(ada, claimed, SAID, confidence=confidence, provider="ours")
    return created.id


async def explained(client: Client, review_id: str) -> review_desk_pb2.ExplainReviewResponse:
    request = review_desk_pb2.ExplainReviewRequest(review_id=review_id)
    answer: review_desk_pb2.ExplainReviewResponse = await desk(client).ExplainReview(request)
    return answer


async def test_the_next_review_comes_with_its_product_and_pictures_and_is_claimed(
    suite: Suite,
) -> None:
    ada, product_id, review = await unsure(suite)
    answer = await following(ada)
    assert answer.review.id == review.id and answer.review.claimed_by == "ada"
    assert answer.review.model_value == SAID and answer.review.evidence[0].note == "blurred"
    assert answer.product.id == product_id and answer.product.images[0].image_url
    assert (await following(ada)).review.id == review.id  # the one that she holds

    bob = team(suite, "bob")
    nothing = await following(bob)
    assert not nothing.HasField("review") and nothing.others == 1
    assert (await following(ada, phase=2)).others == 0

    his = review_desk_pb2.ReleaseReviewRequest(review_id=review.id)
    await refused(desk(bob).ReleaseReview(his), StatusCode.FAILED_PRECONDITION, "ada has claimed")
    freed = (await desk(ada).ReleaseReview(his)).review
    assert not freed.claimed_by and not freed.HasField("claim_expire_time")
    assert (await following(bob)).review.claimed_by == "bob"

    await suite.change("UPDATE pipeline.reviews SET claim_expires_at = now() - interval '1 s'")
    assert (await following(ada)).review.claimed_by == "ada"


async def test_the_largest_review_comes_with_its_product(suite: Suite) -> None:
    ada, product_id, _ = await unsure(suite)
    await suite.change(
        "UPDATE pipeline.reviews SET model_value = jsonb_build_object('product_analysis',"
        " jsonb_build_object('brands', (SELECT jsonb_agg(repeat('\U0001f9e5', 300))"
        " FROM generate_series(1, 416))))"
    )
    answer = await following(ada)
    assert answer.product.id == product_id
    assert answer.review.ByteSize() > 490_000 and answer.ByteSize() < ANSWER_BYTES / 2


async def test_twenty_persons_at_once_get_twenty_reviews(suite: Suite) -> None:
    ada, _, review = await unsure(suite)
    await suite.change("ALTER TABLE pipeline.reviews DISABLE TRIGGER USER")
    await suite.change("DROP INDEX pipeline.reviews_open")
    await suite.change(
        "INSERT INTO pipeline.reviews (id, owner, product_id, phase_id, phase, model_value,"
        " model_confidence) SELECT gen_random_uuid(), owner, product_id, phase_id, phase,"
        " model_value, model_confidence FROM pipeline.reviews, generate_series(1, 19)"
    )

    persons = [team(suite, f"person{number}") for number in range(20)]
    answers = await asyncio.gather(*map(following, persons))
    assert len({answer.review.id for answer in answers}) == 20
    assert review.id in {answer.review.id for answer in answers}
    assert (await following(ada)).others == 20


async def test_filters_tell_who_has_a_review_and_what_is_overdue(suite: Suite) -> None:
    ada, _, review = await unsure(suite)
    assert review.HasField("due_time") and not await listed(ada, overdue=True)
    await suite.change("UPDATE pipeline.reviews SET due_at = now() - interval '1 s'")
    assert len(await listed(ada, overdue=True, phase=1)) == 1
    assert not await listed(ada, phase=2) and not await listed(ada, sample=True)

    bob = team(suite, "bob")
    held = [review_pb2.REVIEW_HOLDER_ME, review_pb2.REVIEW_HOLDER_ANYBODY]
    nobody = review_pb2.REVIEW_HOLDER_NOBODY
    assert [len(await listed(bob, holder=each)) for each in (*held, nobody)] == [0, 0, 1]
    await following(bob)
    assert [len(await listed(bob, holder=each)) for each in (*held, nobody)] == [1, 1, 0]
    assert [len(await listed(ada, holder=each)) for each in (*held, nobody)] == [0, 1, 0]

    admin = suite.client("olga", role="admin")
    assert len(await listed(admin, owner="user:ada", overdue=True)) == 1
    request = review_pb2.ListReviewsRequest(owner="user:ada")
    await refused(
        flows.reviews(suite.client("eve")).ListReviews(request), StatusCode.NOT_FOUND, "owner"
    )


async def test_two_persons_have_to_agree_and_a_third_settles(suite: Suite) -> None:
    suite.overrides["review_decisions"] = 2
    ada, product_id, review = await unsure(suite)
    bob, cleo = team(suite, "bob"), team(suite, "cleo")
    first = await flows.reviews(ada).SubmitReview(submit(review, "APPROVE", note="fine"))
    assert first.review.state == review_pb2.REVIEW_STATE_OPEN and first.review.decisions_made == 1
    assert first.phase.state == phase_pb2.PHASE_STATE_AWAITING_REVIEW

    again = flows.reviews(ada).SubmitReview(submit(review, "REJECT"))
    await refused(again, StatusCode.FAILED_PRECONDITION, "you have decided it already")
    claim = review_pb2.ClaimReviewRequest(review_id=review.id)
    await refused(flows.reviews(ada).ClaimReview(claim), StatusCode.FAILED_PRECONDITION, "already")
    assert (await following(ada)).others == 1
    assert "you have decided" in (await explained(ada, review.id)).summary

    old = submit(review, "APPROVE", etag=review.etag)
    await refused(flows.reviews(bob).SubmitReview(old), StatusCode.ABORTED)
    edit = submit(review, "EDIT", value=flows.analysis("Coat"))
    second = (await flows.reviews(bob).SubmitReview(edit)).review
    assert second.state == review_pb2.REVIEW_STATE_OPEN and second.disputed

    third = await flows.reviews(cleo).SubmitReview(
        submit(review, "EDIT", value=flows.analysis("Coat"))
    )
    assert third.review.state == review_pb2.REVIEW_STATE_EDITED
    assert third.review.effective_value.product_analysis.name == "Coat"
    assert (await flows.get(ada, product_id)).product.phases[1].due

    request = review_desk_pb2.ListReviewDecisionsRequest(review_id=review.id)
    decisions = (await desk(ada).ListReviewDecisions(request)).decisions
    assert [each.decided_by for each in decisions] == ["cleo", "bob", "ada"]
    assert decisions[2].note == "fine" and decisions[2].effective_value == SAID


async def test_of_two_persons_at_once_one_decides(suite: Suite) -> None:
    ada, _, review = await unsure(suite)
    calls = [
        flows.reviews(each).SubmitReview(submit(review, "APPROVE"))
        for each in (ada, team(suite, "bob"))
    ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(each, review_pb2.SubmitReviewResponse) for each in answers) == 1


async def test_a_sample_of_what_the_model_is_sure_of_shows_its_misses(suite: Suite) -> None:
    suite.overrides["review_sample"] = 1
    suite.overrides["review_below_analysis"] = 0.6
    ada, _, _ = await unsure(suite)  # 0.42
    await more(suite, ada, 0.7)
    [sample] = await listed(ada, sample=True)
    assert round(sample.model_confidence, 2) == 0.7
    edit = submit(sample, "EDIT", value=flows.analysis("Coat"))
    decided = await flows.reviews(ada).SubmitReview(edit)
    assert decided.phase.state == phase_pb2.PHASE_STATE_COMPLETED  # nobody is asked twice

    total = (await report(ada)).total
    by = {round(each.threshold, 2): each for each in total.thresholds}
    assert len(by) == 10 and (total.results, total.decided) == (2, 1)
    assert (by[0.5].reviewed, by[0.5].load, by[0.5].passed) == (1, 0.5, 1)
    assert (by[0.5].checked, by[0.5].wrong, by[0.5].sampled_wrong) == (1, 1, 1)
    assert by[0.5].miss_rate == 1 and "1 cases" in by[0.5].caution
    assert (by[0.75].reviewed, by[0.75].passed) == (2, 0)
    assert not by[0.75].HasField("miss_rate")

    [group] = (await report(suite.client("olga", role="admin"), phase=1)).by_provider
    assert (group.phase, group.provider, group.results) == (1, "ours", 2)
    assert (await report(ada, provider="others")).total.results == 0


async def test_a_report_is_about_a_time_and_an_owner_that_are_there(suite: Suite) -> None:
    await suite.serve("assets", "pipeline")
    ada = suite.client("ada")
    empty = await report(ada)
    assert empty.total.results == 0 and not empty.total.thresholds[0].HasField("load")

    late, early = Timestamp(seconds=2_000_000_000), Timestamp(seconds=1_000_000_000)
    backwards = report(ada, created_from=late, created_before=early)
    await refused(backwards, StatusCode.INVALID_ARGUMENT, "created_from", "swap")
    await refused(report(ada, owner="user:bob"), StatusCode.NOT_FOUND)


async def test_a_review_explains_who_must_act(suite: Suite) -> None:
    ada, product_id, review = await unsure(suite)
    await following(team(suite, "bob"))
    answer = await explained(ada, review.id)
    by = {finding.question: finding for finding in answer.findings}
    assert "bob" in answer.summary and "ReleaseReview" in by["who has it?"].next_step
    assert "phase 2" in by["what does it block?"].answer
    assert "due at" in by["is it overdue?"].answer

    stop = phase_pb2.StopPhaseRequest(product_id=product_id, phase=1)
    await flows.phases(ada).StopPhase(stop)
    gone = await explained(ada, review.id)
    assert "stopped" in gone.summary and gone.findings[0].next_step.startswith("RetryPhase")
    late = desk(ada).ReleaseReview(review_desk_pb2.ReleaseReviewRequest(review_id=review.id))
    await refused(late, StatusCode.FAILED_PRECONDITION, "withdrawn")


async def test_a_share_and_a_number_of_persons_have_limits(suite: Suite) -> None:
    for name, value in (("review_decisions", 6), ("review_sample", 1.5)):
        suite.overrides = {name: value}
        with pytest.raises(ValidationError, match=name):
            suite.settings("pipeline", "app")

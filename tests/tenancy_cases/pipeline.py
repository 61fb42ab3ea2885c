"""Cases for every rpc of pipeline. A worker runs until there is a review; rows that are made
afterwards stay pending."""

from dataclasses import dataclass

import grpc
from atelier.pipeline.v1 import (
    log_pb2,
    phase_pause_pb2,
    phase_pb2,
    price_book_pb2,
    product_pb2,
    result_pb2,
    review_desk_pb2,
    review_pb2,
)

from tests.assets import flows as assets
from tests.pipeline import flows
from tests.suite import Client, Suite
from tests.tenancy_cases import FORBIDDEN_BY_STATE, NOT_FOUND, Case, empty, nothing

PICTURE = assets.jpeg(64, 48)
TOKEN = "0190f3c0-0000-7000-8000-000000000000"


@dataclass
class Owned:
    """Rows of one owner."""

    asset_id: str
    product_id: str
    gone_id: str
    purged_id: str
    review_id: str
    unsure_id: str


async def prepare(suite: Suite, owner: Client, canary: str) -> Owned:
    asset = await assets.upload(owner, PICTURE, file_name=canary)
    # The owner has three products, so that a count of all owners' rows shows: CreateProduct and
    # UploadProduct give each of the others one of its own.
    product, gone, purged = [await flows.create(owner, asset.id, name=canary) for _ in range(3)]
    message = log_pb2.AppendLogRequest(
        product_id=product.id, level=log_pb2.LOG_LEVEL_INFO, message=canary
    )
    await flows.logs(owner).AppendLog(message)
    await flows.price_book(owner).ImportPriceBook(
        flows.book(f"name,price,currency\n{canary},1.00,EUR\n".encode())
    )
    await suite.work("pipeline")
    unsure = await flows.outside(owner, asset.id, name=canary)
    claimed = await flows.claim(owner, unsure.id, 1)
    await flows.complete(owner, claimed, flows.analysis(canary), confidence=0.4, provider="tests")
    await suite.stop_work("pipeline")
    [review] = (await flows.reviews(owner).ListReviews(review_pb2.ListReviewsRequest())).reviews
    return Owned(asset.id, product.id, gone.id, purged.id, review.id, unsure.id)


_PRODUCTS = "atelier.pipeline.v1.ProductService."
_PHASES = "atelier.pipeline.v1.PhaseService."
_PAUSES = "atelier.pipeline.v1.PhasePauseService."
_REVIEWS = "atelier.pipeline.v1.ReviewService."
_DESK = "atelier.pipeline.v1.ReviewDeskService."
_LOGS = "atelier.pipeline.v1.LogService."
_BOOK = "atelier.pipeline.v1.PriceBookService."

CASES = {
    _PRODUCTS + "CreateProduct": Case(
        lambda o: product_pb2.CreateProductRequest(
            request_id="create", images=[product_pb2.NewImage(asset_id=o.asset_id, view="front")]
        ),
        # It is taken on, since images may come later. Only the worker finds that this one never
        # comes.
        nothing,
    ),
    _PRODUCTS + "UploadProduct": Case(
        lambda o: [
            product_pb2.UploadProductRequest(head={"request_id": "upload", "name": "coat"}),
            product_pb2.UploadProductRequest(
                image={
                    "file_name": "a.jpg",
                    "mime_type": "image/jpeg",
                    "size_bytes": len(PICTURE),
                }
            ),
            product_pb2.UploadProductRequest(chunk=PICTURE),
        ],
        nothing,
    ),
    _PRODUCTS + "GetProduct": Case(
        lambda o: product_pb2.GetProductRequest(product_id=o.product_id, include_urls=True),
        NOT_FOUND,
    ),
    _PRODUCTS + "ListProducts": Case(
        lambda o: product_pb2.ListProductsRequest(include_urls=True), nothing
    ),
    _PRODUCTS + "GetSummary": Case(
        lambda o: product_pb2.GetSummaryRequest(), lambda answers: answers[0].total_products <= 2
    ),
    _PRODUCTS + "WatchProduct": Case(
        lambda o: product_pb2.WatchProductRequest(product_id=o.product_id), NOT_FOUND
    ),
    _PRODUCTS + "WatchProducts": Case(
        lambda o: product_pb2.WatchProductsRequest(include_logs=True), nothing
    ),
    _PRODUCTS + "ExplainProduct": Case(
        lambda o: product_pb2.ExplainProductRequest(product_id=o.product_id), NOT_FOUND
    ),
    _PRODUCTS + "UpdateProduct": Case(
        lambda o: product_pb2.UpdateProductRequest(
            request_id="update",
            product_id=o.product_id,
            auto_advance=True,
            update_mask={"paths": ["auto_advance"]},
        ),
        NOT_FOUND,
    ),
    _PRODUCTS + "AddProductImages": Case(
        lambda o: product_pb2.AddProductImagesRequest(
            request_id="add",
            product_id=o.product_id,
            images=[product_pb2.NewImage(asset_id=o.asset_id)],
        ),
        NOT_FOUND,
    ),
    _PRODUCTS + "RemoveProductImages": Case(
        lambda o: product_pb2.RemoveProductImagesRequest(
            request_id="remove", product_id=o.product_id, asset_ids=[TOKEN]
        ),
        NOT_FOUND,
    ),
    _PRODUCTS + "ArrangeProductImages": Case(
        lambda o: product_pb2.ArrangeProductImagesRequest(
            request_id="arrange", product_id=o.product_id, primary_asset_id=o.asset_id
        ),
        NOT_FOUND,
    ),
    _PRODUCTS + "ArchiveProduct": Case(
        lambda o: product_pb2.ArchiveProductRequest(request_id="archive", product_id=o.product_id),
        NOT_FOUND,
    ),
    _PRODUCTS + "UnarchiveProduct": Case(
        lambda o: product_pb2.UnarchiveProductRequest(
            request_id="unarchive", product_id=o.product_id
        ),
        NOT_FOUND,
    ),
    _PRODUCTS + "DeleteProduct": Case(
        lambda o: product_pb2.DeleteProductRequest(request_id="delete", product_id=o.gone_id),
        NOT_FOUND,
    ),
    _PRODUCTS + "UndeleteProduct": Case(
        lambda o: product_pb2.UndeleteProductRequest(
            request_id="undelete", product_id=o.product_id
        ),
        NOT_FOUND,
    ),
    _PRODUCTS + "PurgeProduct": Case(
        lambda o: product_pb2.PurgeProductRequest(request_id="purge", product_id=o.purged_id),
        NOT_FOUND,
    ),
    _PHASES + "StartPhase": Case(
        lambda o: phase_pb2.StartPhaseRequest(request_id="start", product_id=o.product_id, phase=4),
        NOT_FOUND,
        owner=FORBIDDEN_BY_STATE,
    ),
    _PHASES + "StopPhase": Case(
        lambda o: phase_pb2.StopPhaseRequest(request_id="stop", product_id=o.product_id, phase=4),
        NOT_FOUND,
        owner=FORBIDDEN_BY_STATE,
    ),
    _PHASES + "RetryPhase": Case(
        lambda o: phase_pb2.RetryPhaseRequest(request_id="retry", product_id=o.product_id, phase=4),
        NOT_FOUND,
        owner=FORBIDDEN_BY_STATE,
    ),
    _PHASES + "RerunPhase": Case(
        lambda o: phase_pb2.RerunPhaseRequest(request_id="rerun", product_id=o.product_id, phase=4),
        NOT_FOUND,
        owner=FORBIDDEN_BY_STATE,
    ),
    _PHASES + "BatchUpdatePhases": Case(
        lambda o: phase_pb2.BatchUpdatePhasesRequest(
            request_id="batch",
            action=phase_pb2.PHASE_ACTION_RERUN,
            phases=[phase_pb2.PhaseName(product_id=o.product_id, phase=4)],
        ),
        lambda answers: answers[0].results[0].error_reason == "NOT_FOUND",
    ),
    _PHASES + "ListPhaseAttempts": Case(
        lambda o: phase_pb2.ListPhaseAttemptsRequest(product_id=o.unsure_id, phase=1), NOT_FOUND
    ),
    _PHASES + "ListPastResults": Case(
        lambda o: phase_pb2.ListPastResultsRequest(product_id=o.unsure_id, phase=1), NOT_FOUND
    ),
    _PAUSES + "PausePhase": Case(
        lambda o: phase_pause_pb2.PausePhaseRequest(request_id="pause", phase=4, reason="tests"),
        NOT_FOUND,
        owner_role="admin",
    ),
    _PAUSES + "ResumePhase": Case(
        lambda o: phase_pause_pb2.ResumePhaseRequest(request_id="resume", phase=4),
        NOT_FOUND,
        owner_role="admin",
    ),
    _PAUSES + "ListPhasePauses": Case(lambda o: phase_pause_pb2.ListPhasePausesRequest(), nothing),
    _PHASES + "ClaimPhase": Case(
        lambda o: phase_pb2.ClaimPhaseRequest(request_id="claim", product_id=o.product_id, phase=4),
        NOT_FOUND,
        owner=FORBIDDEN_BY_STATE,
    ),
    _PHASES + "ClaimNextPhase": Case(
        lambda o: phase_pb2.ClaimNextPhaseRequest(request_id="next", owner="user:ada"),
        NOT_FOUND,
    ),
    _PHASES + "ExplainPhase": Case(
        lambda o: phase_pb2.ExplainPhaseRequest(product_id=o.product_id, phase=1), NOT_FOUND
    ),
    _PHASES + "HeartbeatPhase": Case(
        lambda o: phase_pb2.HeartbeatPhaseRequest(
            product_id=o.product_id, phase=4, attempt_token=TOKEN
        ),
        NOT_FOUND,
        owner=FORBIDDEN_BY_STATE,
    ),
    _PHASES + "CompletePhase": Case(
        lambda o: phase_pb2.CompletePhaseRequest(
            request_id="complete",
            product_id=o.product_id,
            phase=1,
            attempt_token=TOKEN,
            confidence=1.0,
            value=result_pb2.PhaseValue(product_analysis=result_pb2.ProductAnalysis(name="coat")),
        ),
        NOT_FOUND,
        owner=FORBIDDEN_BY_STATE,
    ),
    _PHASES + "FailPhase": Case(
        lambda o: phase_pb2.FailPhaseRequest(
            request_id="fail",
            product_id=o.product_id,
            phase=4,
            attempt_token=TOKEN,
            error_class="TESTS",
            error_message="none",
        ),
        NOT_FOUND,
        owner=FORBIDDEN_BY_STATE,
    ),
    _REVIEWS + "ListReviews": Case(lambda o: review_pb2.ListReviewsRequest(), empty("reviews")),
    _REVIEWS + "ClaimReview": Case(
        lambda o: review_pb2.ClaimReviewRequest(request_id="claim", review_id=o.review_id),
        NOT_FOUND,
    ),
    _REVIEWS + "SubmitReview": Case(
        lambda o: review_pb2.SubmitReviewRequest(
            request_id="submit",
            review_id=o.review_id,
            etag="0",
            decision=review_pb2.REVIEW_DECISION_APPROVE,
        ),
        NOT_FOUND,
        owner=grpc.StatusCode.ABORTED,  # the etag is an old one
    ),
    _DESK + "NextReview": Case(
        lambda o: review_desk_pb2.NextReviewRequest(request_id="next"),
        lambda answers: not answers[0].HasField("review"),
    ),
    _DESK + "ReleaseReview": Case(
        lambda o: review_desk_pb2.ReleaseReviewRequest(request_id="release", review_id=o.review_id),
        NOT_FOUND,
    ),
    _DESK + "ListReviewDecisions": Case(
        lambda o: review_desk_pb2.ListReviewDecisionsRequest(review_id=o.review_id),
        empty("decisions"),
    ),
    _DESK + "ExplainReview": Case(
        lambda o: review_desk_pb2.ExplainReviewRequest(review_id=o.review_id), NOT_FOUND
    ),
    _DESK + "GetReviewReport": Case(
        lambda o: review_desk_pb2.GetReviewReportRequest(),
        lambda answers: not answers[0].total.results,
    ),
    _LOGS + "ExportLogs": Case(
        lambda o: log_pb2.ExportLogsRequest(product_id=o.product_id), nothing
    ),
    _LOGS + "ListLogs": Case(
        lambda o: log_pb2.ListLogsRequest(product_id=o.product_id), empty("logs")
    ),
    _LOGS + "AppendLog": Case(
        lambda o: log_pb2.AppendLogRequest(
            request_id="append",
            product_id=o.product_id,
            level=log_pb2.LOG_LEVEL_INFO,
            message="hello",
        ),
        NOT_FOUND,
    ),
    _BOOK + "ImportPriceBook": Case(
        lambda o: price_book_pb2.ImportPriceBookRequest(
            request_id="import", csv=b"name,price,currency\ncoat,2.00,EUR\n", replace=True
        ),
        nothing,
    ),
    _BOOK + "ListPriceBookEntries": Case(
        lambda o: price_book_pb2.ListPriceBookEntriesRequest(),
        lambda answers: {entry.name for entry in answers[0].entries} <= {"coat"},
    ),
    _BOOK + "DeletePriceBookEntries": Case(
        lambda o: price_book_pb2.DeletePriceBookEntriesRequest(request_id="delete", all=True),
        lambda answers: answers[0].deleted <= 1,  # the caller's own coat, imported above
    ),
}

"""ReviewDeskService: hands out reviews, shows decisions, explains a review, and reports figures."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from atelier.pipeline.v1 import product_pb2, review_desk_pb2_grpc
from atelier.pipeline.v1 import review_desk_pb2 as pb
from grpc.aio import ServicerContext

from services.pipeline import (
    claiming,
    decision_rows,
    explain_review,
    log_rows,
    phase_rows,
    product_rows,
    review_report,
    review_rows,
    rules,
)
from services.pipeline.decision_rows import DECISIONS, Decision
from services.pipeline.review_rows import REVIEWS, Review
from shared.database import states
from shared.database.db import Database, Mutation
from shared.database.ids import parse_id
from shared.database.lists import Listing
from shared.database.rows import Statement
from shared.rpc import auth, errors, paging
from shared.rpc.calls import Peers
from shared.rpc.protos import time_of


@dataclass(slots=True)
class _Found:
    """A review to hand out, locked."""

    id: UUID
    due_at: datetime | None


# The condition on the state is that of the indexes reviews_held and reviews_next.
_OPEN = (
    "r.owner = %(owner)s AND r.state = 'open' AND (%(phase)s::int = 0 OR r.phase = %(phase)s)"
    " AND p.deleted_at IS NULL"
)
_FROM = "reviews r JOIN products p ON p.id = r.product_id"
# What somebody has locked is passed over.
_FIRST = (
    "ORDER BY r.due_at, r.created_at, r.id LIMIT 1"
    " FOR UPDATE OF r SKIP LOCKED FOR KEY SHARE OF p SKIP LOCKED"
)
_LOCK_HELD = Statement(
    _Found,
    f"""
    SELECT r.id, r.due_at FROM {_FROM}
    WHERE {_OPEN} AND r.claimed_by <> '' AND r.claimed_by = %(actor)s
        AND r.claim_expires_at > now()
    {_FIRST}
""",
)
_LOCK_NEXT = Statement(
    _Found,
    f"""
    SELECT r.id, r.due_at FROM {_FROM}
    WHERE {_OPEN} AND (r.claim_expires_at IS NULL OR r.claim_expires_at <= now())
        AND NOT EXISTS (SELECT FROM review_decisions d
            WHERE d.review_id = r.id AND d.decided_by = %(actor)s)
    {_FIRST}
""",
)
_COUNT_OPEN = Statement(int, f"SELECT count(*) AS number FROM {_FROM} WHERE {_OPEN}")
_DECISIONS = Listing(DECISIONS, Decision)


class ReviewDeskService(review_desk_pb2_grpc.ReviewDeskServiceServicer):
    def __init__(self, db: Database, peers: Peers) -> None:
        self._db = db
        self._peers = peers

    async def NextReview(
        self, request: pb.NextReviewRequest, context: ServicerContext
    ) -> pb.NextReviewResponse:
        async def work(m: Mutation) -> pb.NextReviewResponse:
            who = {"owner": m.owner, "actor": m.actor, "phase": request.phase}
            found = await m.first(_LOCK_HELD, who) or await m.first(_LOCK_NEXT, who)
            if found is None:
                return pb.NextReviewResponse(others=await m.one(_COUNT_OPEN, who))
            row = await claiming.claim(m, found.id, request.minutes)
            return pb.NextReviewResponse(
                review=review_rows.to_proto(row), product=await _product(m, row.product_id)
            )

        answer = await self._db.mutate(request, pb.NextReviewResponse, work)
        await self._add_urls(answer.product)
        return answer

    async def ReleaseReview(
        self, request: pb.ReleaseReviewRequest, context: ServicerContext
    ) -> pb.ReleaseReviewResponse:
        review_id = parse_id(request.review_id, "review_id")

        async def work(m: Mutation) -> pb.ReleaseReviewResponse:
            row: Review = await review_rows.lock_open(m, review_id)
            if row.claim_expires_at is not None:
                row = await states.move(
                    m,
                    rules.REVIEW_STATES,
                    REVIEWS,
                    row,
                    "open",
                    claimed_by="",
                    claim_expires_at=None,
                )
                await review_rows.publish(m, row)
                text = f"{m.actor} gave the review back"
                await log_rows.add(m, row.product_id, row.phase, "review_released", text)
            return pb.ReleaseReviewResponse(review=review_rows.to_proto(row))

        return await self._db.mutate(request, pb.ReleaseReviewResponse, work)

    async def ListReviewDecisions(
        self, request: pb.ListReviewDecisionsRequest, context: ServicerContext
    ) -> pb.ListReviewDecisionsResponse:
        auth.act_for(request.owner or auth.current().owner)
        page = paging.page(request)
        wanted = {"review_id": parse_id(request.review_id, "review_id")}
        rows = await self._db.all(*_DECISIONS.query(page, wanted))
        decisions, token = page.fill(rows, map(decision_rows.to_proto, rows))
        return pb.ListReviewDecisionsResponse(decisions=decisions, next_page_token=token)

    async def ExplainReview(
        self, request: pb.ExplainReviewRequest, context: ServicerContext
    ) -> pb.ExplainReviewResponse:
        actor = auth.current().actor
        auth.act_for(request.owner or auth.current().owner)
        review_id = parse_id(request.review_id, "review_id")
        about = {"id": review_id, "actor": actor}
        row = await self._db.first(explain_review.SELECT_EXPLAINED, about)
        if row is None:
            raise errors.not_found("review", review_id)
        return explain_review.explain(row, actor, is_admin=auth.current().role == "admin")

    async def GetReviewReport(
        self, request: pb.GetReviewReportRequest, context: ServicerContext
    ) -> pb.GetReviewReportResponse:
        first, before = (
            time_of(getattr(request, name), request.HasField(name), name)
            for name in ("created_from", "created_before")
        )
        if first and before and first > before:
            raise errors.invalid("created_from", "comes after created_before; swap the two")
        about = {
            "created_from": first,
            "created_before": before,
            "phase": request.phase,
            "provider": request.provider,
        }
        return await review_report.read(self._db, request.owner, about)

    async def _add_urls(self, product: product_pb2.Product) -> None:
        """Sets the URLs of images whose asset is READY and still exists."""
        found = await self._peers.assets((image.asset_id for image in product.images), urls=True)
        for image in product.images:
            if asset := found.get(image.asset_id):
                image.image_url, image.thumbnail_url = asset.original_url, asset.thumbnail_url


async def _product(m: Mutation, product_id: UUID) -> product_pb2.Product:
    mine = {"id": product_id, "ids": [product_id]}
    product = await m.one(product_rows.SELECT_PRODUCT, mine)
    images = await m.all(product_rows.SELECT_IMAGES, mine)
    phases = await m.all(phase_rows.SELECT_PHASES, mine)
    return product_rows.to_proto(product, images, phases, with_facts=True)

"""The calls of PhaseService that show what was before: attempts, and results that were replaced."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from atelier.pipeline.v1 import phase_pb2 as pb
from atelier.pipeline.v1 import phase_pb2_grpc

from services.pipeline import product_rows, result_rows
from services.pipeline.sources import Finding
from shared.database.db import Database
from shared.database.ids import parse_id
from shared.database.rows import Statement, Table
from shared.rpc import errors, paging
from shared.rpc.protos import EnumNames, timestamp
from shared.rpc.server import Context

OUTCOMES = EnumNames(pb.AttemptOutcome, "ATTEMPT_OUTCOME_")


@dataclass(slots=True)
class _Attempt:
    id: UUID
    number: int
    worker: str
    outcome: str
    error_class: str
    error_message: str
    model: str
    credits: int
    created_at: datetime
    ended_at: datetime | None
    place: int  # among all attempts at the phase, in order


@dataclass(slots=True)
class PastResult:
    """A result that another replaced, at `created_at`."""

    id: UUID
    owner: str
    product_id: UUID
    phase: int
    value: dict[str, Any]  # JSON of a PhaseValue
    confidence: float | None
    source: str
    provider: str
    made_at: datetime
    created_at: datetime
    evidence: list[dict[str, Any]]  # JSON of Evidence
    findings: list[Finding]


PAST_RESULTS = Table("past_results", PastResult)
_ATTEMPTS = """
    SELECT id, number, worker, outcome, error_class, error_message, model, credits, created_at,
        ended_at, place
    FROM (
        SELECT id, number, worker, outcome, error_class, error_message, model, credits, created_at,
            ended_at, row_number() OVER (ORDER BY created_at, id) AS place FROM attempts
        WHERE job_id = (
            SELECT id FROM phases WHERE product_id = %(product_id)s AND number = %(phase)s)
    ) AS placed WHERE true
"""
_PAST = f"""
    SELECT {PAST_RESULTS.columns} FROM past_results
    WHERE product_id = %(product_id)s AND phase = %(phase)s
"""
_AFTER = "AND (created_at, id) < (%(after_at)s, %(after_id)s)"
_PAGE = "ORDER BY created_at DESC, id DESC LIMIT %(limit)s OFFSET %(skip)s"
_SELECT_ATTEMPTS = Statement(_Attempt, f"{_ATTEMPTS} {_PAGE}")
_SELECT_ATTEMPTS_AFTER = Statement(_Attempt, f"{_ATTEMPTS} {_AFTER} {_PAGE}")
_SELECT_PAST = Statement(PastResult, f"{_PAST} {_PAGE}")
_SELECT_PAST_AFTER = Statement(PastResult, f"{_PAST} {_AFTER} {_PAGE}")


class HistoryCalls(phase_pb2_grpc.PhaseServiceServicer):
    """Implements ListPhaseAttempts and ListPastResults of PhaseService."""

    _db: Database

    async def ListPhaseAttempts(
        self, request: pb.ListPhaseAttemptsRequest, context: Context
    ) -> pb.ListPhaseAttemptsResponse:
        page = paging.page(request)
        one = await self._one(request)
        statement = _SELECT_ATTEMPTS_AFTER if page.after else _SELECT_ATTEMPTS
        rows = await self._db.all(statement, {**one, **page.parameters})
        attempts, token = page.fill(rows, map(_attempt, rows))
        return pb.ListPhaseAttemptsResponse(attempts=attempts, next_page_token=token)

    async def ListPastResults(
        self, request: pb.ListPastResultsRequest, context: Context
    ) -> pb.ListPastResultsResponse:
        page = paging.page(request)
        one = await self._one(request)
        statement = _SELECT_PAST_AFTER if page.after else _SELECT_PAST
        rows = await self._db.all(statement, {**one, **page.parameters})
        results, token = page.fill(rows, map(_past, rows))
        return pb.ListPastResultsResponse(results=results, next_page_token=token)

    async def _one(
        self, request: pb.ListPhaseAttemptsRequest | pb.ListPastResultsRequest
    ) -> dict[str, object]:
        """Returns the phase that the request names. Raises NOT_FOUND."""
        product_id = parse_id(request.product_id, "product_id")
        if await self._db.first(product_rows.SELECT_ID, {"id": product_id}) is None:
            raise errors.not_found("product", product_id)
        return {"product_id": product_id, "phase": request.phase}


def _attempt(row: _Attempt) -> pb.PhaseAttempt:
    return pb.PhaseAttempt(
        id=str(row.id),
        number=row.number,
        worker=row.worker,
        outcome=OUTCOMES.number[row.outcome],
        error_class=row.error_class,
        error_message=row.error_message,
        model=row.model,
        credits=row.credits,
        start_time=timestamp(row.created_at),
        end_time=timestamp(row.ended_at),
        place=row.place,
    )


def _past(row: PastResult) -> pb.PastResult:
    return pb.PastResult(
        id=str(row.id),
        value=result_rows.value(row.value),
        confidence=row.confidence,
        source=result_rows.SOURCES.number[row.source],
        provider=row.provider,
        create_time=timestamp(row.made_at),
        replace_time=timestamp(row.created_at),
        evidence=result_rows.evidence(row.evidence),
        findings=result_rows.findings(row.findings),
    )

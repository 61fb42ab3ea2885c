"""HistoryCheckService: one method per call."""

from uuid import UUID

from atelier.techfiles.v1 import verification_pb2 as pb
from atelier.techfiles.v1 import verification_pb2_grpc

from services.techfiles.verifying import check_rows, finding_rows
from services.techfiles.verifying.check_rows import CHECKS, QUEUE, TASK, Check
from services.techfiles.verifying.finding_rows import FAULTS, FINDINGS, STATES, Finding
from services.techfiles.verifying.repairing import repair
from shared.background import jobs
from shared.database.db import Database, Mutation
from shared.database.ids import new_id, parse_id
from shared.database.lists import Listing
from shared.database.rows import Command, Statement
from shared.rpc import auth, errors, paging
from shared.rpc.errors import DomainError, Reason
from shared.rpc.server import Context

_SELECT_CHECK = Statement(Check, f"SELECT {CHECKS.columns} FROM history_checks WHERE id = %(id)s")
_SELECT_UNDER_WAY = Statement(
    UUID,
    """
    SELECT id FROM history_checks WHERE state IN ('pending', 'running')
        AND (owner = %(owner)s OR all_owners AND %(all_owners)s)
    ORDER BY id LIMIT 1
    """,
)
_INSERT_CHECK = Statement(
    Check,
    f"""
    INSERT INTO history_checks
        (id, owner, created_by, all_owners, record_digests, reached_owner)
    VALUES (%(id)s, %(owner)s, %(actor)s, %(all_owners)s, %(record_digests)s, %(reached)s)
    ON CONFLICT DO NOTHING RETURNING {CHECKS.columns}
    """,
)
_REQUEST_CANCEL = Command("""
    UPDATE history_checks SET cancel_requested = true, version = version + 1, updated_at = now()
    WHERE id = %(id)s AND state IN ('pending', 'running') AND NOT cancel_requested
""")
_LIST_CHECKS = Listing(CHECKS, Check)
_LIST_FINDINGS = Listing(FINDINGS, Finding)
_PAGE = "ORDER BY created_at DESC, id DESC LIMIT %(limit)s OFFSET %(skip)s"
_AFTER = "(created_at, id) < (%(after_at)s, %(after_id)s)"
_ALL_CHECKS = Statement(Check, f"SELECT {CHECKS.columns} FROM history_checks {_PAGE}")
_ALL_CHECKS_AFTER = Statement(
    Check, f"SELECT {CHECKS.columns} FROM history_checks WHERE {_AFTER} {_PAGE}"
)
_OF_CHECK = f"""
    SELECT {FINDINGS.columns} FROM history_findings
    WHERE check_id = %(check_id)s AND state = %(state)s
        AND (%(fault)s::text = '' OR fault = %(fault)s)
"""
_FINDINGS_OF_CHECK = Statement(Finding, f"{_OF_CHECK} {_PAGE}")
_FINDINGS_OF_CHECK_AFTER = Statement(Finding, f"{_OF_CHECK} AND {_AFTER} {_PAGE}")


class HistoryCheckService(verification_pb2_grpc.HistoryCheckServiceServicer):
    def __init__(self, db: Database, queue: jobs.JobQueue) -> None:
        self._db = db
        self._queue = queue

    async def VerifyHistory(
        self, request: pb.VerifyHistoryRequest, context: Context
    ) -> pb.VerifyHistoryResponse:
        _check_scope(request)
        if request.owner:
            auth.act_for(request.owner)

        async def work(m: Mutation) -> pb.VerifyHistoryResponse:
            columns = {
                "id": new_id(),
                "owner": m.owner,
                "actor": m.actor,
                "all_owners": request.all_owners,
                "record_digests": request.record_digests,
                "reached": "" if request.all_owners else m.owner,
            }
            row = await m.first(_INSERT_CHECK, columns)
            if row is None:
                other = await m.first(_SELECT_UNDER_WAY, columns)
                raise errors.precondition(
                    f"the check {other} is under way; wait until it is done, or cancel it"
                    " (CancelHistoryCheck)",
                    subject=f"history_checks/{other}",
                )
            await self._queue.enqueue(m, TASK, QUEUE, row.id, priority=jobs.BACKFILL)
            return pb.VerifyHistoryResponse(check=check_rows.to_proto(row))

        return await self._db.mutate(request, pb.VerifyHistoryResponse, work)

    async def GetHistoryCheck(
        self, request: pb.GetHistoryCheckRequest, context: Context
    ) -> pb.GetHistoryCheckResponse:
        check_id = parse_id(request.check_id, "check_id")
        row = await self._db.first(_SELECT_CHECK, {"id": check_id})
        if row is None:
            raise errors.not_found("check", check_id)
        return pb.GetHistoryCheckResponse(check=check_rows.to_proto(row))

    async def ListHistoryChecks(
        self, request: pb.ListHistoryChecksRequest, context: Context
    ) -> pb.ListHistoryChecksResponse:
        everybody = auth.current().role == "admin" and not request.owner
        if request.owner:
            auth.act_for(request.owner)
        page = paging.page(request)
        if everybody:
            statement = _ALL_CHECKS_AFTER if page.after else _ALL_CHECKS
            rows = await self._db.all(statement, page.parameters)
        else:
            rows = await self._db.all(*_LIST_CHECKS.query(page, {}))
        checks, token = page.fill(rows, map(check_rows.to_proto, rows))
        return pb.ListHistoryChecksResponse(checks=checks, next_page_token=token)

    async def CancelHistoryCheck(
        self, request: pb.CancelHistoryCheckRequest, context: Context
    ) -> pb.CancelHistoryCheckResponse:
        check_id = parse_id(request.check_id, "check_id")

        async def work(m: Mutation) -> pb.CancelHistoryCheckResponse:
            await m.run(_REQUEST_CANCEL, {"id": check_id})
            row = await m.first(_SELECT_CHECK, {"id": check_id})
            if row is None:
                raise errors.not_found("check", check_id)
            return pb.CancelHistoryCheckResponse(check=check_rows.to_proto(row))

        return await self._db.mutate(request, pb.CancelHistoryCheckResponse, work)

    async def ListHistoryFindings(
        self, request: pb.ListHistoryFindingsRequest, context: Context
    ) -> pb.ListHistoryFindingsResponse:
        operator = auth.current().role == "admin"
        if operator and not (request.owner or request.check_id):
            raise errors.invalid("check_id", "is needed by operators who name no owner")
        if request.owner:
            auth.act_for(request.owner)
        page = paging.page(request)
        wanted = {
            "check_id": parse_id(request.check_id, "check_id") if request.check_id else None,
            "state": STATES.word.get(request.state) or "open",
            "fault": FAULTS.word.get(request.fault) or "",
        }
        if operator and not request.owner:
            statement = _FINDINGS_OF_CHECK_AFTER if page.after else _FINDINGS_OF_CHECK
            rows = await self._db.all(statement, {**wanted, **page.parameters})
        else:
            rows = await self._db.all(*_LIST_FINDINGS.query(page, wanted))
        findings, token = page.fill(rows, map(finding_rows.to_proto, rows))
        return pb.ListHistoryFindingsResponse(findings=findings, next_page_token=token)

    async def RepairHistory(
        self, request: pb.RepairHistoryRequest, context: Context
    ) -> pb.RepairHistoryResponse:
        if request.owner:
            auth.act_for(request.owner)
        ids = [parse_id(each, f"finding_ids[{n}]") for n, each in enumerate(request.finding_ids)]

        async def work(m: Mutation) -> pb.RepairHistoryResponse:
            rows = await repair(m, ids)
            return pb.RepairHistoryResponse(findings=map(finding_rows.to_proto, rows))

        return await self._db.mutate(request, pb.RepairHistoryResponse, work)


def _check_scope(request: pb.VerifyHistoryRequest) -> None:
    operator = auth.current().role == "admin"
    if request.all_owners and not operator:
        text = "all_owners is for operators; leave it out to verify your own files"
        raise DomainError(Reason.ERROR_REASON_ROLE_NOT_ALLOWED, text)
    if request.all_owners and request.owner:
        raise errors.invalid("owner", "is left out with all_owners; choose one of them")
    if operator and not (request.all_owners or request.owner):
        raise errors.invalid("owner", "is needed of operators; or set all_owners")

"""PhasePauseService: pauses phases for everyone, resumes them and lists the pauses."""

from atelier.pipeline.v1 import phase_pause_pb2 as pb
from atelier.pipeline.v1 import phase_pause_pb2_grpc

from services.pipeline.phase_pause_rows import (
    ALL,
    PAUSES,
    SELECT_PAUSES,
    WAITS_FOR,
    PhasePause,
    to_proto,
)
from shared.background import jobs
from shared.database.db import Database, Mutation
from shared.database.rows import Statement
from shared.rpc.server import Context

_UPSERT_PAUSE = Statement(
    PhasePause,
    f"""
    INSERT INTO phase_pauses AS p (phase, reason, paused_by, ends_at)
    VALUES (%(phase)s, %(reason)s, %(actor)s,
        CASE WHEN %(hours)s > 0 THEN now() + make_interval(hours => %(hours)s) END)
    ON CONFLICT (phase) DO UPDATE SET reason = excluded.reason, paused_by = excluded.paused_by,
        ends_at = excluded.ends_at
    RETURNING {PAUSES.columns}
    """,
)
_DELETE_PAUSE = Statement(int, "DELETE FROM phase_pauses WHERE phase = %(phase)s RETURNING phase")


class PhasePauseService(phase_pause_pb2_grpc.PhasePauseServiceServicer):
    def __init__(self, db: Database) -> None:
        self._db = db

    async def PausePhase(
        self, request: pb.PausePhaseRequest, context: Context
    ) -> pb.PausePhaseResponse:
        async def work(m: Mutation) -> pb.PausePhaseResponse:
            values = {
                "phase": request.phase,
                "reason": request.reason,
                "actor": m.actor,
                "hours": request.hours,
            }
            return pb.PausePhaseResponse(pause=to_proto(await m.one(_UPSERT_PAUSE, values)))

        return await self._db.mutate(request, pb.PausePhaseResponse, work)

    async def ResumePhase(
        self, request: pb.ResumePhaseRequest, context: Context
    ) -> pb.ResumePhaseResponse:
        async def work(m: Mutation) -> pb.ResumePhaseResponse:
            gone = await m.all(_DELETE_PAUSE, {"phase": request.phase})
            return pb.ResumePhaseResponse(was_paused=bool(gone))

        answer = await self._db.mutate(request, pb.ResumePhaseResponse, work)
        await jobs.wake(self._db, WAITS_FOR)
        return answer

    async def ListPhasePauses(
        self, request: pb.ListPhasePausesRequest, context: Context
    ) -> pb.ListPhasePausesResponse:
        rows = await self._db.all(SELECT_PAUSES, ALL)
        return pb.ListPhasePausesResponse(pauses=map(to_proto, rows))

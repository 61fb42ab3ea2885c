"""ExplainTechFile: shows each condition that decides what the caller sees of a tech file, as a
question with its answer."""

from dataclasses import dataclass
from uuid import UUID

from atelier.techfiles.v1 import history_pb2 as pb
from atelier.techfiles.v1 import history_pb2_grpc

from services.techfiles.tech_file_rows import TECH_FILES, TechFile
from shared.database.db import Database
from shared.database.ids import parse_id
from shared.database.rows import Statement
from shared.rpc import errors
from shared.rpc.server import Context

_MOST_NAMED = 10  # collections


@dataclass(slots=True)
class _Explained(TechFile):
    """A file, and what the answers need to know of its slot and its run."""

    latest_id: UUID | None
    latest_number: int | None
    completed_id: UUID | None  # the live completed file of the slot with the highest number
    completed_number: int | None
    run_id: UUID | None
    run_state: str | None
    run_error: str | None
    run_waits_for: str | None


@dataclass(slots=True)
class _Collected:
    id: UUID
    name: str


_SELECT_FILE = Statement(
    _Explained,
    f"""
    SELECT {TECH_FILES.of("f")}, l.id AS latest_id, l.number AS latest_number,
        c.id AS completed_id, c.number AS completed_number, r.id AS run_id, r.state AS run_state,
        r.error_message AS run_error, r.waits_for AS run_waits_for
    FROM tech_files f
    LEFT JOIN tech_files l ON l.slot_id = f.slot_id AND l.is_latest
    LEFT JOIN LATERAL (
        SELECT id, number FROM tech_files
        WHERE slot_id = f.slot_id AND state = 'completed' AND archived_at IS NULL
            AND deleted_at IS NULL
        ORDER BY number DESC LIMIT 1) c ON true
    LEFT JOIN LATERAL (
        SELECT id, state, error_message, waits_for FROM runs
        WHERE f.batch_id <> '' AND owner = f.owner AND product_id = f.product_id
            AND batch_id = f.batch_id
        ORDER BY created_at DESC LIMIT 1) r ON true
    WHERE f.id = %(id)s
    """,
)
_SELECT_COLLECTIONS = Statement(
    _Collected,
    """
    SELECT c.id, c.name FROM collection_items i JOIN collections c ON c.id = i.collection_id
    WHERE i.tech_file_id = %(id)s ORDER BY c.created_at DESC, c.id DESC LIMIT %(limit)s
    """,
)


class ExplainCalls(history_pb2_grpc.HistoryServiceServicer):
    """Implements ExplainTechFile of HistoryService."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def ExplainTechFile(
        self, request: pb.ExplainTechFileRequest, context: Context
    ) -> pb.ExplainTechFileResponse:
        file_id = parse_id(request.tech_file_id, "tech_file_id")
        file = await self._db.first(_SELECT_FILE, {"id": file_id})
        if file is None:
            raise errors.not_found("tech file", request.tech_file_id)
        among = {"id": file_id, "limit": _MOST_NAMED + 1}
        findings = [
            _state(file),
            _archived(file),
            _latest(file),
            _latest_completed(file),
            _collections(await self._db.all(_SELECT_COLLECTIONS, among)),
            _origin(file),
        ]
        wrong = [finding for finding in findings if not finding.ok]
        summary = (
            f"{wrong[0].question} {wrong[0].answer}"
            if wrong
            else f"it is version {file.number}, completed, and the latest of its slot"
        )
        return pb.ExplainTechFileResponse(summary=summary, findings=findings)


def _finding(
    question: str, answer: str, next_step: str = "", *, who: str = "nobody", ok: bool = True
) -> pb.TechFileFinding:
    return pb.TechFileFinding(question=question, answer=answer, ok=ok, who=who, next_step=next_step)


def _running(file: _Explained) -> bool:
    return file.run_state in ("pending", "processing")


def _state(file: _Explained) -> pb.TechFileFinding:
    question = "is it completed?"
    if file.state == "completed":
        return _finding(question, "yes")
    if file.state == "failed":
        answer = f"no, it failed: {file.error_message or 'no reason was given'}"
        step = "CreateTechFile in the same slot, or GenerateTechPack, is the next attempt"
        return _finding(question, answer, step, who="you", ok=False)
    if _running(file):
        waits = f"; it waits for {file.run_waits_for}" if file.run_waits_for else ""
        answer = f"no, it is {file.state}, and the run {file.run_id} makes it{waits}"
        return _finding(
            question, answer, f"WatchTechPackRun of {file.run_id}", who="a worker", ok=False
        )
    answer = f"no, it is {file.state}, and no run makes it: whoever created it moves it on"
    return _finding(question, answer, "UpdateTechFileStatus", who="you", ok=False)


def _archived(file: _Explained) -> pb.TechFileFinding:
    question = "is it shown in lists?"
    if file.archived_at is None:
        return _finding(question, "yes, it isn't archived")
    answer = f"no, it was archived at {file.archived_at:%Y-%m-%d %H:%M} UTC"
    return _finding(question, answer, "UnarchiveTechFile", who="you", ok=False)


def _latest(file: _Explained) -> pb.TechFileFinding:
    question = "is it the latest of its slot?"
    if file.is_latest:
        return _finding(question, f"yes, version {file.number}")
    if file.latest_id is None:
        answer = "no, every file of its slot is archived"
        return _finding(question, answer, "UnarchiveTechFile", who="you", ok=False)
    answer = f"no, that is version {file.latest_number}, the file {file.latest_id}"
    step = f"GetTechFile of {file.latest_id}, or RestoreTechFileVersion of version {file.number}"
    return _finding(question, answer, step, who="you", ok=False)


def _latest_completed(file: _Explained) -> pb.TechFileFinding:
    question = "is it the latest completed one?"
    if file.completed_id == file.id:
        return _finding(question, "yes")
    if file.completed_id is None:
        return _finding(question, "no live file of its slot is completed")
    answer = f"no, that is version {file.completed_number}, the file {file.completed_id}"
    return _finding(question, answer, f"GetTechFile of {file.completed_id}")


def _collections(rows: list[_Collected]) -> pb.TechFileFinding:
    question = "which collections is it in?"
    if not rows:
        return _finding(question, "none, so no export prints it", "AddFiles puts it into one")
    named = ", ".join(f"{row.name} ({row.id})" for row in rows[:_MOST_NAMED])
    return _finding(question, named + (" and more" if len(rows) > _MOST_NAMED else ""))


def _origin(file: _Explained) -> pb.TechFileFinding:
    question = "where does it come from?"
    if file.restored_from is not None:
        return _finding(question, f"{file.created_by} restored version {file.restored_from}")
    if file.run_id is None:
        return _finding(question, f"{file.created_by} created or changed it; no run made it")
    answer = f"the run {file.run_id}, which is {file.run_state}"
    if file.run_error:
        answer += f": {file.run_error}"
    return _finding(question, answer, f"GetTechPackRun of {file.run_id}")

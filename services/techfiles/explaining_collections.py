"""ExplainCollection: shows each condition that decides what a collection shows and what can be made
of it, as a question with its answer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from atelier.techfiles.v1 import collection_pb2 as pb

from services.techfiles import collection_rows, rules, tech_file_rows
from services.techfiles.collection_rows import (
    SELECT_COLLECTION,
    STATES,
    SUM_FILES,
    Collection,
    Figures,
)
from services.techfiles.export_storage import ExportQuotas
from services.techfiles.trash_rows import SELECT_RUN_OF_COLLECTION
from shared.database.db import Database
from shared.database.rows import Statement
from shared.rpc import errors
from shared.rpc.errors import DomainError

_MOST_LEFT_OUT = 50


@dataclass(slots=True)
class _LeftOut:
    """A file of a collection that an export leaves out. `total`: how many there are."""

    id: UUID
    state: str
    error_message: str
    archived_at: datetime | None
    deleted_at: datetime | None
    total: int


@dataclass(slots=True)
class _Override:
    actor: str
    reason: str
    created_at: datetime


_SELECT_LEFT_OUT = Statement(
    _LeftOut,
    """
    SELECT f.id, f.state, f.error_message, f.archived_at, f.deleted_at, count(*) OVER () AS total
    FROM collection_items i JOIN tech_files f ON f.id = i.tech_file_id
    WHERE i.collection_id = %(id)s
        AND (f.state <> 'completed' OR f.archived_at IS NOT NULL OR f.deleted_at IS NOT NULL)
    ORDER BY i.section, i.display_order LIMIT %(limit)s
    """,
)
_SELECT_OVERRIDE = Statement(
    _Override,
    """
    SELECT actor, reason, created_at FROM collection_changes
    WHERE collection_id = %(id)s AND kind = 'progress' ORDER BY created_at DESC, id DESC LIMIT 1
    """,
)


class Explaining:
    def __init__(self, db: Database, quotas: ExportQuotas) -> None:
        self._db = db
        self._quotas = quotas

    async def explain(self, collection_id: UUID) -> pb.ExplainCollectionResponse:
        """Answers ExplainCollection. Raises NOT_FOUND."""
        named = {"id": collection_id}
        row = await self._db.first(SELECT_COLLECTION, named)
        if row is None:
            raise errors.not_found("collection", collection_id)
        figures = await self._db.all(SUM_FILES, {"ids": [row.id]})
        left_out = await self._db.all(_SELECT_LEFT_OUT, {**named, "limit": _MOST_LEFT_OUT})
        run_id = await self._db.first(SELECT_RUN_OF_COLLECTION, named)
        override = await self._db.first(_SELECT_OVERRIDE, named)
        refusal = await self._quota_refusal(row)
        findings = [
            *_of_itself(row),
            *_of_files(row, figures, run_id, override),
            *_of_export(figures, left_out, refusal),
        ]
        state, percent = rules.progress({f.state: f.files for f in figures if not f.archived})
        bad = next((finding for finding in findings if not finding.ok), None)
        return pb.ExplainCollectionResponse(
            collection=collection_rows.to_proto(row, figures),
            derived_state=STATES.number[state],
            derived_progress_percent=percent,
            files=map(_count, sorted(figures, key=lambda f: (f.archived, f.state))),
            findings=findings,
            left_out=map(_left_out, left_out),
            left_out_count=left_out[0].total if left_out else 0,
            exportable=row.deleted_at is None and refusal is None,
            summary=bad.answer if bad else "It can be exported, with all of its files.",
        )

    async def _quota_refusal(self, row: Collection) -> DomainError | None:
        try:
            async with self._db.transaction(row.owner) as m:
                await self._quotas.room(m)
        except DomainError as refusal:
            return refusal
        return None


def _finding(
    question: str, answer: str, *, ok: bool = True, next: str = ""
) -> pb.CollectionFinding:
    return pb.CollectionFinding(question=question, answer=answer, ok=ok, next_step=next)


def _of_itself(row: Collection) -> Iterator[pb.CollectionFinding]:
    question = "is it in lists?"
    if row.deleted_at and row.expires_at:
        answer = f"It is in the trash, and purged at {row.expires_at:%Y-%m-%d %H:%M} UTC."
        yield _finding(question, answer, ok=False, next="UndeleteCollection takes it out")
    elif row.archived_at:
        yield _finding(
            question, "It is archived.", ok=False, next="UnarchiveCollection shows it in lists"
        )
    else:
        yield _finding(question, "It is.")


def _of_files(
    row: Collection, figures: Sequence[Figures], run_id: UUID | None, override: _Override | None
) -> Iterator[pb.CollectionFinding]:
    states = {f.state: f.files for f in figures if not f.archived}
    state, percent = rules.progress(states)
    total = sum(states.values())
    ended = states.get("completed", 0) + states.get("failed", 0)
    derived = f"{ended} of {total} files that count have ended: {state}, {percent} percent."
    question = "where do its state and progress come from?"
    if row.progress_override is not None and override:
        shown = f"{row.state_override or state}, {row.progress_override} percent"
        why = f", because: {override.reason}" if override.reason else ""
        answer = f"{override.actor} set {shown}{why}. From the files it would be: {derived}"
        following = "SetCollectionProgress without `progress` shows what follows from the files"
        yield _finding(question, answer, next=following)
    else:
        yield _finding(question, f"They follow from its files: {derived}")
    question = "is anything still to come?"
    if run_id is not None:
        yield _finding(
            question,
            f"The run {run_id} fills it.",
            ok=False,
            next="WatchTechPackRun shows its steps; CancelTechPackRun stops it",
        )
    elif ended < total:
        yield _finding(
            question,
            f"{total - ended} files are PENDING or PROCESSING, and no run makes them.",
            ok=False,
            next="UpdateTechFileStatus says how each ended",
        )
    else:
        yield _finding(question, "No.")


def _of_export(
    figures: Sequence[Figures], left_out: Sequence[_LeftOut], refusal: DomainError | None
) -> Iterator[pb.CollectionFinding]:
    kept = sum(f.files for f in figures if f.state == "completed" and not f.archived)
    question = "what would an export hold?"
    if left_out:
        answer = f"{kept} files; it would leave out {left_out[0].total}, which `left_out` lists."
        yield _finding(question, answer, ok=False, next="see next_call of each")
    elif kept:
        yield _finding(question, f"All of its {kept} files.")
    else:
        yield _finding(
            question, "No file: only what the facts state.", ok=False, next="AddFiles adds some"
        )
    question = "is there room for another export?"
    if refusal:
        yield _finding(question, refusal.text, ok=False, next="PurgeExport makes room")
    else:
        yield _finding(question, "There is.")


def _count(figures: Figures) -> pb.CollectionFileCount:
    return pb.CollectionFileCount(
        state=tech_file_rows.STATES.number[figures.state],
        hidden=figures.archived,
        files=figures.files,
        credits=figures.credits,
    )


def _left_out(row: _LeftOut) -> pb.LeftOutFile:
    if row.deleted_at:
        reason, call = "it is in the trash", "UndeleteTechFile"
    elif row.archived_at:
        reason, call = "it is archived", "UnarchiveTechFile"
    elif row.state == "failed":
        reason, call = f"it failed: {row.error_message or 'nobody said why'}", "CreateTechFile"
    else:
        reason, call = f"it is {row.state}", "UpdateTechFileStatus"
    return pb.LeftOutFile(tech_file_id=str(row.id), reason=reason[:500], next_call=call)

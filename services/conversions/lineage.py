"""LineageService: what a picture was made from, by which jobs, and what was made of it."""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from atelier.assets.v1 import asset_pb2
from atelier.conversions.v1 import lineage_pb2 as pb
from atelier.conversions.v1 import lineage_pb2_grpc

from services.conversions import copy_rows
from services.conversions.attempt_rows import ATTEMPTS, OUTCOMES, Attempt
from services.conversions.copy_rows import PictureCopy
from services.conversions.job_kinds import KINDS
from services.conversions.job_rows import STATES, ModelJob
from services.conversions.trash_rows import PURGED_MAKERS, PurgedMaker
from shared.database.db import Database
from shared.database.ids import parse_id
from shared.database.rows import Statement
from shared.rpc import auth, errors
from shared.rpc.calls import Peers
from shared.rpc.protos import timestamp
from shared.rpc.server import Context

_JOBS = 50
_ATTEMPTS = 5  # of one job
_PICTURES = 1000


@dataclass(slots=True)
class _Edge:
    """A picture that went into a job, or came out of it, or a job that another one repeats."""

    job: str  # the table of the job
    job_id: UUID
    other_id: UUID
    role: str


_SELECT_INPUTS = Statement(
    _Edge,
    """
    SELECT job, job_id, asset_id AS other_id, role FROM job_inputs
    WHERE owner = %(owner)s AND job_id = ANY(%(ids)s) ORDER BY job_id, position
    """,
)
_SELECT_USES = Statement(
    _Edge,
    """
    SELECT DISTINCT ON (job_id) job, job_id, asset_id AS other_id, role FROM job_inputs
    WHERE owner = %(owner)s AND asset_id = ANY(%(ids)s) ORDER BY job_id, position LIMIT %(most)s
    """,
)
_MAKERS = """
    SELECT '{table}' AS job, id AS job_id, result_asset_id AS other_id, 'result' AS role
    FROM {table} WHERE owner = %(owner)s AND state = 'completed' AND {column} = ANY(%(ids)s)
"""
_PURGED = """
    UNION ALL SELECT job, job_id, result_asset_id AS other_id, 'result' AS role
    FROM purged_makers WHERE owner = %(owner)s AND {column} = ANY(%(ids)s)
"""
_SELECT_MAKERS = Statement(
    _Edge,
    " UNION ALL ".join(
        _MAKERS.format(table=table, column="result_asset_id")
        for table in ("conversions", "generations")
    )
    + _PURGED.format(column="result_asset_id")
    + " ORDER BY job_id LIMIT %(most)s",
)
_SELECT_RESULTS = Statement(
    _Edge,
    " UNION ALL ".join(
        _MAKERS.format(table=table, column="id") for table in ("conversions", "generations")
    )
    + _PURGED.format(column="job_id"),
)
_REPEATS = """
    SELECT '{table}' AS job, id AS job_id, COALESCE({column}, id) AS other_id, '{role}' AS role
    FROM {table} WHERE owner = %(owner)s AND {column} IS NOT NULL
        AND ({column} = ANY(%(ids)s) OR id = ANY(%(ids)s))
"""
# Columns with the row that a row repeats, each with an index.
_REPEATING = [
    ("generations", "regenerated_from", "regenerated"),
    *((table, "answered_from", "answered") for table in KINDS),
    *((table, "retry_of", "retried") for table in KINDS),
]
_SELECT_REPEATS = Statement(
    _Edge,
    " UNION ALL ".join(
        _REPEATS.format(table=table, column=column, role=role) for table, column, role in _REPEATING
    )
    + " ORDER BY job_id LIMIT %(most)s",
)
_SELECT_JOBS = {
    name: Statement(
        kind.table.row, f"SELECT {kind.table.columns} FROM {name} WHERE id = ANY(%(ids)s)"
    )
    for name, kind in KINDS.items()
}
_SELECT_PURGED = Statement(
    PurgedMaker,
    f"""
    SELECT {PURGED_MAKERS.columns} FROM purged_makers
    WHERE owner = %(owner)s AND job_id = ANY(%(ids)s)
    """,
)
_SELECT_ATTEMPTS = Statement(
    Attempt,
    f"SELECT {ATTEMPTS.columns} FROM attempts WHERE job_id = ANY(%(ids)s) ORDER BY number, id",
)
_SELECT_NOW = Statement(datetime, "SELECT now()")


@dataclass
class _Graph:
    """What was found so far. `jobs`: the table of each."""

    most: int
    jobs: dict[UUID, str] = field(default_factory=dict)
    pictures: dict[UUID, None] = field(default_factory=dict)
    edges: dict[tuple[UUID, UUID, str], None] = field(default_factory=dict)
    truncated: bool = False

    def take(self, found: Iterable[_Edge]) -> set[UUID]:
        """Takes jobs in, as many as there is room for. Returns those that are new."""
        new = set()
        for each in found:
            if each.job_id in self.jobs:
                continue
            if len(self.jobs) >= self.most:
                self.truncated = True
                continue
            self.jobs[each.job_id] = each.job
            new.add(each.job_id)
        return new


class LineageService(lineage_pb2_grpc.LineageServiceServicer):
    def __init__(self, db: Database, peers: Peers) -> None:
        self._db = db
        self._peers = peers

    async def GetLineage(
        self, request: pb.GetLineageRequest, context: Context
    ) -> pb.GetLineageResponse:
        graph = _Graph(request.max_jobs or _JOBS)
        if request.job_id:
            job_id = parse_id(request.job_id, "job_id")
            await self._take_job(graph, job_id)
            inputs = await self._inputs(graph, {job_id})
            results = await self._results(graph, {job_id})
        else:
            inputs = results = {parse_id(request.asset_id, "asset_id")}
            graph.pictures |= dict.fromkeys(inputs)
        await self._go_back(graph, inputs)
        await self._go_on(graph, results)
        if not graph.jobs:
            refusal = errors.not_found("asset", request.asset_id)
            refusal.metadata["field"] = "asset_id"
            raise refusal
        await self._add_repeats(graph)
        return await self._message(graph)

    async def _take_job(self, graph: _Graph, job_id: UUID) -> None:
        for name, statement in _SELECT_JOBS.items():
            if await self._db.all(statement, {"ids": [job_id]}):
                graph.jobs[job_id] = name
        for purged in await self._purged([job_id]):
            graph.jobs[job_id] = purged.job
        if not graph.jobs:
            raise errors.not_found("job", str(job_id))

    async def _go_back(self, graph: _Graph, pictures: Collection[UUID]) -> None:
        """Follows pictures to the jobs that made them, and those to their inputs."""
        while pictures:
            pictures = await self._with_copies(graph, pictures, copy_rows.originals)
            found = await self._edges(_SELECT_MAKERS, pictures, most=graph.most + 1)
            new = graph.take(found)
            for each in found:
                if each.job_id in graph.jobs:
                    graph.edges[each.job_id, each.other_id, each.role] = None
            pictures = await self._inputs(graph, new)

    async def _go_on(self, graph: _Graph, pictures: Collection[UUID]) -> None:
        """Follows pictures to the jobs that used them, and those to their results."""
        while pictures:
            pictures = await self._with_copies(graph, pictures, copy_rows.copies)
            new = graph.take(await self._edges(_SELECT_USES, pictures, most=graph.most + 1))
            await self._inputs(graph, new)
            pictures = await self._results(graph, new)

    async def _with_copies(
        self,
        graph: _Graph,
        pictures: Collection[UUID],
        follow: Callable[[Database, Collection[UUID]], Awaitable[Sequence[PictureCopy]]],
    ) -> set[UUID]:
        """Takes in the labelled copies of pictures, or what these are copies of. Returns them with
        the pictures."""
        known = new = set(pictures)
        while new:
            found = await follow(self._db, new)
            for each in found:
                graph.edges[each.asset_id, each.copy_asset_id, "label"] = None
                graph.pictures |= {each.asset_id: None, each.copy_asset_id: None}
            new = {id for each in found for id in (each.asset_id, each.copy_asset_id)} - known
            known = known | new
        return known

    async def _inputs(self, graph: _Graph, jobs: Collection[UUID]) -> set[UUID]:
        """Takes the inputs of jobs in. Returns those that are new."""
        new = set()
        for each in await self._edges(_SELECT_INPUTS, jobs) if jobs else []:
            if len(graph.pictures) >= _PICTURES and each.other_id not in graph.pictures:
                graph.truncated = True
                continue
            graph.edges[each.other_id, each.job_id, each.role] = None
            if each.other_id not in graph.pictures:
                graph.pictures[each.other_id] = None
                new.add(each.other_id)
        return new

    async def _results(self, graph: _Graph, jobs: Collection[UUID]) -> set[UUID]:
        """Takes the results of jobs in, and returns them."""
        found = await self._edges(_SELECT_RESULTS, jobs) if jobs else []
        for each in found:
            graph.edges[each.job_id, each.other_id, each.role] = None
            graph.pictures[each.other_id] = None
        return {each.other_id for each in found}

    async def _add_repeats(self, graph: _Graph) -> None:
        """Takes in the jobs that repeat one of the graph, or that one of the graph repeats."""
        most = 2 * graph.most + 1  # a job may repeat one of the graph, and be repeated
        found = await self._edges(_SELECT_REPEATS, list(graph.jobs), most=most)
        graph.truncated |= len(found) == most
        repeated = [_Edge(each.job, each.other_id, each.job_id, each.role) for each in found]
        new = graph.take([*found, *repeated])
        await self._inputs(graph, new)
        await self._results(graph, new)
        for each in found:
            if each.other_id in graph.jobs and each.job_id in graph.jobs:
                graph.edges[each.other_id, each.job_id, each.role] = None

    async def _edges(
        self, statement: Statement[_Edge], ids: Collection[UUID], **more: int
    ) -> list[_Edge]:
        values = {"owner": auth.current().owner, "ids": list(ids), **more}
        return await self._db.all(statement, values)

    async def _purged(self, jobs: Collection[UUID]) -> Sequence[PurgedMaker]:
        values = {"owner": auth.current().owner, "ids": list(jobs)}
        return await self._db.all(_SELECT_PURGED, values)

    async def _message(self, graph: _Graph) -> pb.GetLineageResponse:
        ids = {"ids": list(graph.jobs)}
        attempts: dict[UUID, list[Attempt]] = {}
        for attempt in await self._db.all(_SELECT_ATTEMPTS, ids):
            attempts.setdefault(attempt.job_id, []).append(attempt)
        jobs: dict[tuple[datetime, UUID], pb.LineageJob] = {}
        for name in set(graph.jobs.values()):
            for row in await self._db.all(_SELECT_JOBS[name], ids):
                of_row = attempts.get(row.id, [])[-_ATTEMPTS:]
                jobs[row.created_at, row.id] = _job(name, row, of_row)
        for purged in await self._purged(graph.jobs):  # last, so that none is missed
            jobs[purged.created_at, purged.job_id] = _purged_job(purged)
        there = {*graph.pictures, *(job_id for _, job_id in jobs)}
        seen = await self._peers.assets(map(str, graph.pictures))
        return pb.GetLineageResponse(
            pictures=[_picture(each, seen) for each in graph.pictures],
            jobs=[jobs[each] for each in sorted(jobs)],
            # A row may name one that is purged by now, of which there is nothing to show.
            edges=[
                pb.LineageEdge(from_id=str(one), to_id=str(other), role=role)
                for one, other, role in graph.edges
                if one in there and other in there
            ],
            truncated=graph.truncated,
            read_time=timestamp(await self._db.one(_SELECT_NOW)),
        )


def _job(table: str, row: ModelJob, attempts: Sequence[Attempt]) -> pb.LineageJob:
    recipe = row.recipe or {}
    return pb.LineageJob(
        job_id=str(row.id),
        kind=KINDS[table].number,
        task=row.model_task,
        state=STATES.number[row.state],
        provider=recipe.get("provider", ""),
        model=recipe.get("model", ""),
        model_version=recipe.get("model_version", ""),
        seed=recipe.get("seed"),
        credits=row.credits,
        attempts=[
            pb.LineageAttempt(
                number=each.number,
                outcome=OUTCOMES.number[each.outcome],
                model=each.model,
                error_class=each.error_class,
                start_time=timestamp(each.created_at),
                end_time=timestamp(each.ended_at),
            )
            for each in attempts
        ],
        create_time=timestamp(row.created_at),
        end_time=timestamp(row.end),
        consent_ids=[str(each) for each in row.consent_ids],
        delete_time=timestamp(row.deleted_at),
    )


def _purged_job(row: PurgedMaker) -> pb.LineageJob:
    return pb.LineageJob(
        job_id=str(row.job_id),
        kind=KINDS[row.job].number,
        state=STATES.number["completed"],
        create_time=timestamp(row.created_at),
        consent_ids=[str(each) for each in row.consent_ids],
        purge_time=timestamp(row.purged_at),
    )


def _picture(asset_id: UUID, seen: Mapping[str, asset_pb2.Asset]) -> pb.LineagePicture:
    asset = seen.get(str(asset_id))
    if asset is None:
        return pb.LineagePicture(asset_id=str(asset_id), gone=True)
    return pb.LineagePicture(
        asset_id=asset.id,
        file_name=asset.file_name,
        kind=asset_pb2.AssetKind.Name(asset.kind).removeprefix("ASSET_KIND_"),
        sha256=asset.sha256,
        digital_source_type=asset.digital_source_type,
    )
